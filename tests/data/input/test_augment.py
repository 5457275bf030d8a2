"""Tests of rethink_tf/data/input/augment.py."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rethink_tf.data.input import augment


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def ellipse(height, width, box):
    """A filled ellipse in a box, 0 and 1."""
    y1, x1, y2, x2 = box
    y, x = np.mgrid[:height, :width] + 0.5
    inside = ((2 * y - y1 - y2) / (y2 - y1)) ** 2 + ((2 * x - x1 - x2) / (x2 - x1)) ** 2
    return (inside <= 1).astype(np.uint8)


def crop_by_numpy(mask, box, size, samples):
    """Mean of samples x samples bilinear samples in each cell of a size x size grid on a box."""
    n = size * samples
    y1, x1, y2, x2 = box
    y = y1 + (np.arange(n) + 0.5) / n * (y2 - y1) - 0.5
    x = x1 + (np.arange(n) + 0.5) / n * (x2 - x1) - 0.5
    rows = np.stack([np.interp(x, np.arange(mask.shape[1]), row) for row in mask.astype(float)])
    fine = np.stack([np.interp(y, np.arange(mask.shape[0]), column) for column in rows.T]).T
    return fine.reshape(size, samples, size, samples).mean((1, 3)) * 255


def crop_one(mask, box, size):
    boxes = tf.constant([box], tf.float32)
    return augment.crop_masks(tf.constant([png(mask)]), boxes, mask.shape, size)[0].numpy()


def test_flip_by_hand():
    image = tf.constant([[[0, 1, 2], [3, 4, 5]]], tf.uint8)
    boxes = tf.constant([[1.0, 2.0, 5.0, 4.0]])

    assert augment.flip_image(image, True)[0].numpy().tolist() == [[3, 4, 5], [0, 1, 2]]
    assert augment.flip_image(image, False)[0].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert augment.flip_boxes(boxes, 10.0, True).numpy().tolist() == [[1, 6, 5, 8]]
    assert augment.flip_boxes(boxes, 10.0, False).numpy().tolist() == [[1, 2, 5, 4]]


def test_resize_by_hand_and_padding():
    image = tf.constant([[[10] * 3, [20] * 3]], tf.uint8)

    out = augment.resize_and_pad(image, tf.constant([1, 4]), tf.constant([2, 6])).numpy()

    # Centres of the four pixels lie at -0.25, 0.25, 0.75 and 1.25 of the two; 12.5 rounds up.
    assert out[..., 0].tolist() == [[10, 13, 18, 20, 0, 0], [0] * 6]


def test_padding_leaves_the_content_and_zeros():
    image = np.random.default_rng(2).integers(0, 256, [7, 5, 3], np.uint8)

    for height, width in ((7, 5), (9, 5), (7, 8), (10, 11)):
        out = augment.resize_and_pad(tf.constant(image), [7, 5], tf.constant([height, width]))
        expected = np.pad(image, [(0, height - 7), (0, width - 5), (0, 0)])
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("size", [(75, 100), (30, 40), (75, 40)])
def test_resize_is_that_of_pil(size):
    image = np.random.default_rng(0).integers(0, 256, [50, 60, 3], np.uint8)

    out = augment.resize_and_pad(tf.constant(image), tf.constant(size), tf.constant([80, 100]))

    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    found = out.numpy()[: size[0], : size[1]].astype(int)
    assert abs(found - expected).max() <= 1  # PIL rounds between its two passes


def test_chooses_no_crowd_nothing_flat_and_the_largest():
    boxes = tf.constant(
        [[0, 0, 2, 2], [0, 0, 9, 9], [3, 3, 3, 9], [0, 0, 3, 3], [0, 0, 5, 5]], tf.float32
    )
    crowd = tf.constant([False, True, False, False, False])

    rows, cut = augment.choose_objects(boxes, crowd, 2)
    assert rows.numpy().tolist() == [3, 4] and cut.numpy() == 1
    rows, cut = augment.choose_objects(boxes, crowd, 3)
    assert rows.numpy().tolist() == [0, 3, 4] and cut.numpy() == 0
    rows, cut = augment.choose_objects(boxes[:0], crowd[:0], 3)
    assert rows.numpy().tolist() == [] and cut.numpy() == 0


def test_mask_crop_on_its_own_grid_is_the_mask():
    mask = np.random.default_rng(1).integers(0, 2, [20, 30], np.uint8)

    np.testing.assert_array_equal(crop_one(mask, [4, 6, 12, 14], 8), mask[4:12, 6:14] * 255)


def test_enlarged_mask_crop_by_hand():
    mask = np.zeros([4, 4], np.uint8)
    mask[:, 2:] = 1

    # Columns at 1 + (i + 0.5) / 4 * 2 - 0.5 = 0.75, 1.25, 1.75, 2.25 of a step from 1 to 2.
    assert crop_one(mask, [0, 1, 4, 3], 4).tolist() == [[0, 64, 191, 255]] * 4


@pytest.mark.parametrize(
    "box", [(3.3, 5.8, 40.2, 70.1), (10, 10, 90, 118.5), (0, 0, 100, 120), (60, 100, 62.5, 103.2)]
)
def test_mask_crop_against_numpy(box):
    mask = ellipse(100, 120, box)
    size = 28

    found = crop_one(mask, box, size).astype(float)

    larger = max(box[2] - box[0], box[3] - box[1]) > size
    expected = crop_by_numpy(mask, box, size, samples=8 if larger else 1)
    inside, expected_inside = found >= 128, expected >= 128
    iou = (inside & expected_inside).sum() / (inside | expected_inside).sum()
    assert iou > 0.97 and abs(found - expected).mean() < 5
    assert abs(found.mean() - expected.mean()) < 1.5  # no shift of the whole


def test_mask_values_of_both_png_kinds():
    mask = ellipse(30, 30, (2, 2, 28, 28))
    box = tf.constant([[2.0, 2, 28, 28]])
    one_bit = io.BytesIO()
    Image.fromarray(mask * 255).convert("1").save(one_bit, "PNG")

    crops = [
        augment.crop_masks(tf.constant([data]), box, [30, 30], 14).numpy()
        for data in (png(mask), png(mask * 255), one_bit.getvalue())
    ]

    np.testing.assert_array_equal(crops[0], crops[1])
    np.testing.assert_array_equal(crops[0], crops[2])


def test_no_object_gives_no_crop():
    crops = augment.crop_masks(tf.zeros([0], tf.string), tf.zeros([0, 4]), [10, 10], 7)

    assert augment.pad_rows(crops, 3).shape == [3, 7, 7]


def test_mask_of_another_size_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match="not of the size of its image"):
        augment.crop_masks(
            tf.constant([png(np.ones([5, 6], np.uint8))]), tf.ones([1, 4]), [6, 5], 4
        )
