"""How a step's gradients change the weights: sum over replicas, clipping, decay, optimizer."""

import tensorflow as tf

from rethink_tf.training import optimizer as optimizer_lib


class WeightUpdate:
    """Updates weights by the sum of all replicas' gradients, and then their average.

    Attributes:
        optimizer: Keras optimizer; its `iterations` is the step.
    """

    def __init__(self, optimizer, weight_decay=1e-4, clip_norm=None, average=None):
        """Takes the parts.

        Args:
            optimizer: Keras optimizer.
            weight_decay: float; the loss has weight_decay / 2 times the sum of squared kernels.
            clip_norm: float, largest global norm of the gradient, which is that of all replicas and
                micro-batches. The weight decay is added after clipping, as PyTorch's optimizers do.
                None for no clipping.
            average: `WeightAverage` that follows the weights, or None.

        Raises:
            ValueError: if clip_norm is not above 0.
        """
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(
                f"clip_norm is {clip_norm}: it must be above 0, or None for no clipping."
            )
        self.optimizer, self._weight_decay = optimizer, weight_decay
        self._clip_norm, self._average = clip_norm, average

    def __call__(self, gradients, variables, num_replicas):
        """Updates the variables; to be called by each replica in its context.

        Args:
            gradients: list of tensors, this replica's part, of the loss that `scaled` returned.
            variables: the weights, in the same order.
            num_replicas: int.

        Returns:
            dict of this replica's part of `weight_decay`, the decay loss before the update, and of
            the `gradient_norm`; with a loss scale also of the `loss_scale`, that of this step, and
            of the `skipped_updates` of the run so far.
        """
        decay_loss, step = self._decay_loss(variables), self.optimizer.iterations + 1
        if num_replicas > 1:
            replica = tf.distribute.get_replica_context()
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        # Of the summed gradient, so that clipping does not depend on the number of replicas.
        loss_scale = getattr(self.optimizer, "loss_scale", None)
        if loss_scale:
            gradients = loss_scale.unscale(gradients)
        norm, scaling = tf.linalg.global_norm(gradients), {}
        if loss_scale:
            scaling["loss_scale"] = tf.convert_to_tensor(loss_scale.scale)
            applies = loss_scale.follow(norm)
            scaling["skipped_updates"] = tf.cast(loss_scale.num_skipped, tf.float32)
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        gradients = [
            self._add_decay(gradient, variable, norm)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        # They are summed already: Keras would sum them over the replicas once more.
        self.optimizer.apply_gradients(
            zip(gradients, variables, strict=True), skip_gradients_aggregation=True
        )
        if self._average:
            self._average.update(step)
        if loss_scale:
            # That of an update which is left out says nothing, and is none of the run's faults.
            norm = tf.where(applies, norm, 0.0)
        # All are the same on every replica.
        values = {"weight_decay": decay_loss, "gradient_norm": norm} | scaling
        return {name: value / num_replicas for name, value in values.items()}

    def scaled(self, loss):
        """Returns the loss to differentiate, for gradients that a call takes."""
        loss_scale = getattr(self.optimizer, "loss_scale", None)
        return loss * loss_scale.scale if loss_scale else loss

    def _add_decay(self, gradient, variable, norm):
        """Adds the gradient of the decay loss, which is weight_decay times the kernel."""
        if not optimizer_lib.decays(variable):
            return gradient
        # Not in the tape: its products would be ready at the start of the step, and be held as a
        # second copy of the model until the gradients are there. The norm comes when all of them
        # are, and the activations are gone.
        with tf.control_dependencies([norm]):
            return gradient + self._weight_decay * tf.convert_to_tensor(variable)

    def _decay_loss(self, variables):
        squares = [tf.nn.l2_loss(each) for each in variables if optimizer_lib.decays(each)]
        return self._weight_decay * tf.add_n(squares)
