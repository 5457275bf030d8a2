"""Exports a program of one image of a fixed size, as a file of TensorFlow Lite or ONNX."""

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.exporting import comparing, conversion, programs
from rethink_tf.ops import nms

# Detections where they convert, else the boxes before the suppression.
AUTO = "auto"


def write(trained, command, shape, staging, evaluation):
    """Writes the file.

    Args:
        trained: as of `exporter.export`.
        command: dict: format, part and opset.
        shape: (H, W), pixels.
        staging: str, an empty folder.
        evaluation: `comparing.Evaluation`.

    Returns:
        `conversion.Written`.

    Raises:
        NotConvertibleError: if the part does not convert.
    """
    if command["format"] == "tflite":
        from rethink_tf.exporting import tflite as converter
    else:
        from rethink_tf.exporting import onnx_file as converter
    part = programs.DETECTIONS if command["part"] == AUTO else command["part"]
    lacking = []

    def convert():
        with programs.plain_operations(trained.detector):
            converter.write(programs.FixedProgram(trained.detector, shape, part), staging, command)

    try:
        convert()
    except conversion.NotConvertibleError as error:
        if command["part"] != AUTO:
            raise
        logging.warning(
            "The detections do not convert: %s. Written are the boxes before the suppression, "
            "without what the heads say of objects (--part=raw).",
            error,
        )
        lacking, part = error.operations, programs.RAW
        convert()
    load, box_head = converter.Runner(staging), trained.detector.box_head

    def run(encoded, batch):
        del encoded
        inputs = programs.input_arrays(batch["image"], batch["image_size"], shape)
        found, seconds = comparing.timed(load, inputs)
        if part == programs.RAW:
            found = _suppress(found, box_head)
        return evaluation.place(found, batch), seconds

    heads = trained.detector.heads if part == programs.DETECTIONS else []
    return conversion.Written(run, part, {head.field for head in heads}, lacking)


def _suppress(found, box_head):
    """Returns the detections of what the part RAW gives, NumPy arrays."""
    scores = np.where(found["scores"] > 0, found["scores"], np.float32(nms.NO_SCORE))
    candidates = {key: tf.constant(value) for key, value in (found | {"scores": scores}).items()}
    return {key: value.numpy() for key, value in box_head.suppress(candidates).items()}
