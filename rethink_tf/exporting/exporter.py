"""Exports a trained detector: builds the program, converts it, compares it and writes its folder."""

import contextlib
import json
import os

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf import console
from rethink_tf.exporting import (
    comparing,
    conversion,
    folder,
    programs,
    saved_model,
    sizes,
    texts,
)
from rethink_tf.ops import nms

AUTO = "auto"


def export(trained, output, command, photographs, overwrite=False):
    """Exports a detector.

    Args:
        trained: what `loading.load` returned.
        output: str, the folder to write.
        command: dict: model_dir, checkpoint, format, part, size, opset and whole_masks, as given.
        photographs: list of bytes of JPEG or PNG, to compare on; may be empty.
        overwrite: bool, as of `folder.check`.

    Returns:
        `Comparison`, or None without photographs.

    Raises:
        ValueError: if the folder must not be replaced, or nothing of the detector converts.
        ModuleNotFoundError: if a library is missing.
    """
    folder.check(output, command, overwrite)
    output_format = command["format"]
    is_served = output_format == "saved_model"
    shape = None if is_served else input_shape(trained, command["size"])
    rule = size_rule(trained.pipeline, shape)
    evaluation = comparing.Evaluation(trained.model, trained.categories, rule)
    pairs = [(encoded, evaluation.prepare(encoded)) for encoded in photographs]
    # Before the program is made: one of a fixed size changes how the detector computes.
    expected = [evaluation.measure(batch) for _, batch in pairs]
    with folder.replacing(output) as staging:
        if is_served:
            write = _write_served
        else:
            write = _write_fixed
        run, further = write(trained, command, rule, shape, staging)
        comparison = comparing.compare(run, expected, pairs) if pairs else None
        record = _describe(trained, command, rule, shape, comparison) | further
        folder.describe(staging, record, texts.readme(record, os.path.basename(output)))
    logging.info(
        "Wrote %s. %s",
        output,
        comparison.summary() if comparison else "There was no photograph to compare it on.",
        extra=console.KEPT,
    )
    return comparison


def size_rule(pipeline, shape=None):
    """Returns the `SizeRule` of an evaluation; with a shape, of one whose images fit into it."""
    buckets = tuple(map(tuple, pipeline.buckets or ())) or None
    is_too_small = shape and any(side > most for b in buckets or () for side, most in zip(b, shape))
    if shape and (not buckets or is_too_small):
        buckets = (tuple(shape),)
    return sizes.SizeRule(pipeline.evaluation_min_side, pipeline.max_side, buckets)


def input_shape(trained, size=None):
    """Returns the (H, W) of a fixed input.

    Args:
        trained: as of `export`.
        size: (H, W) that are asked for, or None for what holds every image that is resized as the
            evaluation does.

    Raises:
        ValueError: if the network does not take it.
    """
    multiple = trained.model.coarsest_stride
    if size:
        if min(size) < 1 or any(side % multiple for side in size):
            near = "x".join(str(max(-(-side // multiple), 1) * multiple) for side in size)
            raise ValueError(
                f"--size={'x'.join(map(str, size))}: both sides must be multiples of {multiple}, "
                f"the network's coarsest stride, such as {near}."
            )
        return tuple(size)
    if trained.pipeline.buckets:
        return tuple(int(side) for side in np.max(trained.pipeline.buckets, axis=0))
    return (-(-trained.pipeline.max_side // multiple) * multiple,) * 2


def _write_served(trained, command, rule, shape, staging):
    """Writes a SavedModel; returns what runs it, and what the record says of it."""
    del shape
    has_masks = any(head.field == "masks" for head in trained.model.heads)
    if command["whole_masks"] and not has_masks:
        raise ValueError("--whole_masks: the detector has no masks.")
    program = programs.ServedProgram(
        trained.model, trained.categories, rule, command["whole_masks"]
    )
    assets = {
        "categories.json": json.dumps(trained.categories, indent=1) + "\n",
        "config.gin": trained.config,
    }
    saved_model.write(program, assets, staging)
    load = saved_model.Runner(staging)

    def run(encoded, batch):
        del batch
        found, seconds = comparing.timed(load, encoded)
        found.pop("whole_masks", None)
        return found, seconds

    fields = {head.field: head.described_shape for head in trained.model.heads}
    if command["whole_masks"]:
        fields["whole_masks"] = ()
    return run, {"part": programs.DETECTIONS, "not_converted": [], "fields": fields}


def _write_fixed(trained, command, rule, shape, staging):
    """Writes a file of TensorFlow Lite or ONNX; as `_write_served`."""
    del rule
    if command["format"] == "tflite":
        from rethink_tf.exporting import tflite as converter

        options = {}
    else:
        from rethink_tf.exporting import onnx_file as converter

        options = {"opset": command["opset"]}
    part, lacking = command["part"], []
    program = programs.FixedProgram(
        trained.model, shape, programs.DETECTIONS if part == AUTO else part
    )
    try:
        converter.write(program, staging, **options)
    except conversion.NotConvertibleError as error:
        if part != AUTO:
            raise
        lacking = error.operations
        logging.warning("The detections do not convert, so the boxes before are taken: %s", error)
        program = programs.FixedProgram(trained.model, shape, programs.RAW)
        converter.write(program, staging, **options)
    ids = np.array([each["id"] for each in trained.categories])
    load, box_head = converter.Runner(staging), trained.model.box_head

    def run(encoded, batch):
        del encoded
        size = batch["image_size"][0].numpy()
        inputs = programs.input_arrays(batch["image"][0].numpy(), size, shape)
        found, seconds = comparing.timed(load, inputs)
        if program.part == programs.RAW:
            found = _suppress(found, box_head)
        return comparing.place(found, batch, ids), seconds

    fields = {}
    if program.part == programs.DETECTIONS:
        fields = {head.field: head.described_shape for head in trained.model.heads}
    return run, {"part": program.part, "not_converted": lacking, "fields": fields}


def _suppress(found, box_head):
    """Returns the detections of what the part RAW gives."""
    scores = np.where(found["scores"] > 0, found["scores"], np.float32(nms.NO_SCORE))
    candidates = {key: tf.constant(value) for key, value in (found | {"scores": scores}).items()}
    return {key: value.numpy() for key, value in box_head.suppress(candidates).items()}
