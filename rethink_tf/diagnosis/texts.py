"""What is said of a diagnosis: the page of a command, the paragraph of a run, and JSON."""

import textwrap

from absl import logging

from rethink_tf import console
from rethink_tf.diagnosis import table
from rethink_tf.diagnosis.run_files import LOW_AP, RunFiles

_WIDTH = 100
_USUAL = (
    "Usual causes: a run that is too short or still warming up; a rate that is far too high; "
    "classes or boxes of the annotations that are not as COCO's; objects without a match to the "
    "anchors; batch normalization of one image; frozen random layers; losses that are not finite."
)


def describe(run, findings):
    """Returns the lines on a run.

    Args:
        run: `run_files.RunFiles`.
        findings: of `table.diagnose`, of the run.

    Returns:
        str, of several lines, the heaviest finding first.
    """
    measured = ", ".join(f"{name} {value:.3f}" for name, value in run.headlines.items())
    lines = [f"{run.folder}: step {run.step:,}, {measured or 'not evaluated yet'}"]
    for number, each in enumerate(findings, start=1):
        lines += ["", f"{number}. {each.cause.replace('_', ' ')} (weight {each.weight} of 100)"]
        for title, text in (("seen", each.seen), ("why", each.why), ("do", each.remedy)):
            lines += textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=f"   {title + ':':<6}",
                subsequent_indent=" " * 9,
                break_long_words=False,
                break_on_hyphens=False,
            )
    if not findings:
        lines += [f"No cause of a low AP was found; {len(table.CAUSES)} were looked for."]
    if run.unread:
        lines += ["", "Not read, so that some causes were not looked for:"]
        lines += [f"  {path}: {reason}" for path, reason in sorted(run.unread.items())]
    return "\n".join(lines)


def as_dict(run, findings):
    """Returns the same for machines: plain values, ready for JSON.

    Args:
        run: `run_files.RunFiles`.
        findings: of `table.diagnose`.

    Returns:
        dict: model_dir, step, metrics, the findings with the fields of `Finding`, and unread.
    """
    return {
        "model_dir": run.folder,
        "step": run.step,
        "metrics": run.headlines,
        "findings": [vars(each) for each in findings],
        "unread": run.unread,
    }


class LowApLog:
    """Logs a paragraph after each evaluation of a run that has found next to nothing."""

    def __init__(self, folder, settings):
        """Takes the run.

        Args:
            folder: str, MODEL_DIR.
            settings: callable without arguments, returns the gin text of the values in force.
        """
        self._folder, self._settings, self._said = folder, settings, None

    def __call__(self):
        """Reads what the run has left by now; what was said before is not said again."""
        # A run must not end by what explains it.
        try:
            run = RunFiles(self._folder, settings=self._settings())
            if run.is_low:
                logging.info("%s", self._text(run, table.diagnose(run)), extra=console.KEPT)
        except Exception as error:
            logging.warning("Why the AP is low could not be looked for: %r", error)

    def _text(self, run, findings):
        causes, before = [each.cause for each in findings], self._said
        self._said = run.step, causes
        measured = ", ".join(f"{name} {value:.3f}" for name, value in run.headlines.items())
        text = f"{measured} at step {run.step:,}: below {LOW_AP:g}"
        if before and before[1] == causes:
            return f"{text}, for the causes said at step {before[0]:,}."
        pointed = " ".join(
            f"({number}) {each.cause.replace('_', ' ')}: {each.seen}."
            for number, each in enumerate(findings, start=1)
        )
        text += "." if before else f". {_USUAL}"
        text += f" This run's numbers point at: {pointed}" if findings else " None of them is seen."
        text = textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
        # A line of its own, to be copied.
        return text if before else f"{text}\nWhat to do: python -m rethink_tf.doctor {self._folder}"
