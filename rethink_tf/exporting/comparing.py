"""Compares an exported program with the evaluation, on encoded images, and times both.

Letters: N detections of an image.
"""

import dataclasses
import statistics
import time

import numpy as np
import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.data.input import decode
from rethink_tf.evaluation import inference, placing

# Of the same object. Two detections of one category that overlap so much are never both kept.
MIN_OVERLAP = 0.9


class Evaluation:
    """What the evaluation of a run computes, one image at a time."""

    def __init__(self, detector, categories, size_rule):
        """Sets it up; the detector computes as its plan says when this is called first.

        Args:
            detector: `MaskRCNN`.
            categories: as of `ServedProgram`.
            size_rule: `SizeRule`.
        """
        spec = schema.evaluation_spec(1)
        self._predictor = inference.Predictor(detector, tf.distribute.get_strategy(), spec)
        self._ids = [each["id"] for each in categories]
        self._fields = self._predictor.fields
        self._size_rule, self._multiple = size_rule, detector.coarsest_stride

    def prepare(self, encoded):
        """Returns an evaluation batch of one image, given the bytes of JPEG or PNG."""
        stored = decode.size_in_header(encoded)
        size = self._size_rule.resized(stored[tf.newaxis])[0]
        drawn = {"stored": stored, "size": size, "flip": tf.constant(False)}
        drawn["image_id"] = tf.constant(0, tf.int64)
        bucket = (size + self._multiple - 1) // self._multiple * self._multiple
        element = decode.decode_image(encoded, drawn, bucket)
        return {key: value[tf.newaxis] for key, value in element.items()}

    def measure(self, batch):
        """Returns what `place` does, for a batch of `prepare`, and the seconds."""
        self._predictor(batch)
        outputs, seconds = timed(self._predictor, batch)
        return self.place(outputs, batch), seconds

    def place(self, outputs, batch):
        """Returns the `Placer`'s detections in the stored image, given outputs for a batch."""
        stored, scale = batch[schema.ORIGINAL_SIZE][0], batch[schema.IMAGE_SCALE][0].numpy()
        fields = [field for field in self._fields if field in outputs]
        placer = placing.Placer(self._ids, fields)
        return placer.detections(outputs, 0, *stored.numpy().tolist(), scale)


@dataclasses.dataclass
class Comparison:
    """How far two programs differ over some images.

    Attributes:
        images: int, how many there were.
        detections: int, of the evaluation.
        further: int, detections of the exported program that the evaluation does not have.
        missing: int, the other way around.
        differences: {field: float}, the largest absolute difference of the others' boxes (pixels),
            scores and heads' fields.
        seconds: float, of an image, the median.
        evaluation_seconds: float, the same of the evaluation.
    """

    images: int = 0
    detections: int = 0
    further: int = 0
    missing: int = 0
    differences: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def add(self, found, expected):
        """Adds an image, given its detections as of `Evaluation.place`."""
        pairs = match(found, expected)
        self.images += 1
        self.detections += len(expected["scores"])
        self.further += len(found["scores"]) - len(pairs)
        self.missing += len(expected["scores"]) - len(pairs)
        for field in expected.keys() & found.keys() - {"category_ids"}:
            ours, theirs = (
                np.asarray(each[field], np.float64)[pairs[:, column]]
                for column, each in enumerate((found, expected))
            )
            largest = float(np.abs(ours - theirs).max(initial=0.0))
            self.differences[field] = max(largest, self.differences.get(field, 0.0))

    def summary(self):
        """Returns the comparison in two lines."""
        same = "the export finds the same"
        if self.further or self.missing:
            same = f"the export lacks {self.missing} of them and finds {self.further} others"
        units = {"boxes": " pixels"}
        largest = ", ".join(
            f"{field} {value:.1e}{units.get(field, '')}"
            for field, value in sorted(self.differences.items())
        )
        return (
            f"Compared on {self.images} photographs: the evaluation has {self.detections} "
            f"detections, {same}. Largest differences: {largest}.\n"
            f"An image takes {self.seconds:.3f} s (median), in the evaluation "
            f"{self.evaluation_seconds:.3f} s."
        )


def match(found, expected):
    """Pairs the detections of two programs that are of the same object.

    Args:
        found: dict as of `Evaluation.place`.
        expected: the same.

    Returns:
        int [n, 2], rows of both. Each row is in one pair at most, those of the highest overlap.
    """
    overlaps = _overlaps(found["boxes"], expected["boxes"])
    overlaps *= found["category_ids"][:, np.newaxis] == expected["category_ids"]
    pairs = []
    while overlaps.size and overlaps.max() >= MIN_OVERLAP:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        pairs.append((row, column))
        overlaps[row], overlaps[:, column] = 0.0, 0.0
    return np.array(pairs, int).reshape(-1, 2)


def compare(run, evaluation, photographs):
    """Compares a program with the evaluation, and times both.

    Args:
        run: callable of the bytes of an image and its batch (`Evaluation.prepare`), returns the
            detections as of `Evaluation.place` and the seconds that it took.
        evaluation: list of what `Evaluation.measure` returned.
        photographs: list of bytes of JPEG or PNG, with their batches.

    Returns:
        `Comparison`.
    """
    comparison, seconds = Comparison(), []
    for (encoded, batch), (expected, _) in zip(photographs, evaluation, strict=True):
        run(encoded, batch)
        found, took = run(encoded, batch)
        seconds.append(took)
        comparison.add(found, expected)
    comparison.seconds = statistics.median(seconds)
    comparison.evaluation_seconds = statistics.median(took for _, took in evaluation)
    return comparison


def timed(function, *arguments):
    """Returns what a function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def _overlaps(boxes, others):
    """Returns the IoU of every pair of boxes [N, 4] and [M, 4]."""
    a, b = np.asarray(boxes)[:, np.newaxis], np.asarray(others)[np.newaxis]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0.0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (a, b)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)
