"""Exports a trained detector: makes the program, converts it, compares it, writes its folder."""

import importlib.metadata
import os

import numpy as np
from absl import logging

from rethink_tf import console
from rethink_tf.exporting import comparing, conversion, fixed, folder, served, sizes, texts
from rethink_tf.training import checkpoint_files


def export(trained, config, output, command, photographs, overwrite=False):
    """Exports a detector.

    Args:
        trained: `loading.LoadedDetector`.
        config: str, the run's settings as gin text.
        output: str, the folder to write.
        command: dict of what decides on the export: model_dir, checkpoint, format, part, size
            ([H, W] or None), opset and whole_masks.
        photographs: list of bytes of JPEG or PNG, to compare on; may be empty.
        overwrite: bool, as of `folder.check`.

    Returns:
        `Comparison`, or None without photographs.

    Raises:
        ValueError: if the folder must not be replaced, or nothing of the detector converts.
    """
    folder.check(output, command, overwrite)
    is_served = command["format"] == "saved_model"
    shape = None if is_served else input_shape(trained, command["size"])
    rule = size_rule(trained.pipeline, shape)
    evaluation = comparing.Evaluation(trained.detector, trained.categories, rule)
    batches = [evaluation.prepare(encoded) for encoded in photographs]
    # Before the program is made: one of a fixed size changes how the detector computes.
    expected = [evaluation.measure(batch) for batch in batches]
    with folder.replacing(output) as staging:
        if is_served:
            written = served.write(trained, config, command, rule, staging)
        else:
            written = fixed.write(trained, command, shape, staging, evaluation)
        images = list(zip(photographs, batches, strict=True))
        comparison = comparing.compare(written.run, expected, images) if images else None
        record = _describe(trained, command, rule, shape, written, comparison)
        folder.describe(staging, record, texts.readme(record, os.path.basename(output)))
    summary = comparison.summary() if comparison else "It was compared on no photograph."
    logging.info("Wrote %s.\n%s", output, summary, extra=console.KEPT)
    return comparison


def size_rule(pipeline, shape=None):
    """Returns the `SizeRule` of an evaluation; with a shape (H, W), of images that fit into it."""
    buckets = [tuple(map(int, each)) for each in pipeline.buckets or ()]
    if shape and not (buckets and (np.max(buckets, axis=0) <= shape).all()):
        buckets = [tuple(shape)]
    return sizes.SizeRule(pipeline.evaluation_min_side, pipeline.max_side, tuple(buckets))


def input_shape(trained, size=None):
    """Returns the (H, W) of a fixed input.

    Args:
        trained: as of `export`.
        size: (H, W) that are asked for, or None for what holds every image as it is evaluated.

    Raises:
        ValueError: if the network does not take it.
    """
    multiple, buckets = trained.detector.coarsest_stride, trained.pipeline.buckets
    if not size and buckets:
        size = np.max(buckets, axis=0).tolist()
    elif not size:
        size = [-(-trained.pipeline.max_side // multiple) * multiple] * 2
    if min(size) < 1 or any(side % multiple for side in size):
        near = "x".join(str(max(-(-side // multiple), 1) * multiple) for side in size)
        raise ValueError(
            f"--size={'x'.join(map(str, size))}: both sides must be multiples of {multiple}, the "
            f"network's coarsest stride, such as {near}."
        )
    return tuple(size)


def _describe(trained, command, rule, shape, written, comparison):
    """Returns what `export.json` says."""
    box_head = trained.detector.box_head.stages[-1]
    described = comparison and {
        "photographs": comparison.images,
        "detections": comparison.detections,
        "missing": comparison.missing,
        "further": comparison.further,
        "largest_difference": comparison.differences,
        "seconds": comparison.seconds,
        "evaluation_seconds": comparison.evaluation_seconds,
        "summary": comparison.summary(),
    }
    return {
        "version": 1,
        "command": command,
        "checkpoint": trained.checkpoint,
        "step": checkpoint_files.step_of(trained.checkpoint),
        "categories": trained.categories,
        "part": written.part,
        "not_converted": written.lacking,
        "fields": sorted(written.fields),
        "input": rule._asdict() | ({"height": shape[0], "width": shape[1]} if shape else {}),
        "suppression": {
            "score_threshold": box_head.score_threshold,
            "nms_threshold": box_head.nms_threshold,
            "max_detections": box_head.max_detections,
        },
        "comparison": described,
        "made_with": {
            name: importlib.metadata.version(name)
            for name in ("tensorflow", *conversion.libraries(command["format"]))
        },
    }
