"""Opens the data of an experiment as a run of it would, without building what trains."""

import dataclasses
from typing import Any

from rethink_tf import building, config
from rethink_tf.data.input import reading
from rethink_tf.data.records import splits, store
from rethink_tf.own_data import deriving
from rethink_tf.report import pictures
from rethink_tf.settings import Settings


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """What an experiment feeds.

    Attributes:
        settings: `Settings`.
        pipeline: `Pipeline`.
        train: `Split` to train on.
        evaluation: `Split` to evaluate.
        train_index: `store.RecordIndex` of the images that are trained on.
        evaluation_index: that of those evaluated.
        model: the detector, without variables.
        is_compiled: bool, whether XLA or a TPU takes the batches.
    """

    settings: Settings
    pipeline: Any
    train: splits.Split
    evaluation: splits.Split
    train_index: store.RecordIndex
    evaluation_index: store.RecordIndex
    model: Any
    is_compiled: bool

    @property
    def train_names(self):
        """{category id: name} as pictures can show it."""
        return pictures.drawable_names({each["id"]: each["name"] for each in self.train.categories})

    def batches(self, counters):
        """The batches of the run from its first step on, of all replicas together."""
        settings = self.settings
        batches = self.pipeline.training(
            self.train.index,
            self.train.category_ids,
            settings.batch_size,
            settings.seed,
            counters=counters,
            keypoints=self.train.keypoints,
            accumulate_steps=settings.accumulate_steps,
            multiple=self.model.coarsest_stride,
            is_compiled=self.is_compiled,
        )
        return reading.naming_errors(batches, counters)


def open_experiment(gin_files, gin_params):
    """Parses an experiment and opens its data; what it draws or converts is made first.

    Args:
        gin_files: as of `config.parse`.
        gin_params: the same.

    Returns:
        `Opened`.

    Raises:
        ValueError: if the experiment or its data cannot be used; the message says what to do.
        OSError: if a folder is missing.
    """
    config.parse(gin_files, gin_params)
    deriving.bind_settings()
    settings = Settings()
    pipeline = settings.pipeline()
    train, evaluation = building.open_data(
        dataclasses.replace(settings, mode="train_and_evaluate"), pipeline
    )
    model = settings.detector(
        num_classes=len(train.category_ids),
        num_keypoints=len(train.keypoints.names) if train.keypoints else 0,
    )
    building.check_heads(pipeline, model, [train, evaluation])
    return Opened(
        settings=settings,
        pipeline=pipeline,
        train=train,
        evaluation=evaluation,
        train_index=pipeline.training_index(train.index),
        evaluation_index=evaluation.index,
        model=model,
        # As of `execution.make_plan`, without the devices of the run.
        is_compiled=settings.jit_compile or config.value_of("make_strategy.name") == "tpu",
    )
