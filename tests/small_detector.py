"""A small detector in training, and images for it, for tests of the training step."""

import functools

import numpy as np
import tf_keras
from detector_steps import machine_plan

from rethink_tf.layers import conv
from rethink_tf.losses import DetectionLosses
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.cascade import CascadeBoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.rpn import RPN
from rethink_tf.training.optimizer import MomentumSGD
from rethink_tf.training.schedules import StepwiseSchedule
from rethink_tf.training.step import TrainStep

STEPS, DROP = 4, 3  # of the schedule


def make_batch(num_images, with_masks=False):
    """Returns images with three objects each, with masks or without."""
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 60, [num_images, 3, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, [num_images, 3, 2])], axis=-1)
    masks = {"masks": rng.integers(0, 256, [num_images, 3, 28, 28]).astype(np.uint8)}
    return (masks if with_masks else {}) | {
        "image": rng.integers(0, 256, [num_images, 128, 128, 3]).astype(np.uint8),
        "image_size": np.full([num_images, 2], 128, np.int32),
        "image_id": np.arange(num_images, dtype=np.int64) + 100,
        "boxes": boxes.astype(np.float32),
        "classes": rng.integers(1, 3, [num_images, 3]).astype(np.int32),
    }


class Backbone(tf_keras.layers.Layer):
    """A convolution a level: what the tests do not look at is quick."""

    coarsest_stride = 32

    def __init__(self, normalizer="gn"):
        super().__init__()
        self.convs = [conv.ConvNorm(32, 3, stride, normalizer) for stride in (4, 2, 2, 2)]

    def call(self, images, training=False, content=None):
        features = {}
        for level, layer in enumerate(self.convs, start=2):
            images = features[level] = layer(images, training, content)
            content = layer.after(content)
        return features


class Run:
    """A small cascade with GN, and its optimizer."""

    def __init__(self, strategy, proposals=50, with_masks=False, **options):
        """Builds everything under a strategy.

        Args:
            strategy: `tf.distribute.Strategy`.
            proposals: int; the RoIs are those and the objects, all of which enter the losses.
            with_masks: bool, whether there is a mask head.
            **options: of `TrainStep`.
        """
        few = {"train_pre_nms": 50, "train_proposals": proposals, "num_samples": 32}
        stage = functools.partial(
            BoxHead, num_convs=0, fc_channels=32, num_samples=64, positive_fraction=1.0
        )
        tf_keras.utils.set_random_seed(3)
        with strategy.scope():
            self.model = MaskRCNN(
                2,
                backbone=Backbone,
                fpn=functools.partial(FPN, 32),
                rpn=functools.partial(RPN, 32, **few),
                box_head=functools.partial(CascadeBoxHead, stage=stage),
                mask_head=functools.partial(MaskHead, num_convs=1, channels=32)
                if with_masks
                else None,
                plan=machine_plan(),
            )
            self.model.create_variables()
            self.optimizer = MomentumSGD(
                StepwiseSchedule(STEPS, 0.01, drop_steps=[DROP], warmup_steps=0)
            )
            self.optimizer.build(self.model.trainable_variables)
        self.strategy, self.options, self.history = strategy, options, []
        self.make_step()

    def make_step(self):
        """Makes the step, as a process does once it has read the weights."""
        self.step = TrainStep(
            self.model, DetectionLosses(), self.optimizer, self.strategy, seed=5, **self.options
        )

    def train(self, num_steps, batch=None):
        """Trains on the same images at every step and keeps the losses."""
        batch = batch or make_batch(4)
        parts = self.step.accumulate_steps
        share = len(batch["image"]) // (parts * self.strategy.num_replicas_in_sync)

        def micro_batch(part):
            def local(context):
                place = part * self.strategy.num_replicas_in_sync
                start = (place + context.replica_id_in_sync_group) * share
                return {key: value[start : start + share] for key, value in batch.items()}

            return self.strategy.experimental_distribute_values_from_function(local)

        distributed = [micro_batch(part) for part in range(parts)]
        for _ in range(num_steps):
            values = self.step(*distributed)
            self.history.append({name: float(value) for name, value in values.items()})

    def state(self, layers):
        """Returns weights and velocities of layers as arrays."""
        variables = [each for layer in layers for each in layer.trainable_variables]
        wanted = {each.ref() for each in variables}
        pairs = zip(self.model.trainable_variables, self.optimizer.velocities, strict=True)
        velocities = [velocity for variable, velocity in pairs if variable.ref() in wanted]
        return [each.numpy() for each in [*variables, *velocities]]
