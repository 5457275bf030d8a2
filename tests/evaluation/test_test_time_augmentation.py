"""Test-time augmentation by hand, with a detector that sees a bright rectangle, and a real one."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.data import schema
from rethink_tf.data.records.keypoints import KeypointLayout
from rethink_tf.evaluation import test_time_augmentation as tta
from rethink_tf.execution import ExecutionPlan
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import nms

SIDE, HEATMAP_SIDE = 14, 8
EYES = KeypointLayout.from_names(["left_eye", "right_eye"])
# (y1, x1, y2, x2) in an image of 20 x 30 pixels, that the detector sees as 40 x 60.
RECTANGLE = (4, 5, 14, 15)


class RectangleDetector:
    """Places a box two pixels to the right of the bright rectangle, whatever the view.

    Scores and masks are those of a table: by whether the rectangle is on the left (as it is in the
    image) or on the right, and by whether the view is of 40 x 60 pixels or of 80 x 120.
    """

    SCORES = {"small": (0.9, 0.6), "large": (0.8, 0.5)}
    VALUES = {"small": (1.0, 0.8), "large": (0.6, 0.4)}

    def __init__(self, jit_compile=False):
        self.plan = ExecutionPlan(jit_compile=jit_compile)
        self.box_head = BoxHead(2, max_detections=3)
        self.heads = [MaskHead(2, roi_size=SIDE // 2), KeypointHead(2, roi_size=HEATMAP_SIDE // 4)]
        self.traced = []

    @staticmethod
    def _look(batch, table):
        """Returns the rectangles [B, 1, 4], whether each is there, and the numbers of a table."""
        bright = batch["image"][..., 0] > 100
        sides = []
        for axis in (2, 1):
            line = tf.reduce_any(bright, axis=axis)
            last = tf.shape(line)[1] - tf.argmax(line[:, ::-1], axis=1, output_type=tf.int32)
            sides.append((tf.argmax(line, axis=1, output_type=tf.int32), last))
        (y1, y2), (x1, x2) = sides
        box = tf.cast(tf.stack([y1, x1, y2, x2], axis=-1), tf.float32)
        on_left = x1 + x2 < batch["image_size"][:, 1]
        is_large = tf.shape(bright)[1] != 64
        small, large = (tf.where(on_left, *table[size]) for size in ("small", "large"))
        number = tf.where(is_large, large, small)
        return box[:, tf.newaxis], tf.reduce_any(bright, axis=(1, 2)), number, on_left, is_large

    def find_candidates(self, batch, padded):
        self.traced.append(tuple(batch["image"].shape[1:3]))
        box, there, score, on_left, is_large = self._look(batch, self.SCORES)
        second = there & ~on_left & is_large
        scores = [tf.where(there, score, nms.NO_SCORE), tf.where(second, 0.55, nms.NO_SCORE)]
        return {
            "boxes": tf.repeat(box + [0.0, 2.0, 0.0, 2.0], 2, axis=1),
            "scores": tf.stack(scores, axis=-1),
            "classes": tf.tile([[1, 2]], [tf.shape(box)[0], 1]),
        }

    def describe(self, batch, detections, padded):
        """Masks whose left half is full, of detections that lie on the rectangle, and its eyes.

        What is in the image the left eye, in columns 2 of 8, is in its mirror image the right one,
        in column 5; and the right eye, in column 6, the left one, in column 1.
        """
        box, there, value, on_left, _ = self._look(batch, self.VALUES)
        on_it = box_ops.pairwise_iou(detections["boxes"], box)[..., 0] > 0.8
        value = tf.where(on_it & there[:, tf.newaxis], value[:, tf.newaxis], 0.0)
        left = tf.cast(tf.range(SIDE) < SIDE // 2, tf.float32)
        value = value[..., tf.newaxis, tf.newaxis]
        columns = tf.where(on_left[:, tf.newaxis], [[2, 6]], [[1, 5]])
        peaks = tf.one_hot(columns, HEATMAP_SIDE)[:, tf.newaxis, :, tf.newaxis]
        peaks *= tf.one_hot(3, HEATMAP_SIDE)[:, tf.newaxis]  # in row 3
        return {
            "masks": value * tf.tile([left], [SIDE, 1]),
            "keypoints": 10 * value[..., tf.newaxis] * peaks,
        }

    def decode(self, described, detections):
        return MaskRCNN.decode(self, described, detections)


def rectangle_batch(scale, bucket, image_ids):
    """The image, and padding images, in one size."""
    images = np.zeros([len(image_ids), *bucket, 3], np.uint8)
    valid = np.array(image_ids) != schema.PADDING_IMAGE_ID
    y1, x1, y2, x2 = (scale * side for side in RECTANGLE)
    images[valid, y1:y2, x1:x2] = 255
    sizes = np.where(valid[:, np.newaxis], [[20, 30]], 1)
    scales = np.where(valid, scale, 1)[:, np.newaxis]
    return {
        schema.IMAGE: tf.constant(images),
        schema.IMAGE_SIZE: tf.constant(sizes * scales, tf.int32),
        schema.ORIGINAL_SIZE: tf.constant(sizes, tf.int32),
        schema.IMAGE_SCALE: tf.constant(np.tile(scales, 2), tf.float32),
        schema.IMAGE_ID: tf.constant(image_ids, tf.int64),
    }


def in_both_sizes(image_ids):
    return [rectangle_batch(2, (64, 64), image_ids), rectangle_batch(4, (128, 128), image_ids)]


def assert_as_by_hand(found, row):
    """In pixels of 40 x 60, x1 of the four boxes is 12, 8 (mirrored), 11 and 9 (mirrored).

    The first is kept. Of those that are 20 wide, the IoU with it is (20 - d) / (20 + d) at a
    distance of d: 0.67 for the second, 0.90 and 0.74 for the last two.
    """
    x1 = (12 * 0.9 + 11 * 0.8 + 9 * 0.5) / (0.9 + 0.8 + 0.5)
    boxes = [[8, x1, 28, x1 + 20], [8, 9, 28, 29], [0] * 4]
    np.testing.assert_allclose(found["boxes"][row], boxes, rtol=1e-6)
    np.testing.assert_allclose(found["scores"][row], [0.9, 0.55, 0], rtol=1e-6)
    assert found["classes"][row].tolist() == [1, 2, 0]
    # The left halves of the mirrored views are right ones in the image.
    left, right = (1.0 + 0.6) / 4, (0.8 + 0.4) / 4
    halves = np.repeat([left, right], SIDE // 2)
    for detection in (0, 1):
        np.testing.assert_allclose(found["masks"][row, detection], [halves] * SIDE, rtol=1e-6)
    assert not found["masks"][row, 2].any()
    # The mean of 10 times 1, 0.8, 0.6 and 0.4, beside 63 cells of 0.
    probability = np.exp(7) / (np.exp(7) + 63)
    for detection, left in ((0, x1), (1, 9)):
        eyes = [[8 + 20 * 3.5 / 8, left + 20 * column / 8, probability] for column in (2.5, 6.5)]
        np.testing.assert_allclose(found["keypoints"][row, detection], eyes, rtol=1e-5)
    assert not found["keypoints"][row, 2].any()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_boxes_are_united_and_voted_and_masks_averaged(jit_compile):
    detector, strategy = RectangleDetector(jit_compile), tf.distribute.get_strategy()
    augmentation = tta.TestTimeAugmentation(scales=(80,), max_side=120, vote_iou=0.7)
    predictor = tta.AugmentedPredictor(detector, strategy, augmentation, EYES.flip_order)
    image_ids = [7, schema.PADDING_IMAGE_ID]
    batches = list(augmentation.group(in_both_sizes(image_ids) * 2))
    assert len(batches) == 2
    for batch in batches:
        found = predictor(batch)
        assert_as_by_hand(found, 0)
        assert not found["classes"][1].any() and not found["masks"][1].any()
        assert found[schema.IMAGE_ID].tolist() == image_ids
        assert found[schema.IMAGE_SCALE][0].tolist() == [2, 2]
        assert found[schema.ORIGINAL_SIZE][0].tolist() == [20, 30]
    # For both images of both batches and their mirror images: once for each shape, or for the first
    # and for all others.
    assert detector.traced == [(64, 64), (128, 128) if jit_compile else (None, None)]


def test_replicas_predict_for_their_own_images(two_replicas):
    augmentation = tta.TestTimeAugmentation(scales=(80,), max_side=120, vote_iou=0.7)
    predictor = tta.AugmentedPredictor(
        RectangleDetector(), two_replicas, augmentation, EYES.flip_order
    )
    shares = [in_both_sizes([image_id]) for image_id in (schema.PADDING_IMAGE_ID, 7)]

    def share(size, key):
        return lambda context: shares[context.replica_id_in_sync_group][size][key]

    batches = [
        {
            key: two_replicas.experimental_distribute_values_from_function(share(size, key))
            for key in shares[0][size]
        }
        for size in (0, 1)
    ]
    (batch,) = augmentation.group(batches)
    found = predictor(batch)
    assert found[schema.IMAGE_ID].tolist() == [schema.PADDING_IMAGE_ID, 7]
    assert not found["classes"][0].any()
    assert_as_by_hand(found, 1)


def test_a_real_detector_finds_the_mirror_image_of_what_it_finds():
    """Without augmentation it would not: its random kernels are not symmetric."""
    partial = functools.partial
    tf_keras.utils.set_random_seed(5)
    detector = MaskRCNN(
        3,
        partial(ResNet, 18),
        partial(FPN, 32),
        partial(RPN, 32, test_pre_nms=16, test_proposals=16),
        partial(BoxHead, num_convs=0, fc_channels=32, score_threshold=0.0, max_detections=8),
        partial(MaskHead, num_convs=0, channels=32),
    )
    detector.create_variables()
    for layer, factor in [(detector.box_head.class_logits, 50), (detector.rpn.objectness, 10)]:
        layer.kernel.assign(layer.kernel * factor)
    detector.mask_head.kernel.assign(detector.mask_head.kernel * 1000)
    height, width = 50, 58
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    images = np.zeros([2, 64, 64, 3], np.uint8)
    images[0, :height, :width], images[1, :height, :width] = pixels, pixels[:, ::-1]
    batch = {
        schema.IMAGE: tf.constant(images),
        schema.IMAGE_SIZE: tf.constant([[height, width]] * 2),
        schema.ORIGINAL_SIZE: tf.constant([[height, width]] * 2),
        schema.IMAGE_SCALE: tf.ones([2, 2]),
        schema.IMAGE_ID: tf.constant([1, 2], tf.int64),
    }
    augmentation = tta.TestTimeAugmentation(scales=())
    predictor = tta.AugmentedPredictor(detector, tf.distribute.get_strategy(), augmentation)
    (augmented,) = augmentation.group([batch])
    found = predictor(augmented)
    assert (found["classes"] > 0).all() and len(set(found["classes"][0])) > 1
    y1, x1, y2, x2 = np.moveaxis(found["boxes"][1], -1, 0)
    mirrored = np.stack([y1, width - x2, y2, width - x1], axis=-1)
    np.testing.assert_allclose(found["boxes"][0], mirrored, atol=1e-3)
    np.testing.assert_array_equal(found["classes"][0], found["classes"][1])
    np.testing.assert_allclose(found["scores"][0], found["scores"][1], atol=1e-5)
    np.testing.assert_allclose(found["masks"][0], found["masks"][1, :, :, ::-1], atol=1e-4)
    assert np.ptp(found["masks"][0]) > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": (), "flip": False}, "nothing to augment"),
        ({"scales": (400, 0)}, r"scales = \[400, 0\]: whole pixels of at least 1"),
        ({"scales": (400.5,)}, "whole pixels"),
        ({"scales": (400, 500, 400)}, "comes twice"),
        ({"scales": (400, 2400)}, "max_side = 2000 is below the scale 2400"),
        ({"vote_iou": 0.0}, "vote_iou = 0.0 must be above 0 and at most 1"),
        ({"vote_iou": 1.1}, "vote_iou = 1.1 must be"),
    ],
)
def test_bad_settings_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        tta.TestTimeAugmentation(**settings)
