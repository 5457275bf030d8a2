"""Keypoints: cells by hand and in Detectron2's form, peaks finer than cells, mirrored sides."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import keypoints as keypoint_ops

ROI = [10.0, 20.0, 66.0, 132.0]  # 56 x 112 pixels: cells of 1 x 2 for a heatmap of 56


def encode_one(y, x, visibility=2.0, roi=ROI, size=56):
    """Returns the (row, column) of one keypoint, None where it is not valid."""
    cells, valid = keypoint_ops.encode(
        tf.constant([[[y, x, visibility]]]), tf.constant([roi]), size
    )
    assert cells.dtype == tf.int32 and cells.shape == valid.shape == (1, 1)
    return divmod(int(cells[0, 0]), size) if bool(valid[0, 0]) else None


@pytest.mark.parametrize(
    ("y", "x", "cell"),
    [
        (10.0, 20.0, (0, 0)),
        (10.99, 21.99, (0, 0)),
        (11.0, 22.0, (1, 1)),
        (38.5, 75.0, (28, 27)),
        (65.9, 131.9, (55, 55)),
        # The bottom and the right border belong to the last cell, the pixels behind to none.
        (66.0, 132.0, (55, 55)),
        (66.0, 40.0, (55, 10)),
        (66.01, 40.0, None),
        (40.0, 132.01, None),
        (9.99, 40.0, None),
        (40.0, 19.99, None),
    ],
)
def test_cells_by_hand(y, x, cell):
    assert encode_one(y, x) == cell


def test_hidden_keypoints_count_and_unlabelled_ones_do_not():
    assert encode_one(38.5, 75.0, 1.0) == (28, 27)
    assert encode_one(38.5, 75.0, 0.0) is None


def test_rois_without_area_are_finite():
    for roi in ([0.0] * 4, [30.0, 30.0, 30.0, 30.0]):
        assert encode_one(0.0, 0.0, 0.0, roi) is None
        assert encode_one(1e5, 1e5, 2.0, roi) is None


def detectron2_heatmaps(keypoints, rois, size):
    """`_keypoints_to_heatmap` in NumPy, with its x and y."""
    x, y = keypoints[..., 1], keypoints[..., 0]
    y1, x1, y2, x2 = (side[:, np.newaxis] for side in rois.T)
    at_right, at_bottom = x == x2, y == y2
    x = np.floor((x - x1) * (size / (x2 - x1))).astype(int)
    y = np.floor((y - y1) * (size / (y2 - y1))).astype(int)
    x[at_right] = size - 1
    y[at_bottom] = size - 1
    valid = (x >= 0) & (y >= 0) & (x < size) & (y < size) & (keypoints[..., 2] > 0)
    return (y * size + x) * valid, valid


def random_rois(generator, count):
    corners = generator.uniform(0, 300, (count, 2))
    return np.concatenate([corners, corners + generator.uniform(5, 300, (count, 2))], -1)


def test_encoding_is_detectron2s():
    generator = np.random.default_rng(0)
    rois = random_rois(generator, 50).astype(np.float32)
    keypoints = generator.uniform(0, 400, (50, 17, 3)).astype(np.float32)
    keypoints[..., 2] = generator.integers(0, 3, (50, 17))
    keypoints[:10, 0, :2] = rois[:10, 2:]  # on the corner
    cells, valid = keypoint_ops.encode(tf.constant(keypoints), tf.constant(rois), 56)
    expected, expected_valid = detectron2_heatmaps(keypoints, rois, 56)
    np.testing.assert_array_equal(valid, expected_valid)
    np.testing.assert_array_equal(cells, expected)
    assert expected_valid[:10, 0].sum() > 3 and 40 < expected_valid.sum() < 400


def decode(logits, roi=ROI):
    """Returns (y, x, score) of one heatmap [S, S]."""
    found = keypoint_ops.decode(tf.constant(logits[np.newaxis, np.newaxis]), tf.constant([roi]))
    assert found.shape == (1, 1, 3)
    return found[0, 0].numpy()


def test_a_single_peak_is_the_middle_of_its_cell():
    logits = np.zeros((56, 56), np.float32)
    logits[28, 27] = 9.0
    # Cells are 1 x 2 pixels. The softmax of 9 among 3135 zeros.
    expected = [10 + 28.5, 20 + 2 * 27.5, np.exp(9) / (np.exp(9) + 3135)]
    np.testing.assert_allclose(decode(logits), expected, rtol=1e-5)


def test_two_equal_cells_meet_at_their_border():
    logits = np.full((56, 56), -50.0, np.float32)
    logits[30, 10:12] = 5.0
    y, x, score = decode(logits)
    assert (y, x) == pytest.approx((10 + 30.5, 20 + 2 * 11.0))
    # Half the probability in either cell; between them the interpolation overshoots.
    assert 0.5 < score <= 1.0


def test_the_peak_leans_to_the_higher_neighbour():
    logits = np.full((56, 56), -5.0, np.float32)
    logits[30, 10:13] = [1.0, 4.0, 2.0]
    _, x, _ = decode(logits)
    assert 20 + 2 * 11.5 < x < 20 + 2 * 12.0


@pytest.mark.parametrize("cell", [(0, 0), (0, 55), (55, 0), (55, 55)])
def test_peaks_at_the_border_stay_inside(cell):
    logits = np.zeros((56, 56), np.float32)
    logits[cell] = 9.0
    y, x, _ = decode(logits)
    assert 10 <= y <= 66 and 20 <= x <= 132
    assert abs(y - (10 + cell[0] + 0.5)) <= 0.5 and abs(x - (20 + 2 * (cell[1] + 0.5))) <= 1.0


def keys_kernel(distance, a=-0.75):
    """Keys' cubic kernel, as PyTorch's bicubic resizing has it."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def detectron_position(logits, extent):
    """Peak of a heatmap resized bicubically to `extent` (height, width): middle of its pixel."""
    size = len(logits)
    weights = []
    for pixels in extent:
        matrix = np.zeros((pixels, size))
        for pixel in range(pixels):
            place = (pixel + 0.5) * size / pixels - 0.5
            for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                matrix[pixel, np.clip(tap, 0, size - 1)] += keys_kernel(abs(place - tap))
        weights.append(matrix)
    resized = weights[0] @ logits @ weights[1].T
    row, column = np.unravel_index(resized.argmax(), resized.shape)
    score = np.exp(resized.max()) / np.exp(logits).sum()
    return row + 0.5, column + 0.5, min(score, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_positions_are_detectrons_up_to_rounding(seed):
    generator = np.random.default_rng(seed)
    size, extent = 56, (int(generator.integers(60, 500)), int(generator.integers(60, 500)))
    place = generator.uniform(2, size - 2, 2)
    rows, columns = np.mgrid[:size, :size] + 0.5
    spread = generator.uniform(0.8, 3)
    logits = -((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / (2 * spread**2)
    logits += generator.normal(0, 0.02, logits.shape)
    y, x, score = decode(logits.astype(np.float32), [0.0, 0.0, *map(float, extent)])
    row, column, expected_score = detectron_position(logits, extent)
    # Half a pixel of theirs, 1/16 of a cell of ours.
    assert abs(y - row) <= 0.5 + extent[0] / size / 16 + 0.01
    assert abs(x - column) <= 0.5 + extent[1] / size / 16 + 0.01
    assert score == pytest.approx(expected_score, rel=0.05)


def test_decoding_is_at_most_half_a_cell_off():
    generator = np.random.default_rng(1)
    rois = random_rois(generator, 20).astype(np.float32)
    fractions = generator.uniform(0, 1, (20, 5, 2))
    positions = rois[:, np.newaxis, :2] + fractions * (rois[:, 2:] - rois[:, :2])[:, np.newaxis]
    keypoints = np.concatenate([positions, np.full((20, 5, 1), 2.0)], -1).astype(np.float32)
    cells, valid = keypoint_ops.encode(tf.constant(keypoints), tf.constant(rois), 56)
    assert np.all(valid)
    logits = tf.reshape(tf.one_hot(cells, 56 * 56, 12.0, 0.0), [20, 5, 56, 56])
    found = keypoint_ops.decode(logits, tf.constant(rois)).numpy()
    errors = np.abs(found[..., :2] - positions) / (rois[:, 2:] - rois[:, :2])[:, np.newaxis] * 56
    # A peak in a border cell goes to the border.
    at_border = np.stack([cells // 56, cells % 56], -1) % 55 == 0
    assert errors[~at_border].max() <= 0.501 and errors[at_border].max() <= 1.001
    # Interpolation between equal cells overshoots; the score does not.
    certain = np.exp(12) / (np.exp(12) + 3135)
    expected = np.where(at_border.any(-1), 1.0, certain)
    np.testing.assert_allclose(found[..., 2], expected, rtol=1e-4)


def test_no_rois_and_a_compiled_form():
    assert keypoint_ops.decode(tf.zeros([0, 17, 56, 56]), tf.zeros([0, 4])).shape == (0, 17, 3)
    generator = np.random.default_rng(2)
    logits = tf.constant(generator.normal(0, 2, (3, 4, 28, 28)), tf.float32)
    rois = tf.constant(random_rois(generator, 3), tf.float32)
    compiled = tf.function(keypoint_ops.decode, jit_compile=True)(logits, rois)
    np.testing.assert_allclose(compiled, keypoint_ops.decode(logits, rois), rtol=1e-4)


def test_mirroring_swaps_the_sides():
    # nose, left eye, right eye (not labelled)
    keypoints = tf.constant([[[5.0, 10.0, 2.0], [6.0, 20.0, 1.0], [0.0, 0.0, 0.0]]])
    mirrored = keypoint_ops.mirror(keypoints, 100.0, [0, 2, 1])
    np.testing.assert_array_equal(mirrored, [[[5, 90, 2], [0, 0, 0], [6, 80, 1]]])
    np.testing.assert_array_equal(keypoint_ops.mirror(mirrored, 100.0, [0, 2, 1]), keypoints)
