"""How classifiers of other code bases were trained, as far as their weights depend on it."""

import dataclasses

from rethink_tf.layers.normalization import EPSILON
from rethink_tf.models.detector import PIXEL_MEAN, PIXEL_STD


@dataclasses.dataclass(frozen=True)
class Origin:
    """What goes with the weights of a classifier.

    Attributes:
        name: str, for messages.
        input_format: "BGR" or "RGB", the order of the channels of its images.
        pixel_mean: three floats, RGB, subtracted from the pixels.
        pixel_std: three floats, RGB; the rest was divided by them.
        stride_in_1x1: bool as of `ResNet`, or None where the weights are of either.
        same_padding: bool as of `ResNet`.
        norm_epsilon: float, added to the variance of batch normalization.
    """

    name: str
    input_format: str
    pixel_mean: tuple = PIXEL_MEAN
    pixel_std: tuple = PIXEL_STD
    stride_in_1x1: bool | None = False
    same_padding: bool = False
    norm_epsilon: float = EPSILON

    def check(self, backbone):
        """Checks that a backbone computes with the weights what the classifier did.

        Args:
            backbone: `ResNet`, or another backbone without these settings, which then suits.

        Raises:
            ValueError: if its strides or its padding are elsewhere; the binding is named.
        """
        for setting, wanted in self.architecture.items():
            found = getattr(backbone, setting, wanted)
            if found != wanted:
                raise ValueError(
                    f"{self.name} has {setting} = {wanted}, and ResNet.{setting} is {found}: the "
                    "weights fit, and the features would be others. "
                    f"Bind ResNet.{setting} = {wanted}."
                )

    @property
    def architecture(self):
        """What the backbone's settings have to be: {setting of `ResNet`: bool}."""
        settings = {"stride_in_1x1": self.stride_in_1x1, "same_padding": self.same_padding}
        return {setting: value for setting, value in settings.items() if value is not None}

    def preprocessing(self, backbone):
        """Returns what a checkpoint states beside the weights: a dict that JSON can hold.

        Args:
            backbone: that they were read into.
        """
        settings = ("stride_in_1x1", "same_padding")
        return {
            "origin": self.name,
            "channel_order": self.input_format,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
            "norm_epsilon": self.norm_epsilon,
            **{key: getattr(backbone, key) for key in settings if hasattr(backbone, key)},
        }


# Pickles of Detectron and Detectron2 do not say where their strides are: Detectron's GroupNorm
# models have them in the 3x3 convolution, as has torchvision's ResNet in Detectron2's form, and
# MSRA's models in the 1x1.
DETECTRON = Origin(
    "Detectron", "BGR", (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0), stride_in_1x1=None
)
DETECTRON2_RGB = Origin("torchvision's classifier of Detectron2", "RGB", stride_in_1x1=None)
TORCH = Origin("The classifier of torchvision or timm", "RGB")
# `preprocess_input` of mode "caffe" in `keras.applications.imagenet_utils`; the epsilon of
# `keras.applications.resnet`.
KERAS = Origin(
    "The classifier of Keras Applications",
    "BGR",
    (123.68, 116.779, 103.939),
    (1.0, 1.0, 1.0),
    stride_in_1x1=True,
    norm_epsilon=1.001e-5,
)
# `official.vision.ops.preprocess_ops`; the epsilon, which its checkpoints do not hold, is that of
# `resnet_imagenet` in `official.vision.configs.image_classification`.
MODEL_GARDEN = Origin("The backbone of Model Garden", "RGB", same_padding=True, norm_epsilon=1e-5)
