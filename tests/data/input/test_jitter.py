"""Large-scale jitter and ranges of the shorter side, on drawn images and through the pipeline."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from drawn_records import assert_same_batches, ellipse, example, l_shape, pixels, write
from PIL import Image

from rethink_tf.data import schema
from rethink_tf.data.input import decode
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.input.resizing import LargeScaleJitter

STORED = (20, 40)
BOX = (4, 10, 16, 30)
SIDE = 8


@pytest.fixture(scope="module")
def load():
    """A function from a record, how it is placed and the bucket to its element, traced once."""
    scalar, pair = tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int32)
    signature = [scalar, tf.TensorSpec([], tf.bool), pair, tf.TensorSpec([4], tf.int32), pair]

    @tf.function(input_signature=signature, autograph=False)
    def run(serialized, flip, size, view, bucket):
        stored = tf.constant(STORED)
        drawn = {"flip": flip, "size": size, "view": view, "stored": stored}
        drawn["image_id"] = tf.constant(1, tf.int64)
        parsed = decode.parse_image_and_objects(serialized, with_masks=True)
        image = decode.decode_image(parsed["image/encoded"], drawn, bucket)
        objects, _ = decode.decode_objects(
            parsed, drawn, image[schema.IMAGE_SCALE], tf.constant([3], tf.int64), 4, SIDE
        )
        return image | objects

    return lambda *arguments: {key: value.numpy() for key, value in run(*arguments).items()}


def in_bucket(array, flip, size, view, bucket):
    """Mirrors, resizes, cuts and pads by NumPy and Pillow: float [H, W] or [H, W, 3]."""
    array = array[:, ::-1] if flip else array
    image = Image.fromarray(array).resize(size[::-1], Image.Resampling.BILINEAR)
    y1, x1, y2, x2 = view
    part = np.asarray(image, float)[y1:y2, x1:x2]
    margin = [(0, bucket[0] - y2 + y1), (0, bucket[1] - x2 + x1)] + [(0, 0)] * (part.ndim - 2)
    return np.pad(part, margin)


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def paste(crop, box, shape):
    """The pixels of an image that a mask crop fills, by nearest sample."""
    y1, x1, y2, x2 = box
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    i = np.floor((rows - y1) / (y2 - y1) * len(crop)).astype(int)
    j = np.floor((columns - x1) / (x2 - x1) * len(crop)).astype(int)
    within = (i >= 0) & (i < len(crop)) & (j >= 0) & (j < len(crop))
    return within & (crop[i.clip(0, len(crop) - 1), j.clip(0, len(crop) - 1)] >= 128)


@pytest.mark.parametrize(
    ("flip", "view", "box"),
    [
        # At twice the size the box is 8..32 x 20..60, of which the L is 20..40 above row 20.
        (False, (0, 0, 40, 80), (8, 20, 32, 60)),
        (False, (10, 24, 34, 56), (0, 0, 22, 32)),  # cut on three sides, all of the rest is seen
        (False, (4, 0, 20, 80), (4, 20, 16, 40)),  # without the lower half only the left is seen
        (False, (8, 42, 18, 80), None),  # the upper right quarter, where the box is empty
        (False, (33, 0, 40, 80), None),  # beside the box
        (True, (0, 0, 40, 80), (8, 20, 32, 60)),
        (True, (4, 4, 20, 80), (4, 36, 16, 56)),  # mirrored, the upper part is at 40..60
        (True, (4, 50, 20, 80), (4, 0, 16, 10)),
    ],
)
def test_boxes_by_hand(load, flip, view, box):
    found = load(example(1, STORED, [BOX], [3]), flip, (40, 80), view, (48, 96))

    assert found["image_size"].tolist() == [view[2] - view[0], view[3] - view[1]]
    assert found["image_scale"].tolist() == [2, 2]
    assert found["classes"].tolist() == [0 if box is None else 1, 0, 0, 0]
    np.testing.assert_allclose(found["boxes"][0], box or [0] * 4, atol=1e-4)
    if box is not None:
        mask = l_shape(STORED, BOX) * np.uint8(255)
        expected = in_bucket(mask, flip, (40, 80), view, (48, 96)) >= 128
        pasted = paste(found["masks"][0], box, (48, 96))
        assert (pasted & expected).sum() / (pasted | expected).sum() > 0.9


@pytest.mark.parametrize(
    ("flip", "expected"),
    [
        # At twice the size (20, 30) is in view and (20, 16) left of it.
        (False, [[16, 10, 2], [0, 0, 0], [0, 0, 0]]),
        # Mirrored, the first two change places, and the second lies right of the view.
        (True, [[0, 0, 0], [16, 30, 2], [0, 0, 0]]),
    ],
)
def test_keypoints_out_of_view_are_not_labelled(flip, expected):
    keypoints = [[[10.0, 15, 2], [10, 8, 1], [0, 0, 0]]]
    chosen = {"boxes": [[2.0, 12, 18, 28]], "classes": [1], "keypoints": keypoints}
    chosen = {key: tf.constant(value) for key, value in chosen.items()}
    drawn = {"size": [40, 80], "view": [4, 20, 36, 60], "stored": STORED}
    drawn = {key: tf.constant(value) for key, value in drawn.items()} | {"flip": tf.constant(flip)}

    found = decode.transform_objects(
        chosen, drawn, tf.constant([2.0, 2]), None, flip_order=[1, 0, 2]
    )

    assert found["keypoints"].numpy().tolist() == [expected]


def test_against_numpy(load):
    """Many sizes, views and mirrors of one image against a composition on whole images."""
    jitter = LargeScaleJitter(0.4, 3.0, (48, 64))
    rng = np.random.default_rng(3)
    boxes = [(2, 3, 15, 20), (1, 18, 19, 39), (8, 8, 14, 30)]
    record = example(1, STORED, boxes, [3] * 3, shape=ellipse)
    geometry = jitter.geometry(np.tile(STORED, (25, 1)), rng.uniform(size=[25, 3]))
    kept = 0
    for number, (size, view) in enumerate(zip(geometry["size"], geometry["view"], strict=True)):
        size, view, flip = size.tolist(), view.tolist(), number % 2 == 0

        found = load(record, flip, size, view, (48, 64))

        image = in_bucket(pixels(1, *STORED), flip, size, view, (48, 64))
        assert abs(found["image"] - image).max() <= 1
        masks = [ellipse(STORED, box) * np.uint8(255) for box in boxes]
        masks = [in_bucket(mask, flip, size, view, (48, 64)) >= 128 for mask in masks]
        masks = [mask for mask in masks if mask.sum() >= 1]
        rows = np.flatnonzero(found["classes"])
        assert len(rows) >= len(masks)
        if len(rows) > len(masks):  # a sliver of less than half a pixel
            continue
        scale = max(size[0] / STORED[0], 1)  # a pixel of the mask in those of the bucket
        for row, mask in zip(rows, masks, strict=True):
            box = found["boxes"][row]
            assert abs(box - bounds(mask)).max() <= 1 + scale
            pasted = paste(found["masks"][row], box, mask.shape)
            differing = (pasted ^ mask).sum()
            assert differing <= 0.1 * mask.sum() + 2 * scale * (mask.sum() ** 0.5)
            kept += 1
    assert kept > 40


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Images 1 to 6 are landscape, 7 to 10 portrait, each with two objects; 6 has none."""
    sizes = {i: (20, 40) if i <= 6 else (40, 32) for i in range(1, 11)}
    boxes = [(4, 10, 16, 30), (2, 1, 12, 9)]
    return write(
        tmp_path_factory.mktemp("drawn"),
        [example(i, sizes[i], () if i == 6 else boxes) for i in sizes],
    )


