"""What a cause of a low AP says when it is found."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that lowers the AP of a run.

    Attributes:
        weight: int, 1 to 100: how surely it alone explains an AP near 0.
        seen: str, the numbers, and in brackets the file that they are in.
        why: str, how that lowers the AP.
        remedy: str, what to do: the binding or the command.
        cause: str, the name of the function that found it.
    """

    weight: int
    seen: str
    why: str
    remedy: str
    cause: str = ""
