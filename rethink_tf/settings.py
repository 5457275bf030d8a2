"""The settings of an experiment, which gin files bind as `run.…`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gin

from rethink_tf.config_values import Count
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.evaluation.coco_metrics import CocoMetrics
from rethink_tf.losses import DetectionLosses
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.training.distribution import make_strategy
from rethink_tf.training.optimizer import MomentumSGD

_CHOICES = {
    "mode": ("train", "evaluate", "train_and_evaluate"),
    "on_change": ("stop", "rescale"),
    "on_non_finite": ("stop", "skip"),
}


@gin.configurable("run", module="experiment")
@dataclasses.dataclass(frozen=True)
class Settings:
    """What an experiment is made of, and how it runs.

    Attributes:
        model_dir: str, folder of checkpoints, summaries, results and pictures.
        data_dir: str, folder of the record directories.
        batch_size: int, images a step over all replicas.
        seed: int >= 0: weights, order of the data, flips and sampling.
        schedule: Keras learning rate schedule with `num_steps`.
        mode: "train", "evaluate" (the newest checkpoint) or "train_and_evaluate".
        settings: callable without arguments, returns bindings that follow from the data, which
            `own_data.deriving` binds before the settings are made; or None.
        prepare_data: callable taking `output`, makes the data where it is not there yet; or None.
        train_split: str, folder under data_dir.
        evaluation_split: str, the same.
        strategy: callable without arguments, returns a `tf.distribute.Strategy`.
        pipeline: callable without arguments, returns a `input.pipeline.Pipeline`.
        detector: callable taking num_classes, num_keypoints and plan (an `ExecutionPlan`), returns
            the detector.
        losses: callable without arguments, returns `DetectionLosses`.
        optimizer: callable taking learning_rate, returns a Keras optimizer.
        weight_decay: float, of kernels.
        clip_norm: float, largest norm of the whole gradient, or None; see `TrainStep`.
        accumulate_steps: int, micro-batches that the images of a step come in; see `TrainStep`.
        weight_average: callable taking the detector, makes the `WeightAverage` to evaluate in place
            of the weights, or None.
        cascade_steps: int, how many of the schedule's last steps train the later stages of a
            cascade, by the schedule's rule (`PaperSchedule` counts them for 16 images); None for
            all steps.
        metrics: callable taking ground_truth and fields (what detections have beside boxes),
            returns what measures detections: `CocoMetrics` or `VocMetrics`.
        test_augmentation: callable without arguments, returns a `TestTimeAugmentation`, or None.
            "train_and_evaluate" uses it once, after the last of the plain evaluations, which alone
            choose the best checkpoint; "evaluate" uses it alone.
        init_checkpoint: str or None, weights to start from where the folder has no checkpoint.
        continue_from: str or None, the folder of a run with a shorter or longer schedule, whose
            newest checkpoint from before the first drop of both a new run goes on from.
        branch_steps: steps whose checkpoints are kept for ever, in `branches/`, beside that of the
            first drop: where runs of shorter schedules go on from (the study's).
        on_change: "stop", or "rescale" to go on with another batch_size by the linear rule.
        on_non_finite: "stop", or "skip" to go back to the newest checkpoint after a loss that is
            not finite, and leave out the images of the steps since.
        max_skips: int, how often a run may do so.
        evaluation_batch_size: int, images over all replicas; None for batch_size.
        log_every: int, steps from one log line (and summary) to the next.
        checkpoint_every: int, steps.
        evaluate_every: int, steps; None evaluates at the end only.
        evaluate_in_background: bool, whether another process evaluates each checkpoint while this
            one trains; evaluate_every has no effect then.
        background_gpus: str, the GPUs of that process, as of CUDA_VISIBLE_DEVICES; "" for the CPU.
        follow_timeout: float, seconds without a new checkpoint after which --follow ends.
        keep_newest: int, checkpoints kept.
        keep_best: int, checkpoints kept of the highest headline of the metrics: COCO's AP (of
            keypoints, else of masks, else of boxes), VOC's mAP.
        precision: "float32", "mixed_bfloat16" or, with a dynamic scale of the loss,
            "mixed_float16": of the layers' arithmetic.
        jit_compile: bool, whether XLA compiles the step; shapes are then static.
        deterministic: bool, whether equal runs give equal numbers to the last bit; None for yes
            on a CPU without jit_compile, where it costs nothing, and no elsewhere.

    Raises:
        ValueError: if a text is none of those that there are.
    """

    model_dir: str
    data_dir: str
    batch_size: Count
    seed: int
    schedule: Any
    mode: str = "train_and_evaluate"
    settings: Callable | None = None
    prepare_data: Callable | None = None
    train_split: str = "train"
    evaluation_split: str = "val"
    strategy: Callable = make_strategy
    pipeline: Callable = Pipeline
    detector: Callable = MaskRCNN
    losses: Callable = DetectionLosses
    optimizer: Callable = MomentumSGD
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    accumulate_steps: int = 1
    weight_average: Callable | None = None
    cascade_steps: int | None = None
    metrics: Callable = CocoMetrics
    test_augmentation: Callable | None = None
    init_checkpoint: str | None = None
    continue_from: str | None = None
    branch_steps: Sequence[int] = ()
    on_change: str = "stop"
    on_non_finite: str = "stop"
    max_skips: int = 3
    evaluation_batch_size: int | None = None
    log_every: Count = 20
    checkpoint_every: Count = 1000
    evaluate_every: Count | None = None
    evaluate_in_background: bool = False
    background_gpus: str = ""
    follow_timeout: float = 3600.0
    keep_newest: Count = 3
    keep_best: Count = 1
    precision: str = "float32"
    jit_compile: bool = False
    deterministic: Any = None

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
