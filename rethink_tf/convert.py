"""Turns a checkpoint of Detectron2 or of an ImageNet classifier into one to start from.

    python -m rethink_tf.convert --gin_file=gin_configs/scratch_r50.gin \
        --checkpoint=model_final.pkl --output=/weights/r50

Then train or evaluate with --gin_param='run.init_checkpoint="/weights/r50"'. The gin files say what
the detector is; a checkpoint of another one is refused with every difference named. Of a
classifier, such as Detectron's R-50-GN.pkl or timm's resnet50_gn (model.safetensors), the backbone
is taken; see base/pretrained.gin. Files are known by what is in them, not by their names.
"""

import sys

from absl import app, flags, logging

from rethink_tf import config, console

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A gin file of the experiment; may be given several times."
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "A gin binding that wins over the files; may be given several times."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The checkpoint to read: a .pkl of Detectron2, or of a classifier of Detectron, or safetensors "
    "of torchvision or timm.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Path of the checkpoint to write, without an ending.", required=True
)
_INPUT_FORMAT = flags.DEFINE_enum(
    "input_format",
    None,
    ["BGR", "RGB"],
    "The order of the channels that the checkpoint was trained with (Detectron2's INPUT.FORMAT). "
    "Default: RGB for torchvision's and timm's, else BGR.",
)


def main(argv):
    """Parses the flags, builds the detector, and writes its checkpoint."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    console.start()
    from rethink_tf import experiment
    from rethink_tf.weights import conversion

    try:
        # The weights do not depend on where a run would read and write.
        places = ["MODEL_DIR=''", "DATA_DIR=''"]
        config.parse(_GIN_FILE.value, places + _GIN_PARAM.value)
        count = conversion.convert(
            _CHECKPOINT.value, _OUTPUT.value, _INPUT_FORMAT.value, experiment.detector_builder()
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.info("Wrote %d variables to %s.", count, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
