"""Exports a trained detector as a SavedModel, or as a file of TensorFlow Lite or ONNX.

    python -m rethink_tf.export --model_dir=runs/mine --format=saved_model --output=/models/mine/1
    python -m rethink_tf.export --model_dir=runs/mine --format=tflite --output=exports/tflite
    python -m rethink_tf.export --model_dir=runs/mine --format=onnx --output=exports/onnx

It is compared with the evaluation on photographs, and both are timed. The folder's README.md says
how to run it; docs/export.md has more. The last two need `pip install 'rethink-tf[export]'`.
"""

import os
import re
import sys

from absl import app, flags

from rethink_tf import console

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "The run's folder.", required=True)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A checkpoint of the run, in place of the one that is taken by default."
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", None, ["saved_model", "tflite", "onnx"], "What to write.", required=True
)
_PART = flags.DEFINE_enum(
    "part",
    "auto",
    ["auto", "detections", "raw"],
    "For tflite and onnx. detections: all of the detector. raw: the boxes before the suppression "
    "of those that overlap, without masks and keypoints. auto: the first that converts.",
)
_SIZE = flags.DEFINE_string(
    "size",
    None,
    "For tflite and onnx: HEIGHTxWIDTH of the input, pixels. Default: what holds every image.",
)
_OPSET = flags.DEFINE_enum("opset", "17", ["17", "18"], "For onnx: its version of operations.")
_WHOLE_MASKS = flags.DEFINE_bool("whole_masks", False, "For saved_model: paste the masks, too.")
_IMAGES = flags.DEFINE_multi_string(
    "images",
    [],
    "JPEG or PNG files, or folders, to compare on. Default: the run's evaluation data.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the export of another command.")


def main(argv):
    """Parses the flags, loads the run and exports it."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    console.start()
    try:
        _export(_command())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def _command():
    """Returns what decides on the export, checked."""
    size = _SIZE.value and re.fullmatch(r"(\d+)x(\d+)", _SIZE.value)
    if _SIZE.value and not size:
        raise ValueError(f"--size={_SIZE.value}: give HEIGHTxWIDTH in pixels, such as 640x640.")
    is_served = _FORMAT.value == "saved_model"
    if is_served and (size or _PART.value != "auto"):
        raise ValueError("--size and --part are for tflite and onnx; a SavedModel takes any size.")
    if _WHOLE_MASKS.value and not is_served:
        raise ValueError("--whole_masks is for saved_model: paste the masks as README.md says.")
    return {
        "model_dir": os.path.abspath(_MODEL_DIR.value),
        "checkpoint": _CHECKPOINT.value,
        "format": _FORMAT.value,
        "part": _PART.value,
        "size": size and [int(side) for side in size.groups()],
        "opset": int(_OPSET.value) if _FORMAT.value == "onnx" else None,
        "whole_masks": _WHOLE_MASKS.value,
    }


def _export(command):
    from rethink_tf.exporting import conversion, folder

    conversion.check_installed(command["format"])
    folder.check(_OUTPUT.value, command, _OVERWRITE.value)
    from rethink_tf import files, loading
    from rethink_tf.exporting import exporter, photographs

    chosen = photographs.of_files(_IMAGES.value)
    # The other formats have no arithmetic of fewer bits.
    precision = None if command["format"] == "saved_model" else "float32"
    trained = loading.load(_MODEL_DIR.value, _CHECKPOINT.value, precision)
    chosen = chosen or photographs.of_run(_MODEL_DIR.value, trained.pipeline)
    config = files.read_text(os.path.join(_MODEL_DIR.value, "config.gin"))
    exporter.export(trained, config, _OUTPUT.value, command, chosen, _OVERWRITE.value)


if __name__ == "__main__":
    app.run(main)
