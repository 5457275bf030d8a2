"""The settings of pre-training, which gin files bind as `pretrain.…`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gin

from rethink_tf.config_values import Count
from rethink_tf.pretraining.classifier import Classifier
from rethink_tf.pretraining.images import ImageRecords
from rethink_tf.pretraining.inputs import ImageInput
from rethink_tf.training.distribution import make_strategy
from rethink_tf.training.optimizer import MomentumSGD


@gin.configurable("pretrain", module="pretraining")
@dataclasses.dataclass(frozen=True)
class Settings:
    """What a pre-training is made of, and how it runs.

    Attributes:
        model_dir: str, folder of checkpoints, summaries, metrics, and of the backbone at the end.
        data_dir: str, folder of the images.
        batch_size: int, images a step over all replicas.
        seed: int >= 0: weights, order of the images, crops and flips.
        schedule: Keras learning rate schedule with `num_steps`.
        prepare_data: callable taking `output`, makes the data where it is not there yet; or None.
        data: callable taking data_dir and split, returns `ImageRecords` or `ImageFolders`.
        input: callable without arguments, returns an `ImageInput`.
        classifier: callable taking num_classes and plan, returns a `Classifier`.
        strategy: callable without arguments, returns a `tf.distribute.Strategy`.
        optimizer: callable taking learning_rate, returns a Keras optimizer.
        weight_decay: float, of kernels; biases and normalization have none.
        label_smoothing: float in [0, 1); see `ClassificationStep`.
        clip_norm: float, largest norm of the whole gradient, or None.
        evaluation_batch_size: int, images over all replicas; None for batch_size.
        log_every: int, steps from one log line (and summary) to the next.
        checkpoint_every: int, steps.
        evaluate_every: int, steps; None evaluates at the end only.
        keep_newest: int, checkpoints kept.
        precision: "float32", "mixed_bfloat16" or, with a dynamic scale of the loss,
            "mixed_float16": of the layers' arithmetic.
        jit_compile: bool, whether XLA compiles the step.
        deterministic: bool or None, as of the detectors' runs.
    """

    model_dir: str
    data_dir: str
    batch_size: Count
    seed: int
    schedule: Any
    prepare_data: Callable | None = None
    data: Callable = ImageRecords
    input: Callable = ImageInput
    classifier: Callable = Classifier
    strategy: Callable = make_strategy
    optimizer: Callable = MomentumSGD
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    evaluation_batch_size: int | None = None
    log_every: Count = 20
    checkpoint_every: Count = 1000
    evaluate_every: Count | None = None
    keep_newest: Count = 3
    precision: str = "float32"
    jit_compile: bool = False
    deterministic: Any = None
