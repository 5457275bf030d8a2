"""The normalizers that the study compares, made by name.

`gn` group normalization; `layer_norm` and `instance_norm`, which are group normalization with one
group and with a group a channel; `syncbn` batch normalization over all replicas; `batch_renorm`
the same, corrected towards its moving averages; `frozen_bn` the fixed affine map of a pre-trained
network's batch normalization; `none`.

Each takes the content of its inputs (`ops.content`): cells that are not content count nowhere, and
are 0 in the outputs.
"""

import contextlib
import contextvars
import functools

import tensorflow as tf
import tf_keras

from rethink_tf.ops import batch_norm as batch_norm_ops
from rethink_tf.ops.content import Content
from rethink_tf.ops.group_norm import GroupNorm, Norm
from rethink_tf.ops.operations import Operations

NORMALIZERS = (
    "gn",
    "layer_norm",
    "instance_norm",
    "syncbn",
    "batch_renorm",
    "frozen_bn",
    "none",
)

# GN as in Detectron and Detectron2. Detectron trains no BN, whose momentum (0.1 in PyTorch's sense)
# and epsilon are Detectron2's.
GN_GROUPS = 32
EPSILON = 1e-5
BN_MOMENTUM = 0.9

# Batch renormalization as published (Ioffe 2017, arXiv:1702.03275, section 4): for 5,000 steps it
# is batch normalization; then the bound of r goes from 1 to 3 until step 40,000, and that of d from
# 0 to 5 until step 25,000; the moving averages move by 0.01 a step.
RENORM_MOMENTUM = 0.99
RENORM_START = 5_000
RENORM_R, RENORM_R_END = 3.0, 40_000
RENORM_D, RENORM_D_END = 5.0, 25_000


# Whether batch normalization moves its averages in training.
_moves_averages = contextvars.ContextVar("moves_averages", default=True)


@contextlib.contextmanager
def averages_at_rest():
    """Within it, what runs in training leaves the moving averages of batch normalization alone."""
    token = _moves_averages.set(False)
    try:
        yield
    finally:
        _moves_averages.reset(token)


