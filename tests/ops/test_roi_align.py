"""RoIAlign: both forms against each other and against a slow one in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as framework_config

from rethink_tf.ops.content import Content
from rethink_tf.ops.roi_align import CROP, GATHER, RoIAlign, assign_levels, choose_form

LEVELS = (2, 3, 4, 5)
HEIGHT, WIDTH = 64, 96  # pixels of the image


@pytest.fixture
def determinism():
    """Turns op determinism on for a test: on the CPU, what makes the crops' gradient right."""
    before = framework_config.is_op_determinism_enabled()
    framework_config.enable_op_determinism()
    yield
    if not before:
        framework_config.disable_op_determinism()


def make_features(images=2, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    return {
        level: tf.constant(
            generator.normal(size=(images, HEIGHT // 2**level, WIDTH // 2**level, channels)),
            tf.float32,
        )
        for level in LEVELS
    }


def make_boxes():
    """Two images' boxes: inside, at the borders, tiny, the whole image, and padding rows."""
    first = [
        [3.2, 5.7, 30.1, 41.9],
        [0, 0, 64, 96],
        [0, 0, 7, 9],
        [50.5, 80.25, 64, 96],
        [20, 20, 20.01, 20.02],
        [0, 40, 64, 41],
    ]
    second = [[10, 10, 40, 90], [63.9, 0, 64, 96], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    return np.array([first, [*second, [5, 60, 64, 96]]], np.float32)


def slow_roi_align(features, boxes, levels, output_size):
    images, regions = boxes.shape[:2]
    channels = features[LEVELS[0]].shape[-1]
    pooled = np.zeros((images, regions, output_size, output_size, channels))
    for image, region in np.ndindex(images, regions):
        level = int(levels[image, region])
        feature = features[level][image].numpy()
        y1, x1, y2, x2 = boxes[image, region].astype(float) / 2**level
        for row, column, i, j in np.ndindex(output_size, output_size, 2, 2):
            y = y1 + (row + (i + 0.5) / 2) / output_size * (y2 - y1) - 0.5
            x = x1 + (column + (j + 0.5) / 2) / output_size * (x2 - x1) - 0.5
            pooled[image, region, row, column] += bilinear(feature, y, x) / 4
    return pooled


def bilinear(feature, y, x):
    last_row, last_column = feature.shape[0] - 1, feature.shape[1] - 1
    y, x = np.clip(y, 0, last_row), np.clip(x, 0, last_column)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, last_row), min(left + 1, last_column)
    upper = feature[top, left] * (left + 1 - x) + feature[top, right] * (x - left)
    lower = feature[bottom, left] * (left + 1 - x) + feature[bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def align(form, features, boxes, levels, output_size):
    layer = RoIAlign(features, form=form)
    return layer.from_levels(tf.constant(boxes), tf.constant(levels), output_size)


FORMS = [GATHER, CROP]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("output_size", [1, 3])
def test_same_as_the_slow_form(determinism, form, output_size):
    features, boxes = make_features(), make_boxes()
    # Levels by hand, so that small maps have boxes on every level.
    levels = np.array([[2, 5, 3, 4, 2, 3], [3, 4, 5, 2, 2, 4]], np.int32)
    pooled = align(form, features, boxes, levels, output_size)
    assert pooled.shape == (2, 6, output_size, output_size, 3) and pooled.dtype == tf.float32
    expected = slow_roi_align(features, boxes, levels, output_size)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=2e-5)


def test_the_centre_of_a_constant_ramp(determinism):
    """On a map whose values are its pixel coordinates, a bin's value is its centre's."""
    rows = tf.range(16, dtype=tf.float32)[tf.newaxis, :, tf.newaxis, tf.newaxis] + 0.5
    ramp = {2: tf.tile(rows, [1, 1, 16, 1]) * 4.0}
    boxes = tf.constant([[[8.0, 8, 40, 24]]])
    for form in FORMS:
        pooled = align(form, ramp, boxes, [[2]], 2)
        np.testing.assert_allclose(pooled[0, 0, :, :, 0], [[16, 16], [32, 32]], rtol=1e-5)


def test_levels_by_hand():
    sides = [224, 223, 112, 111, 56, 55, 1, 0, 447, 448, 5000]
    boxes = tf.constant([[0, 0, side, side] for side in sides], tf.float32)
    levels = assign_levels(boxes, 2, 5)
    assert levels.dtype == tf.int32
    np.testing.assert_array_equal(levels, [4, 3, 3, 2, 2, 2, 2, 2, 4, 5, 5])
    # Only the area counts: 56 x 896 is as large as 224 x 224.
    assert assign_levels(tf.constant([[4.0, 4, 60, 900]]), 2, 5).numpy() == [4]
    np.testing.assert_array_equal(assign_levels(boxes[:2], 3, 3), [3, 3])


def test_both_forms_and_their_gradients_agree(determinism):
    generator = np.random.default_rng(1)
    features = make_features(channels=4)
    corners = generator.uniform(0, 0.7, (2, 30, 2))
    ends = np.minimum(corners + generator.uniform(0.01, 0.8, (2, 30, 2)), 1.0)
    boxes = np.concatenate([corners, ends], -1) * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    boxes[1, 20:] = 0  # padding rows
    # Of few sizes that fit this image; moved down so that all levels are used.
    boxes = tf.constant(boxes, tf.float32)
    levels = tf.constant(generator.integers(2, 6, (2, 30)), tf.int32)
    upstream = tf.constant(generator.normal(size=(2, 30, 7, 7, 4)), tf.float32)
    results = []
    for form in FORMS:
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = align(form, features, boxes, levels, 7)
            total = tf.reduce_sum(pooled * upstream)
        results.append((pooled, tape.gradient(total, features)))
    (pooled, gradients), (expected, expected_gradients) = results
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=2e-5)
    for level in LEVELS:
        np.testing.assert_allclose(
            gradients[level], expected_gradients[level], rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("form", FORMS)
def test_levels_are_assigned_and_boxes_are_constants(determinism, form):
    features, boxes = make_features(), tf.constant(make_boxes())
    levels = assign_levels(boxes, 2, 5)
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        pooled = RoIAlign(features, form=form)(boxes, 3)
    expected = align(GATHER, features, boxes, levels, 3)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=2e-5)
    assert tape.gradient(pooled, boxes) is None  # of the losses


def test_crops_are_taken_only_where_their_gradient_is_right():
    """Serial on a CPU with determinism, atomic on a GPU without; XLA has no such kernel."""
    found = {
        (device, static, deterministic)
        for device in ("CPU", "GPU", "TPU")
        for static in (False, True)
        for deterministic in (False, True)
        if (static or device != "TPU") and choose_form(device, static, deterministic) == CROP
    }
    assert found == {("CPU", False, True), ("GPU", False, False)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_features_keep_their_type(determinism, form, dtype):
    features, boxes = make_features(), tf.constant(make_boxes())
    levels = assign_levels(boxes, 2, 5)
    halves = {level: tf.cast(feature, dtype) for level, feature in features.items()}
    with tf.GradientTape() as tape:
        tape.watch(halves)
        pooled = align(form, halves, boxes, levels, 3)
    assert pooled.dtype == dtype
    expected = align(form, features, boxes, levels, 3)
    np.testing.assert_allclose(tf.cast(pooled, tf.float32), expected, atol=0.05)
    gradients = tape.gradient(pooled, halves)
    assert gradients[2].dtype == dtype


@pytest.mark.parametrize("form", FORMS)
def test_no_regions(determinism, form):
    features = make_features()
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = align(form, features, tf.zeros([2, 0, 4]), tf.zeros([2, 0], tf.int32), 7)
    assert pooled.shape == (2, 0, 7, 7, 3)
    gradients = tape.gradient(pooled, features)
    assert all(np.all(gradient == 0) for gradient in gradients.values())


def test_content_ends_as_maps_do(determinism):
    """Maps with cells beyond the content give, in both forms, what the content alone gives."""
    whole, boxes = make_features(), make_boxes()
    boxes, levels = tf.constant(boxes), tf.constant([[2, 5, 3, 4, 2, 3], [3, 4, 5, 2, 2, 4]])
    upstream = tf.random.stateless_normal([2, 6, 3, 3, 3], [1, 2])

    def pool(features, form, content=None):
        with tf.GradientTape() as tape:
            tape.watch(features)
            layer = RoIAlign(features, content, form)
            pooled = layer.from_levels(boxes, levels, 3)
            called = layer(boxes, 2)
        return pooled, called, tape.gradient(pooled, features, upstream)

    padded = {
        level: tf.pad(each, [[0, 0], [0, 64 // 2**level], [0, 32 // 2**level], [0, 0]])
        for level, each in whole.items()
    }
    content = Content.of_images(tf.constant([[HEIGHT, WIDTH]] * 2), 32)
    for form in FORMS:
        expected, found = pool(whole, form), pool(padded, form, content)
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        for level, gradient in expected[2].items():
            inside = found[2][level][:, : gradient.shape[1], : gradient.shape[2]]
            np.testing.assert_allclose(inside, gradient, rtol=1e-4, atol=1e-5)
    # Each image has an end of its own.
    sizes = tf.constant([[HEIGHT, WIDTH], [32, 64]])
    cut = {level: Content(sizes // 2**level).keep(each) for level, each in whole.items()}
    alone = {level: each[1:, : 32 // 2**level, : 64 // 2**level] for level, each in cut.items()}
    for form in FORMS:
        both = RoIAlign(cut, Content.of_images(sizes, 32), form)(boxes, 3)
        one = RoIAlign(alone, form=form)(boxes[1:], 3)
        np.testing.assert_allclose(both[1:], one, rtol=1e-4, atol=1e-5)


def test_gradients_of_halves_are_summed_in_float32():
    """A cell that all samples of many RoIs read: sums in bfloat16 would stop growing at 256."""
    features = {2: tf.zeros([1, 8, 8, 1], tf.bfloat16)}
    boxes = tf.tile(tf.constant([[[0.0, 0, 32, 32]]]), [1, 600, 1])
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = RoIAlign(features, form=GATHER)(boxes, 2)
    assert pooled.dtype == tf.bfloat16
    gradient = tf.cast(tape.gradient(pooled, features)[2], tf.float64)
    # Each of the 600 gives 4 bins' gradients of 1 to the cells: the whole is theirs to 2 ** -8.
    assert float(tf.reduce_sum(gradient)) == pytest.approx(2400, rel=2**-8)


@pytest.mark.parametrize("form", [GATHER, CROP])
def test_the_number_of_regions_stays_known_for_features_of_open_sizes(form):
    specs = {level: tf.TensorSpec([1, None, None, 3]) for level in LEVELS}

    @tf.function(input_signature=[specs, tf.TensorSpec([1, 5, 4])], autograph=False)
    def pool(features, boxes):
        pooled = RoIAlign(features, form=form)(boxes, 7)
        assert pooled.shape == [1, 5, 7, 7, 3]
        return pooled

    pool.get_concrete_function()
