"""How the images of the first batches fill the shapes that they come in; no image is read."""

import dataclasses
import itertools
from collections import Counter

import numpy as np

from rethink_tf.data.input import batch_shapes, order

MAX_BATCHES = 512


@dataclasses.dataclass(frozen=True)
class Fill:
    """How full batches are.

    Attributes:
        what: which shapes these are.
        num_batches: int, how many were looked at.
        content: float, share of the batches' pixels that are of images.
        shapes: [((height, width), batches)], the commonest first.
        pixels_per_image: float, mean, with padding.
    """

    what: str
    num_batches: int
    content: float
    shapes: list
    pixels_per_image: float


def measure(pipeline, index, batch_size, seed, multiple, is_compiled, accumulate_steps=1):
    """Measures the shapes of the first batches of a run, and other shapes beside them.

    Args:
        pipeline: `Pipeline`.
        index: `store.RecordIndex` of the images that are trained on.
        batch_size: int, images of a global batch.
        seed: int, of the run.
        multiple: int, the network's coarsest stride, pixels.
        is_compiled: bool, whether the run's batches are for a compiler.
        accumulate_steps: int, micro-batches of a step, each of a shape of its own.

    Returns:
        list of `Fill`, that of the run first.
    """
    drawn, own = pipeline.training_slots(index, seed, multiple, is_compiled)
    buckets = None if pipeline.jitter else pipeline.buckets
    tight, few = "as tight as each batch allows", f"at most {pipeline.max_shapes}, for a compiler"
    named = "Pipeline.buckets" if buckets else few if is_compiled else tight
    variants = {f"{named} (this run)": own}
    if own.fixed is not None:
        variants[tight] = batch_shapes.make_shapes(None, multiple, None, drawn.expected_sizes)
    if buckets or not is_compiled:
        variants[few] = batch_shapes.make_shapes(
            None, multiple, pipeline.max_shapes, drawn.expected_sizes
        )
    num_batches = min(max(len(index) // batch_size, 1), MAX_BATCHES)
    return [
        _fill(what, shapes, drawn, len(index), batch_size, seed, num_batches, accumulate_steps)
        for what, shapes in variants.items()
    ]


def _fill(what, shapes, drawn, num_records, batch_size, seed, num_batches, micro_batches):
    plan = order.TrainingPlan(num_records, batch_size, seed, drawn.sizes, shapes)
    counts, content, total = Counter(), 0, 0
    for _, rows, passes in itertools.islice(plan.batches(), num_batches):
        sizes = shapes.limit(drawn.sizes(rows, passes))
        for part in np.split(sizes, micro_batches):
            shape = shapes.cover(part)
            counts[shape] += 1
            content += int(part.prod(-1).sum())
            total += len(part) * shape[0] * shape[1]
    images = num_batches * batch_size
    return Fill(what, counts.total(), content / total, counts.most_common(), total / images)