class GroupNormalization(tf_keras.layers.Layer):
    """Group normalization over the last axis; see `ops.group_norm`."""

    operations = Operations()

    def __init__(self, num_groups=GN_GROUPS, epsilon=EPSILON, **kwargs):
        """Makes the layer.

        Args:
            num_groups: int > 0 that divides the channels; None for a group a channel.
            epsilon: float > 0.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.num_groups = num_groups
        self.epsilon = epsilon

    def build(self, input_shape):
        """Creates gamma and beta, float32 [C]."""
        # Kept in float32 under mixed precision: the statistics and their gradients are float32.
        shape, options = [input_shape[-1]], {"dtype": "float32", "experimental_autocast": False}
        self.gamma = self.add_weight("gamma", shape, initializer="ones", **options)
        self.beta = self.add_weight("beta", shape, initializer="zeros", **options)
        if self.num_groups is None:
            self.num_groups = input_shape[-1]
        super().build(input_shape)

    def call(self, inputs, training=False, content=None):
        """Returns inputs [B, H, W, C] normalized within groups of channels and the content."""
        del training  # The statistics are those of the input in both modes.
        return self.part(content)(inputs)

    def part(self, content=None, relu=False):
        """Returns the normalization of inputs of a content as a part of a chain."""
        # RoIs are whole or not there at all, and do not see each other.
        mask = content.mask if isinstance(content, Content) else None
        norm = Norm(self.gamma, self.beta, self.num_groups, self.epsilon, mask)
        return GroupNorm(self.operations, norm, relu)

    def get_config(self):
        """Returns the arguments that make the layer again."""
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
        """Creates gamma, beta and the moving averages, float32 [C]."""
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
        self._make_averages(functools.partial(self.add_weight, shape=shape, **options))
        super().build(input_shape)

    def _make_averages(self, add):
        """Makes the moving averages; `add` takes their names and initializers."""
        self.moving_mean = add("moving_mean", initializer="zeros")
        self.moving_variance = add("moving_variance", initializer="ones")

    def _averages(self, mean, variance):
        """Returns each moving average with the value of this batch that it follows."""
        return (self.moving_mean, mean), (self.moving_variance, variance)

    def _inverse_deviation(self):
        """Returns 1 / deviation by the moving averages."""
        return tf.math.rsqrt(self.moving_variance + self.epsilon)

    # Of `ops.batch_norm`.
    _correct = None

    def call(self, inputs, training=False, content=None):
        """Returns inputs [B, ..., C] normalized by the batch's statistics or the moving averages.

        Args:
            inputs: floating [B, ..., C].
            training: bool; the statistics are then those of all replicas' contents, which the
                moving averages follow.
            content: `ops.content.Content` or `Rows`, what counts; None for all.
        """
        if not training:
            return _scale_and_shift(self, self._inverse_deviation(), inputs, content)
        outputs, mean, variance, count = batch_norm_ops.batch_norm(
            inputs,
            self.gamma,
            self.beta,
            self.epsilon,
            _sum_over_replicas,
            None if content is None else content.mask(inputs),
            self._correct,
        )
        if not _moves_averages.get():
            return outputs
        # A step may have no RoI at all for a head.
        rate = (1.0 - self.momentum) * tf.cast(count > 0.0, tf.float32)
        for moving, value in self._averages(mean, variance):
            moving.assign_sub(rate * (moving - value))
        return outputs

    def get_config(self):
        """Returns the arguments that make the layer again."""
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon}


class BatchRenormalization(SyncBatchNormalization):
    """Batch normalization, corrected towards its moving averages within bounds that widen.

    The statistics of a batch are those of all replicas, as in `SyncBatchNormalization`. The bounds
    go by the batches that the layer has trained on.

    Source: Ioffe 2017, arXiv:1702.03275, algorithm 1, which keeps a moving average of the
    deviation and not of the variance.
    """

    def __init__(self, momentum=RENORM_MOMENTUM, epsilon=EPSILON, **kwargs):
        """Makes the layer; arguments as of `SyncBatchNormalization`."""
        super().__init__(momentum, epsilon, **kwargs)

    def _make_averages(self, add):
        self.moving_mean = add("moving_mean", initializer="zeros")
        self.moving_deviation = add("moving_deviation", initializer="ones")
        self.num_updates = self.add_weight(
            "num_updates",
            [],
            tf.int64,
            "zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def _averages(self, mean, variance):
        return (self.moving_mean, mean), (self.moving_deviation, self._deviation(variance))

    def _deviation(self, variance):
        return tf.sqrt(variance + self.epsilon)

    def _inverse_deviation(self):
        return 1.0 / self.moving_deviation

    def _correct(self, mean, variance):
        """Returns r and d; see `ops.batch_norm`."""
        max_r, max_d = renorm_bounds(self.num_updates)
        r = self._deviation(variance) / self.moving_deviation
        d = (mean - self.moving_mean) / self.moving_deviation
        return tf.clip_by_value(r, 1.0 / max_r, max_r), tf.clip_by_value(d, -max_d, max_d)

    def call(self, inputs, training=False, content=None):
        """As of `SyncBatchNormalization`, with the correction; counts the steps of training."""
        outputs = super().call(inputs, training, content)
        if training and _moves_averages.get():
            self.num_updates.assign_add(1)
        return outputs


def renorm_bounds(step):
    """Returns the bounds of batch renormalization after some steps.

    Args:
        step: int64 scalar, training steps done.

    Returns:
        r_max and d_max, float32 scalars: r is within [1 / r_max, r_max], d within [-d_max, d_max].
    """
    done = tf.cast(step, tf.float32) - RENORM_START

    def ramp(low, high, end):
        return low + (high - low) * tf.clip_by_value(done / (end - RENORM_START), 0.0, 1.0)

    return ramp(1.0, RENORM_R, RENORM_R_END), ramp(0.0, RENORM_D, RENORM_D_END)


def _scale_and_shift(layer, inverse_deviation, inputs, content):
    """Normalizes by a layer's constant statistics."""
    scale = layer.gamma * inverse_deviation
    shift = layer.beta - layer.moving_mean * scale
    outputs = inputs * tf.cast(scale, inputs.dtype) + tf.cast(shift, inputs.dtype)
    return outputs if content is None else content.keep(outputs)


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
        """Creates gamma, beta and the statistics, float32 [C], none of which trains."""
        # Float32 under mixed precision, as all parameters of normalization.
        options = {"trainable": False, "dtype": "float32", "experimental_autocast": False}

        def constant(name, initializer):
            return self.add_weight(name, [input_shape[-1]], initializer=initializer, **options)

        self.gamma, self.beta = constant("gamma", "ones"), constant("beta", "zeros")
        self.moving_mean = constant("moving_mean", "zeros")
        self.moving_variance = constant("moving_variance", "ones")
        super().build(input_shape)

    def call(self, inputs, training=False, content=None):
        """Returns inputs [B, ..., C], scaled and shifted by constants."""
        del training  # Frozen.
        inverse_deviation = 1.0 / (self.moving_variance + self.epsilon) ** 0.5
        return _scale_and_shift(self, inverse_deviation, inputs, content)

    def get_config(self):
        """Returns the arguments that make the layer again."""
        return super().get_config() | {"epsilon": self.epsilon}


def make_normalization(kind, name):
    """Returns a new layer of a kind of normalization, or None for `none`.

    Args:
        kind: one of NORMALIZERS.
        name: str, the layer's name.

    Raises:
        ValueError: if the kind is unknown.
    """
    makers = {
        "gn": GroupNormalization,
        "layer_norm": functools.partial(GroupNormalization, 1),
        "instance_norm": functools.partial(GroupNormalization, None),
        "syncbn": SyncBatchNormalization,
        "batch_renorm": BatchRenormalization,
        "frozen_bn": FrozenBatchNormalization,
        "none": lambda name: None,
    }
    if kind not in makers:
        raise ValueError(f"Unknown normalizer {kind!r}; choose one of {', '.join(NORMALIZERS)}.")
    return makers[kind](name=name)