def batches(source, count, start_step=0, **settings):
    common = {"max_objects": 3, "mask_size": SIDE, "parallel_records": 2}
    pipeline = Pipeline(**common | settings)
    dataset = pipeline.training(source, [3], 2, seed=1, start_step=start_step)
    return list(itertools.islice(dataset, count))


def test_a_range_stays_within_and_goes_on_after_resumption(drawn):
    settings = {"min_side": (16, 24), "min_side_sampling": "range", "max_side": 60}
    settings["buckets"] = [(64, 64)]

    whole = batches(drawn, 30, **settings)

    sides = {int(side) for batch in whole for side in batch["image_size"].numpy().min(1)}
    assert sides <= set(range(16, 25)) and len(sides) >= 8
    assert_same_batches(whole[20:], batches(drawn, 10, start_step=20, **settings))


def test_jittered_batches_meet_the_contract_and_go_on_after_resumption(drawn):
    settings = {"jitter": LargeScaleJitter(0.5, 2.0, (32, 48)), "min_side": 30, "max_side": 45}

    whole = batches(drawn, 15, **settings)

    spec = schema.training_spec(2, None, 3, SIDE)
    for batch in whole:
        schema.check_batch(batch, spec, num_classes=1)
        assert tuple(batch["image"].shape[1:3]) in {(32, 32), (32, 64)}  # of at most 32 x 48
    sizes = np.concatenate([batch["image_size"] for batch in whole])
    assert len(np.unique(sizes, axis=0)) > 15
    assert_same_batches(whole[9:], batches(drawn, 6, start_step=9, **settings))


def test_jitter_works_on_boxes_alone(drawn):
    settings = {"jitter": LargeScaleJitter(0.5, 2.0, (32, 48)), "min_side": 30, "max_side": 45}

    for batch in batches(drawn, 6, include_masks=False, **settings):
        schema.check_batch(batch, schema.training_spec(2, None, 3, None), num_classes=1)


def test_evaluation_is_not_jittered(drawn):
    pipeline = Pipeline(30, 45, jitter=LargeScaleJitter(crop_size=(32, 32)), parallel_records=2)

    sizes = {tuple(size) for b in pipeline.evaluation(drawn, 2) for size in b["image_size"].numpy()}

    assert sizes == {(23, 45), (38, 30)}  # shorter side 30, longer at most 45


def test_settings_that_exclude_each_other_are_errors():
    with pytest.raises(ValueError, match="beside a jitter"):
        Pipeline((640, 800), jitter=LargeScaleJitter(), min_side_sampling="range")
    with pytest.raises(ValueError, match="min_side_sampling is not given"):
        Pipeline((640, 800))
