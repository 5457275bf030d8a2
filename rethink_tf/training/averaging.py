"""An exponential moving average of the weights, to evaluate a run by.

Ours, because the two at hand do not fit. Model Garden's `ExponentialMovingAverage` wraps optimizers
of Keras' legacy class, of which `MomentumSGD` is none, starts from zeros, and exchanges weights and
averages by adding and subtracting, which rounds the weights that the training goes on with. Keras'
own `use_ema` leaves the moving statistics of normalization out, starts from the weights as they are
before a checkpoint is read, and only overwrites the weights for good.
"""

import contextlib

import gin
import tensorflow as tf
from absl import logging


def averaged_variables(model):
    """Returns the variables of a model that have an average, in the order that it is saved in.

    Those are the weights and the moving statistics of batch normalization, which belong to the
    weights that they were taken with; counters are not averaged.
    """
    # In the order of `model.variables` as if nothing was frozen, which it puts behind what trains:
    # another run may read the averages and freeze other layers.
    parts = [list(part._flatten_layers()) for part in model.layers] + [[model]]
    found = []
    for layers in parts:
        found += [each for layer in layers for each in layer._trainable_weights]
        found += [each for layer in layers for each in layer._non_trainable_weights]
    return [each for each in found if each.dtype.is_floating]


@gin.register
class WeightAverage:
    """average = decay * average + (1 - decay) * weight after each step.

    Attributes:
        variables: the averages, in the order of `averaged_variables`.
    """

    def __init__(self, model, decay=0.9998, warmup=True):
        """Makes the averages, under the strategy's scope; `start` gives them their first values.

        What a run trains late, such as the later stages of a cascade, is averaged from the start
        of the run: its random weights fade with the decay.

        Args:
            model: Keras model whose variables exist.
            decay: float in (0, 1), a step. EfficientDet's is the default.
            warmup: bool; True has a decay of (1 + step) / (10 + step) as long as that is lower, so
                that the first weights are forgotten soon.

        Raises:
            ValueError: if the decay is out of range.

        Source: Tan et al. 2020, arXiv:1911.09070, for the decay; the warm-up is that of
        `tf.train.ExponentialMovingAverage` and of Model Garden's.
        """
        if not 0.0 < decay < 1.0:
            raise ValueError(f"WeightAverage: decay must be in (0, 1), got {decay}.")
        self._decay, self._warmup = decay, warmup
        self._strategy, self._weights = tf.distribute.get_strategy(), averaged_variables(model)
        # Each replica keeps its own average; all are equal, as the weights are.
        self.variables = [
            tf.Variable(
                tf.zeros(each.shape, each.dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                name=each.name.split(":")[0] + "/average",
            )
            for each in self._weights
        ]

    def start(self):
        """Sets the averages to the weights as they are now."""
        for average, weight in self._local_pairs():
            average.assign(weight.read_value())

    def update(self, step):
        """Moves the averages towards the weights; called by every replica after each step.

        Args:
            step: integer scalar tensor, the number of steps done, this one included.
        """
        rate = tf.constant(1.0 - self._decay)
        if self._warmup:
            rate = tf.maximum(rate, 9.0 / (10.0 + tf.cast(step, tf.float32)))
        for average, weight in zip(self.variables, self._weights, strict=True):
            average.assign_sub(rate * (average - tf.convert_to_tensor(weight)))

    @contextlib.contextmanager
    def in_use(self):
        """Has the model hold the averages for a while; its weights come back bit for bit."""
        logging.info("Evaluating averaged weights (decay %g).", self._decay)
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for average, weight in self._local_pairs():
            held = weight.read_value()
            weight.assign(average.read_value())
            average.assign(held)

    def _local_pairs(self):
        """Yields average and weight on each device of this process."""
        local = self._strategy.experimental_local_results
        for average, weight in zip(self.variables, self._weights, strict=True):
            yield from zip(local(average), local(weight), strict=True)
