"""Turns a checkpoint of another code base into one to start from: of Detectron2 or of a classifier.

    python -m rethink_tf.convert --gin_file=gin_configs/scratch_r50.gin \
        --checkpoint=model_final.pkl --output=/weights/r50

Then train or evaluate with --gin_param='run.init_checkpoint="/weights/r50"'. The gin files say what
the detector is; a checkpoint of another one is refused with every difference named. Files are known
by what is in them, not by their names:

- Detectron2's detectors: .pkl or .pth, the whole detector.
- Classifiers, of which the backbone is taken (see base/pretrained.gin): Detectron's and
  Detectron2's .pkl, such as R-50-GN.pkl; torchvision's and timm's .pth or .safetensors, such as
  resnet50_gn; ResNet50, ResNet101, ResNet152 and VGG16 of Keras Applications (.keras, .weights.h5,
  .h5), whose ResNet needs --gin_param='ResNet.stride_in_1x1=True'.
- Model Garden's ResNet, of a classifier or of a detector: the TensorFlow checkpoint's path without
  an ending. It needs --gin_param='ResNet.same_padding=True'.
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
    "The checkpoint to read: of Detectron2, or of a classifier of Detectron, torchvision, timm, "
    "Keras Applications or Model Garden.",
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
    "Default: RGB for torchvision's, timm's and Model Garden's, else BGR.",
)
_NORM_EPSILON = flags.DEFINE_float(
    "norm_epsilon",
    None,
    "The epsilon of the classifier's batch normalization, where it is not its library's: Model "
    "Garden's norm_activation.norm_epsilon, which its checkpoints do not hold, is 0.0001 for Mask "
    "R-CNN. Default: 1e-5, for Keras Applications 1.001e-5.",
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
            _CHECKPOINT.value,
            _OUTPUT.value,
            _INPUT_FORMAT.value,
            experiment.detector_builder(),
            _NORM_EPSILON.value,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.info("Wrote %d variables to %s.", count, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
