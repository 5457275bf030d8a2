"""The four normalizers that the study compares, made by name.

`gn` group normalization, `syncbn` batch normalization over all replicas, `frozen_bn` the fixed
affine map of a pre-trained network's batch normalization, `none`.
"""

import tensorflow as tf
import tf_keras

from rethink_tf.ops import batch_norm as batch_norm_ops
from rethink_tf.ops import group_norm as group_norm_ops

NORMALIZERS = ("gn", "syncbn", "frozen_bn", "none")

# GN as in Detectron and Detectron2. Detectron trains no BN, whose momentum (0.1 in PyTorch's sense)
# and epsilon are Detectron2's.
GN_GROUPS = 32
EPSILON = 1e-5
BN_MOMENTUM = 0.9


class GroupNormalization(tf_keras.layers.Layer):
    """Group normalization over the last axis; see `ops.group_norm`."""

    def __init__(self, num_groups=GN_GROUPS, epsilon=EPSILON, **kwargs):
        """Makes the layer.

        Args:
            num_groups: int > 0 that divides the channels.
            epsilon: float > 0.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.num_groups = num_groups
        self.epsilon = epsilon

    def build(self, input_shape):
        # Kept in float32 under mixed precision: the statistics and their gradients are float32.
        shape, options = [input_shape[-1]], {"dtype": "float32", "experimental_autocast": False}
        self.gamma = self.add_weight("gamma", shape, initializer="ones", **options)
        self.beta = self.add_weight("beta", shape, initializer="zeros", **options)
        super().build(input_shape)

    def call(self, inputs, training=False):
        del training  # The statistics are those of the input in both modes.
        return group_norm_ops.group_norm(
            inputs, self.gamma, self.beta, self.num_groups, self.epsilon
        )

    def get_config(self):
        return super().get_config() | {"num_groups": self.num_groups, "epsilon": self.epsilon}


class SyncBatchNormalization(tf_keras.layers.Layer):
    """Batch normalization by the statistics of all replicas' batches; see `ops.batch_norm`."""

    def __init__(self, momentum=BN_MOMENTUM, epsilon=EPSILON, **kwargs):
        """Makes the layer.

        Args:
            momentum: float in [0, 1), of the moving averages, a step.
            epsilon: float > 0, added to the variance.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, input_shape):
        # Float32 under mixed precision, as all parameters of normalization.
        shape, options = [input_shape[-1]], {"dtype": "float32", "experimental_autocast": False}
        self.gamma = self.add_weight("gamma", shape, initializer="ones", **options)
        self.beta = self.add_weight("beta", shape, initializer="zeros", **options)
        # Each replica keeps its own, and all of them are equal.
        options |= {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.MEAN,
        }
        self.moving_mean = self.add_weight("moving_mean", shape, initializer="zeros", **options)
        self.moving_variance = self.add_weight(
            "moving_variance", shape, initializer="ones", **options
        )
        super().build(input_shape)

    def call(self, inputs, training=False):
        if not training:
            scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            shift = self.beta - self.moving_mean * scale
            return inputs * tf.cast(scale, inputs.dtype) + tf.cast(shift, inputs.dtype)
        outputs, mean, variance = batch_norm_ops.batch_norm(
            inputs, self.gamma, self.beta, self.epsilon, _sum_over_replicas
        )
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign_sub((1.0 - self.momentum) * (moving - value))
        return outputs

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon}


def _sum_over_replicas(value):
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


class FrozenBatchNormalization(tf_keras.layers.Layer):
    """Batch normalization with constant statistics and a constant scale and shift."""

    def __init__(self, epsilon=EPSILON, **kwargs):
        """Makes the layer.

        Args:
            epsilon: float > 0, added to the variance.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        # Float32 under mixed precision, as all parameters of normalization.
        options = {"trainable": False, "dtype": "float32", "experimental_autocast": False}

        def constant(name, initializer):
            return self.add_weight(name, [input_shape[-1]], initializer=initializer, **options)

        self.gamma, self.beta = constant("gamma", "ones"), constant("beta", "zeros")
        self.moving_mean = constant("moving_mean", "zeros")
        self.moving_variance = constant("moving_variance", "ones")
        super().build(input_shape)

    def call(self, inputs, training=False):
        del training  # Frozen.
        scale = self.gamma / (self.moving_variance + self.epsilon) ** 0.5
        shift = self.beta - self.moving_mean * scale
        return inputs * tf.cast(scale, inputs.dtype) + tf.cast(shift, inputs.dtype)

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


def make_normalization(kind, name):
    """Returns a new layer of a kind of normalization, or None for `none`.

    Args:
        kind: one of NORMALIZERS.
        name: str, the layer's name.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == "gn":
        return GroupNormalization(name=name)
    if kind == "syncbn":
        return SyncBatchNormalization(name=name)
    if kind == "frozen_bn":
        return FrozenBatchNormalization(name=name)
    if kind == "none":
        return None
    raise ValueError(f"Unknown normalizer {kind!r}; choose one of {', '.join(NORMALIZERS)}.")
