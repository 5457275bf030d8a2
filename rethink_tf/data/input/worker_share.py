"""Which images of a global batch one input pipeline reads, and how many a replica gets."""

import numpy as np
import tensorflow as tf


class Share:
    """The part of a global batch that one input pipeline reads, and one replica of it gets.

    Of several micro-batches, each is shared as a global batch is.

    Attributes:
        replica_batch_size: images that a replica gets at a time.
        size: images that this pipeline reads a step.
        micro_batches: of a step.
    """

    def __init__(
        self,
        global_batch_size: int,
        context: tf.distribute.InputContext | None,
        micro_batches: int = 1,
    ):
        """Checks that the shares are equal.

        Args:
            global_batch_size: images of a step, over all replicas and micro-batches.
            context: which worker this is; None for one worker with one replica.
            micro_batches: of a step.

        Raises:
            ValueError: if replicas or micro-batches would get unequal shares, or nothing.
        """
        context = context or tf.distribute.InputContext()
        replicas, pipelines = context.num_replicas_in_sync, context.num_input_pipelines
        parts = micro_batches * replicas
        if min(global_batch_size, parts) < 1 or global_batch_size % parts or replicas % pipelines:
            raise ValueError(
                f"a global batch of {global_batch_size} images cannot be shared equally by "
                f"{replicas} replicas fed by {pipelines} input pipelines in {micro_batches} "
                f"micro-batches; take a multiple of {parts}"
            )
        self.replica_batch_size = global_batch_size // parts
        self.size = global_batch_size // pipelines
        self.micro_batches = micro_batches
        self._shape = (micro_batches, pipelines, self.size // micro_batches)
        self._pipeline = context.input_pipeline_id

    def of(self, rows: np.ndarray) -> np.ndarray:
        """This pipeline's part [size, ...] of a step's images, one micro-batch after the other."""
        shared = rows.reshape(*self._shape, *rows.shape[1:])[:, self._pipeline]
        return shared.reshape(self.size, *rows.shape[1:])
