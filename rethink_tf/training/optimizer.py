"""SGD with momentum as PyTorch defines it, and which parameters decay.

Keras' SGD keeps rate * gradient in its velocity; here the velocity keeps gradients and the rate is
applied to it, so that a drop of the rate takes effect at once on all of the velocity. Detectron
keeps rate * gradient too, and rescales it at each drop (SOLVER.SCALE_MOMENTUM), which is the same
but for the small steps of its warm-up.
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.training.loss_scale import LossScale


def decays(variable):
    """Tells whether weight decay applies: to kernels, not to biases or normalization parameters."""
    return _last_name(variable) == "kernel"


def is_bias(variable):
    """Tells whether a variable is the bias of a convolution or a fully connected layer."""
    return _last_name(variable) == "bias"


def _last_name(variable):
    return variable.name.split("/")[-1].split(":")[0]


def scale_loss(optimizer, precision):
    """Gives an optimizer the dynamic `LossScale` that float16 needs; under the strategy's scope.

    Args:
        optimizer: Keras optimizer.
        precision: str, name of the Keras policy.

    Raises:
        ValueError: if the optimizer cannot leave out an update.
    """
    if precision != "mixed_float16":
        return
    if not hasattr(optimizer, "loss_scale"):
        raise ValueError(
            f"{type(optimizer).__name__} cannot leave out an update whose gradient overflows, as "
            "mixed_float16 needs: take MomentumSGD or mixed_bfloat16."
        )
    optimizer.loss_scale = LossScale()


@gin.register
class MomentumSGD(tf_keras.optimizers.Optimizer):
    """velocity = momentum * velocity + gradient; weight -= rate * velocity.

    Attributes:
        loss_scale: `LossScale` that decides whether an update is made, or None for always.
    """

    def __init__(self, learning_rate, momentum=0.9, bias_rate=2.0, name="MomentumSGD", **kwargs):
        """Makes the optimizer.

        Args:
            learning_rate: float or Keras learning rate schedule.
            momentum: float in [0, 1).
            bias_rate: float > 0, the biases' rate over that of the weights: 2 in Detectron, 1 in
                Detectron2.
            name: str.
            **kwargs: of the Keras optimizer.

        Raises:
            ValueError: if the momentum or the bias rate is out of range.
        """
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"MomentumSGD: momentum must be in [0, 1), got {momentum}.")
        if bias_rate <= 0.0:
            raise ValueError(f"MomentumSGD: bias_rate must be positive, got {bias_rate}.")
        # None and not 0: with 0, Keras would multiply every variable by it and subtract that.
        super().__init__(name=name, jit_compile=False, weight_decay=None, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum, self.bias_rate, self.loss_scale = momentum, bias_rate, None

    def build(self, var_list):
        """Creates a velocity for each variable.

        Args:
            var_list: the trainable variables, in the order that gradients come in.
        """
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        # Kept by index: on later replicas a variable's name ends in the replica's number.
        self._rate_factors = [self.bias_rate if is_bias(each) else 1.0 for each in var_list]
        self.velocities = [self.add_variable_from_reference(each, "velocity") for each in var_list]
        self._built = True

    def update_step(self, gradient, variable):
        """Moves a variable by its velocity, both of the gradient's shape."""
        index = self._index_dict[self._var_key(variable)]
        rate = tf.cast(self.learning_rate, variable.dtype) * self._rate_factors[index]
        gradient, momentum = tf.convert_to_tensor(gradient), self.momentum
        if self.loss_scale:
            # So an update that is left out changes no bit of weight and velocity.
            applies = tf.convert_to_tensor(self.loss_scale.applies)
            gradient = tf.where(applies > 0, gradient, 0.0)
            rate, momentum = rate * applies, 1.0 + applies * (momentum - 1.0)
        # One kernel, in place: momentum * velocity as an op of its own needs nothing of the step,
        # so TensorFlow would compute it first and hold a second copy of the model all the while.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=self.velocities[index].handle,
            lr=rate,
            grad=gradient,
            momentum=momentum,
        )

    def get_config(self):
        """Returns the arguments that make the optimizer again."""
        return super().get_config() | {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum,
            "bias_rate": self.bias_rate,
        }
