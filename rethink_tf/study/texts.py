"""What a study prints: its plan as a table, and a line of progress."""

import sys
import time
from collections.abc import Sequence

from rethink_tf.metrics_file import OPEN
from rethink_tf.study.planning import Run


def plan_table(
    runs: Sequence[Run],
    states: Sequence[str],
    rate: float | None,
    devices: int = 1,
    price: float | None = None,
) -> str:
    """Returns the plan as text, a line a run, with sums.

    Args:
        runs: of the study.
        states: one of `progress` for each.
        rate: images a second of a run, over all its devices; None where it is not known.
        devices: of a run.
        price: of a device and hour, or None.
    """
    header = ["run", "goes on from", "steps", "images", "device-hours", "state"]
    rows = [
        [
            run.name,
            f"{run.parent} at {run.start_step:,}" if run.parent else "the start",
            f"{run.steps:,}",
            f"{run.images:,}",
            _hours(run.images, rate, devices),
            state,
        ]
        for run, state in zip(runs, states, strict=True)
    ]
    images = sum(run.images for run in runs)
    straight = sum(run.num_steps * run.batch_size for run in runs)
    lines = _aligned([header, *rows])
    steps = sum(run.steps for run in runs)
    lines += ["", f"{len(runs)} runs: {steps:,} steps, {images:,} images."]
    if images < straight:
        whole = sum(run.num_steps for run in runs)
        lines.append(f"Each from the start they would take {whole:,} steps, {straight:,} images.")
    alone = {(run.arm, run.subset, run.seed) for run in runs if not run.parent}
    begun = sum(not run.parent for run in runs)
    if begun > len(alone):
        lines.append(
            f"{begun - len(alone)} of the shorter runs share no start with the longest of their "
            "arm: peak rate, warm-up or the first drop differ, or Study.branching is off."
        )
    if rate is None:
        lines.append("No run has ended yet: give --images_per_second for hours and cost.")
        return "\n".join(lines)
    hours = images / rate / 3600 * devices
    cost = f", {hours * price:,.2f} at {price:g} an hour" if price is not None else ""
    lines.append(f"{hours:,.2f} device-hours at {rate:,.2f} images/s on {devices} devices{cost}.")
    left = sum(run.images for run, state in zip(runs, states, strict=True) if state == OPEN)
    if 0 < left < images:
        lines.append(f"{left / rate / 3600 * devices:,.2f} of them are left.")
    return "\n".join(lines)


def _hours(images, rate, devices):
    return "?" if rate is None else f"{images / rate / 3600 * devices:,.2f}"


def _aligned(rows):
    """Lines of a table: texts to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


class ProgressLine:
    """One line that is written over on a terminal; elsewhere a line a minute."""

    _SECONDS_BETWEEN_LINES = 60.0

    def __init__(self):
        self._shown_at, self._width = None, 0

    def show(self, text: str) -> None:
        """Shows a text in place of the last one."""
        if sys.stderr.isatty():
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
            return
        now = time.monotonic()
        if self._shown_at is None or now - self._shown_at >= self._SECONDS_BETWEEN_LINES:
            self._shown_at = now
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Ends the line."""
        if self._width:
            print(file=sys.stderr)
