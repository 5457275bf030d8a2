"""What a conversion left out, what it kept otherwise than stated, and how both are said.

Nothing here needs TensorFlow.
"""

import collections

from absl import logging

# From this share of the images or of the objects on, what was left out is no detail any more.
LOUD_SHARE = 0.1
_SHOWN = 3
# What follows from another reason, which is the cause.
_CONSEQUENCES = ("annotation_of_skipped_image",)


class BadEntryError(ValueError):
    """A bad entry was met in strict mode."""


class SkipLog:
    """Counts and names the entries that are left out; in strict mode raises instead.

    Attributes:
        entries: [{"reason", "entry"}] left out, in the order met.
        notes: the same of entries that are kept, but not as they were stated.
    """

    def __init__(self, strict: bool):
        self.entries: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self._strict = strict

    def add(self, reason: str, entry: str) -> None:
        """Notes one entry that is left out.

        Raises:
            BadEntryError: in strict mode.
        """
        if self._strict:
            raise BadEntryError(
                f"{reason}: {entry}. Correct it, or run without --strict to skip it"
            )
        self.entries.append({"reason": reason, "entry": entry})

    def note(self, reason: str, entry: str, is_fault: bool = False) -> None:
        """Notes one entry that is kept, but not as it was stated.

        Args:
            reason: what was done or found.
            entry: which entry, and what was wrong with it.
            is_fault: whether the file is wrong, so that strict mode stops at it.

        Raises:
            BadEntryError: in strict mode, at a fault.
        """
        if self._strict and is_fault:
            raise BadEntryError(
                f"{reason}: {entry}. Correct it, or run without --strict to have the rest of it"
            )
        self.notes.append({"reason": reason, "entry": entry})

    def counts(self) -> dict[str, int]:
        """Number of entries left out by reason, in alphabetical order."""
        return _count(self.entries)

    def note_counts(self) -> dict[str, int]:
        """Number of entries kept otherwise than stated by reason, in alphabetical order."""
        return _count(self.notes)

    def num_left_out(self) -> dict[str, int]:
        """How many images and objects were left out: {"images", "objects"}."""
        kinds = collections.Counter(_kind(entry["reason"]) for entry in self.entries)
        return {kind: kinds[kind] for kind in ("images", "objects")}

    def log(self) -> None:
        """Logs one line a reason, with the number of its entries and the first ones."""
        for title, entries in (("skipped", self.entries), ("noted", self.notes)):
            for reason, number in collections.Counter(e["reason"] for e in entries).most_common():
                logging.warning("%s %d x %s: %s", title, number, reason, _first(entries, reason))

    def loud_summary(self, num_images: int, num_objects: int) -> str | None:
        """Says in one paragraph that much was left out, or returns None.

        Args:
            num_images: stated by the source, those left out included.
            num_objects: the same.
        """
        left_out = self.num_left_out()
        shares = {
            kind: left_out[kind] / total
            for kind, total in (("images", num_images), ("objects", num_objects))
            if total
        }
        large = [kind for kind, share in shares.items() if share > LOUD_SHARE]
        if not large:
            return None
        totals = {"images": num_images, "objects": num_objects}
        what = " and ".join(
            f"{left_out[kind]:,} of {totals[kind]:,} {kind} ({shares[kind]:.0%})" for kind in large
        )
        return f"{what} were left out. The commonest causes:\n{self.causes()}"

    def causes(self) -> str:
        """The three commonest reasons that entries were left out, a line each."""
        counts = collections.Counter(
            entry["reason"] for entry in self.entries if entry["reason"] not in _CONSEQUENCES
        )
        return "\n".join(
            f"  {number:,} x {reason}: {_first(self.entries, reason, 1)}"
            for reason, number in counts.most_common(3)
        )


def printable(text: str) -> str:
    """A text without what cannot be written as UTF-8: such bytes become \\xNN or \\uNNNN."""
    as_bytes = text.encode("utf-8", "backslashreplace").decode()
    # What `surrogateescape` made of a byte shows as that byte.
    for byte in range(0x80, 0x100):
        as_bytes = as_bytes.replace(f"\\udc{byte:02x}", f"\\x{byte:02x}")
    return as_bytes


def _count(entries):
    return dict(sorted(collections.Counter(entry["reason"] for entry in entries).items()))


def _first(entries, reason, number=_SHOWN):
    """The first entries of a reason, and how many more there are."""
    named = [entry["entry"] for entry in entries if entry["reason"] == reason]
    more = f"; and {len(named) - number:,} more, see manifest.json" if len(named) > number else ""
    return "; ".join(printable(each) for each in named[:number]) + more


def _kind(reason):
    """What an entry of a reason is: "images", "categories" or "objects"."""
    if reason.startswith(("image_", "annotation_file_")):
        return "images"
    return "categories" if reason.startswith("category_") else "objects"
