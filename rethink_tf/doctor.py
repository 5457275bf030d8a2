"""Says why the AP of a run is low, by what the run has left; nothing is trained for it.

    python -m rethink_tf.doctor runs/quickstart
    python -m rethink_tf.doctor runs/quickstart --weights --json

Exit codes, as of `diff`: 0 no cause was found, 1 causes were found, 2 the folder holds no run that
can be read.
"""

import json
import sys

from absl import app, flags

from rethink_tf import console

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of text.")
_WEIGHTS = flags.DEFINE_bool(
    "weights",
    False,
    "Also read the oldest and the newest checkpoint: values that are not finite, and weights that "
    "did not change. It imports TensorFlow, which takes some seconds.",
)

FOUND, UNREADABLE = 1, 2


def main(argv):
    """Reads one run, and prints what was found."""
    if len(argv) != 2:
        raise app.UsageError("Give MODEL_DIR of one run, such as runs/quickstart.")
    console.start()
    # Only now: help needs none of them.
    from rethink_tf.diagnosis import run_files, table, texts

    try:
        run = run_files.RunFiles(argv[1], reads_weights=_WEIGHTS.value)
        findings = table.diagnose(run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNREADABLE)
    if _JSON.value:
        print(json.dumps(texts.as_dict(run, findings), indent=1))
    else:
        print(texts.describe(run, findings))
    sys.exit(FOUND if findings else 0)


if __name__ == "__main__":
    app.run(main)
