"""The dynamic scale of the loss in float16, whose smallest numbers lie above many gradients."""

import tensorflow as tf

_OF_EACH_REPLICA = {
    "trainable": False,
    # Each replica keeps its own; all are equal, for they follow the summed gradient.
    "synchronization": tf.VariableSynchronization.ON_READ,
    "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}


class LossScale(tf.Module):
    """Multiplies the loss, so that gradients are not rounded to 0, and watches for overflow.

    An update whose gradient is not finite is left out: the scale is halved. After `growth_steps`
    finite ones it is doubled. At a scale of 1 there is nothing left to halve: such a gradient is
    the run's own, and is used, so that the check of the losses finds it.

    Attributes:
        scale: float32 variable.
        applies: float32 variable, 1 where the update is made, 0 where it is left out.
        num_skipped: int32 variable, updates left out since the start of the run.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; the constants are those of
    Keras' LossScaleOptimizer, which does not count a step that it leaves out: the schedule, the
    draws and the data of this project go by the step.
    """

    def __init__(self, initial=2.0**15, growth_steps=2000):
        """Creates the variables, under the strategy's scope.

        Args:
            initial: float, a power of 2.
            growth_steps: int, finite updates after which the scale is doubled.
        """
        super().__init__(name="loss_scale")
        self.scale = tf.Variable(float(initial), name="scale", **_OF_EACH_REPLICA)
        self.applies = tf.Variable(1.0, name="applies", **_OF_EACH_REPLICA)
        self.num_skipped = tf.Variable(0, name="num_skipped", **_OF_EACH_REPLICA)
        self._num_finite = tf.Variable(0, name="num_finite", **_OF_EACH_REPLICA)
        self._growth_steps = growth_steps

    def unscale(self, gradients):
        """Returns the gradients of the loss itself, list of float32, from those of the scaled."""
        factor = 1.0 / self.scale
        return [gradient * factor for gradient in gradients]

    def follow(self, norm):
        """Decides about an update, and changes the scale for the next step.

        Args:
            norm: float32 scalar, the norm of the summed gradient; the same on every replica.

        Returns:
            bool scalar, whether the update is to be made.
        """
        scale, is_finite = tf.convert_to_tensor(self.scale), tf.math.is_finite(norm)
        applies = is_finite | (scale <= 1.0)
        num_finite = tf.where(is_finite, self._num_finite + 1, 0)
        grows = num_finite >= self._growth_steps
        changed = tf.where(grows, 2.0 * scale, scale)
        self.scale.assign(tf.where(applies, changed, 0.5 * scale))
        self._num_finite.assign(tf.where(grows, 0, num_finite))
        self.num_skipped.assign_add(tf.cast(~applies, tf.int32))
        self.applies.assign(tf.cast(applies, tf.float32))
        return applies
