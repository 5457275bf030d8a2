"""The classifier: a detector's backbone, the mean of its last level or fc6 and fc7, and logits.

Letters: B images, S pixels a side, C classes.
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.execution import ExecutionPlan
from rethink_tf.layers import conv
from rethink_tf.models.detector import PIXEL_MEAN, PIXEL_STD
from rethink_tf.models.resnet import ResNet
from rethink_tf.ops import draws
from rethink_tf.ops import pixels as pixel_ops

_DROPOUT_DRAWS = 11  # The first purpose of `ops.draws`; one more for each layer.
_FC_SIDE = 7  # Cells a side that fc6 takes, `BoxHead.roi_size` of the detector.


@gin.register
class Classifier(tf_keras.Model):
    """A backbone with a classifier's last layers.

    Attributes:
        backbone: the detector's.
        pixel_std: three floats, what the pixels are divided by.
        image_size: int S, pixels, of `create_variables`.
    """

    def __init__(
        self,
        num_classes,
        backbone=ResNet,
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        fc_channels=4096,
        dropout=0.5,
        plan=None,
        **kwargs,
    ):
        """Makes the layers.

        Args:
            num_classes: int C.
            backbone: callable without arguments, makes the backbone.
            pixel_mean: three floats, RGB, subtracted from the pixels: the detector's.
            pixel_std: three floats, RGB; the rest is divided by them. The checkpoint of the
                backbone says which, and a detector with others is refused.
            fc_channels: int, of fc6 and fc7, which VGG-16 has (the detector's
                `BoxHead.fc_channels`).
            dropout: float in [0, 1), share of the outputs of fc6 and fc7 that is left out.
            plan: `ExecutionPlan`, for all layers; None for TensorFlow's own operations.
            **kwargs: of the Keras model.

        Raises:
            ValueError: if dropout is out of range, or the backbone freezes weights.
        """
        super().__init__(autocast=False, **kwargs)
        if not 0 <= dropout < 1:
            raise ValueError(f"Classifier: dropout must be in [0, 1), got {dropout}.")
        self.backbone = backbone()
        if self.backbone.freeze_at:
            raise ValueError(
                f"The backbone's freeze_at is {self.backbone.freeze_at}: pre-training trains all "
                "of it. Bind freeze_at = 0 here, and the other value for the detector."
            )
        self.fcs = []
        if self.backbone.shares_fcs:
            self.fcs = [
                conv.Dense(fc_channels, "relu", kernel_initializer=conv.xavier(), name=name)
                for name in ("fc1", "fc2")
            ]
        self.logits = conv.Dense(num_classes, kernel_initializer=conv.normal(0.01), name="logits")
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self._dropout, self.image_size = dropout, None
        self.plan = plan or ExecutionPlan()
        self.plan.give_to(self)

    def create_variables(self, image_size):
        """Creates every variable; image_size is S, pixels.

        Raises:
            ValueError: if the size does not fit the backbone.
        """
        stride = self.backbone.coarsest_stride
        if image_size % stride:
            raise ValueError(
                f"ImageInput.image_size = {image_size} must be a multiple of {stride} pixels, the "
                f"coarsest stride of {type(self.backbone).__name__}."
            )
        # VGG-16's last pooling halves the map of stride 16.
        if self.fcs and image_size != _FC_SIDE * 2 * stride:
            raise ValueError(
                f"ImageInput.image_size = {image_size}: fc6 of {type(self.backbone).__name__} "
                f"takes {_FC_SIDE} x {_FC_SIDE} cells, so bind {_FC_SIDE * 2 * stride}."
            )
        self.image_size = image_size
        self({"image": tf.zeros([1, image_size, image_size, 3], tf.uint8)})

    def call(self, batch, training=False, seed=None):
        """Computes the logits.

        Args:
            batch: dict with image uint8 [B, S, S, 3], RGB, in training also image_id int64 [B].
            training: bool.
            seed: int32 [2], of the run and the step; needed in training.

        Returns:
            float32 [B, C].
        """
        image = batch["image"]
        sizes = tf.tile([tf.shape(image)[1:3]], [tf.shape(image)[0], 1])
        pixels = pixel_ops.normalize(image, sizes, self.pixel_mean, self.pixel_std)
        features = self.backbone(tf.cast(pixels, self.compute_dtype), training=training)
        outputs = features[max(features)]
        if not self.fcs:
            return tf.cast(self.logits(tf.reduce_mean(outputs, [1, 2])), tf.float32)
        outputs = tf.nn.max_pool2d(outputs, 2, 2, "VALID")
        outputs = tf.reshape(outputs, [-1, _FC_SIDE * _FC_SIDE * outputs.shape[-1]])
        for number, layer in enumerate(self.fcs):
            outputs = layer(outputs)
            if training and self._dropout:
                purpose = _DROPOUT_DRAWS + number
                drawn = draws.uniform(seed, purpose, batch["image_id"], outputs.shape[-1])
                kept = tf.cast(drawn >= self._dropout, outputs.dtype)
                outputs *= kept / (1 - self._dropout)
        return tf.cast(self.logits(outputs), tf.float32)

    def pretrained_parts(self):
        """Returns what a detector takes, as `MaskRCNN.pretrained_parts` names it."""
        return {"backbone": self.backbone} | ({"fcs": self.fcs} if self.fcs else {})
