"""Detects objects in photographs and videos, with what a run has trained.

    python -m rethink_tf.predict --model_dir=runs/quickstart --input=photos --output=found
    python -m rethink_tf.predict --checkpoint=model_final.pkl --gin_file=scratch_r50.gin \
        --input='photos/*.jpg' --output=found

Pictures with what scores --score or more, and detections.json with all, in COCO's form. Exit codes:
0 all files were read, 1 refused, or files were left out, 130 stopped by Ctrl-C.
"""

import sys

from absl import app, flags

from rethink_tf import console, exit_codes

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "The folder of a run.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "With --model_dir: one of the run's checkpoints, without an ending; default: the newest. With "
    "--gin_file: weights of another code base, such as Detectron2's model_final.pkl.",
)
_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "What the detector of --checkpoint is; may be given several times."
)
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "A gin binding over --gin_file.")
_NAMES = flags.DEFINE_list(
    "names", None, "Names of the classes of --checkpoint, in order; default: COCO's."
)
_INPUT = flags.DEFINE_string(
    "input", None, "A file, a folder, or a pattern in quotes.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
_SCORE = flags.DEFINE_float(
    "score", 0.5, "Of the weakest detections that are drawn.", lower_bound=0.0, upper_bound=1.0
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images at a time.", lower_bound=1)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", 100_000_000, "Larger images are left out.", lower_bound=1
)
_EXIF = flags.DEFINE_enum(
    "exif", "apply", ["apply", "ignore"], "Whether EXIF's orientation turns photographs."
)
_SIXTEEN_BIT = flags.DEFINE_enum(
    "sixteen_bit",
    None,
    ["full", "range"],
    "How 16 bits become 8; default: such files are left out.",
)


def main(argv):
    """Parses the flags, loads the detector, and runs it."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    if not (_MODEL_DIR.value or (_CHECKPOINT.value and _GIN_FILE.value)):
        raise app.UsageError("Give --model_dir, or --checkpoint and --gin_file.")
    console.start()
    # Only now: --help answers without waiting for TensorFlow.
    from rethink_tf import loading
    from rethink_tf.data.sources import image_files
    from rethink_tf.predicting import run

    try:
        if _MODEL_DIR.value:
            detector = loading.load(_MODEL_DIR.value, _CHECKPOINT.value)
        else:
            detector = loading.load_weights(
                _CHECKPOINT.value, _GIN_FILE.value, _GIN_PARAM.value, _NAMES.value
            )
        skipped = run.predict(
            detector,
            _INPUT.value,
            _OUTPUT.value,
            _SCORE.value,
            _BATCH_SIZE.value,
            image_files.Options(_EXIF.value, _SIXTEEN_BIT.value),
            _MAX_PIXELS.value,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        console.leave(exit_codes.REFUSED)
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C; what was found so far is written.", file=sys.stderr)
        console.leave(exit_codes.INTERRUPTED)
    if skipped:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        print(f"error: {sum(skipped.values())} files were left out: {counts}.", file=sys.stderr)
    console.leave(exit_codes.REFUSED if skipped else exit_codes.DONE)


if __name__ == "__main__":
    app.run(main)
