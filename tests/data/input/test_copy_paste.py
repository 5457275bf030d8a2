"""Tests of rethink_tf/data/input/copy_paste.py: against NumPy on masks, and in the pipeline."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from drawn_records import assert_same_batches, ellipse, example, pixels, png, write
from PIL import Image

from rethink_tf.data import schema
from rethink_tf.data.input import augment, copy_paste, decode
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.input.reading import PipelineCounters
from rethink_tf.data.input.resizing import LargeScaleJitter
from rethink_tf.data.records import store

SIZE = (40, 48)
SIDE = 16
ROWS = 5
# Of the first image: one that the second's left object hides, one it cuts, one beside both.
FIRST = [(10, 10, 18, 18), (12, 16, 30, 40), (32, 2, 38, 12)]
SECOND = [(5, 5, 24, 24), (2, 36, 10, 46)]
ALL, LAST = (
    [0.99, 0.1, 0.2, 0, 0, 0],
    [0.5, 0.9, 0.1, 0, 0, 0],
)  # draws: how many, and in which order


@pytest.fixture(scope="module")
def paste():
    """A function from two records, mirrors, sizes and draws to the element, traced once."""
    scalar, flag, pair = (
        tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool), tf.TensorSpec([2], tf.int32)
    )  # fmt: skip
    draws = tf.TensorSpec([1 + ROWS], tf.float32)

    def hold(serialized, flip, size, image_id):
        drawn = {"flip": flip, "size": size, "stored": tf.constant(SIZE)}
        # The upper left part of what is larger than the bucket.
        drawn["view"] = tf.concat([[0, 0], tf.minimum(size, SIZE)], 0)
        drawn["image_id"] = tf.constant(image_id, tf.int64)
        parsed = decode.parse_image_and_objects(serialized, with_masks=True)
        image = decode.decode_image(parsed["image/encoded"], drawn, tf.constant(SIZE))
        ids = tf.constant([3, 7], tf.int64)
        chosen, _ = decode.choose_objects(parsed, drawn, ids, ROWS, with_masks=True)
        return copy_paste.hold(image, chosen, drawn, ROWS)

    @tf.function(input_signature=[scalar, flag, pair, scalar, flag, pair, draws], autograph=False)
    def run(first, flip, size, second, second_flip, second_size, draws):
        first = hold(first, flip, size, 1)
        second = hold(second, second_flip, second_size, 2)
        return copy_paste.paste(first, second, draws, ROWS, SIDE)

    def call(*arguments):
        element, cut = run(*arguments)
        return {key: value.numpy() for key, value in element.items()}, cut.numpy()

    return call


def record(image_id, boxes, label):
    return example(image_id, SIZE, boxes, [label] * len(boxes), shape=ellipse)


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


@pytest.mark.parametrize("flip", [False, True])
def test_composition_is_that_of_numpy(paste, flip):
    """Nothing is resized, so the composition on whole masks is the same to the pixel."""
    found, cut = paste(record(1, FIRST, 3), flip, SIZE, record(2, SECOND, 7), False, SIZE, ALL)

    turn = slice(None, None, -1 if flip else 1)
    back = [ellipse(SIZE, box)[:, turn] > 0 for box in FIRST]
    front = [ellipse(SIZE, box) > 0 for box in SECOND]
    cover = front[0] | front[1]
    image = np.where(cover[..., None], pixels(2, *SIZE), pixels(1, *SIZE)[:, turn])
    np.testing.assert_array_equal(found["image"], image)
    expected = [(mask & ~cover, 1, (mask & cover).any()) for mask in back]
    expected = [each for each in expected if each[0].any()] + [(mask, 2, False) for mask in front]
    assert cut == 0 and found["classes"].tolist() == [each[1] for each in expected] + [0] * (
        ROWS - len(expected)
    )
    assert flip or len(expected) == 4  # the first object is hidden
    for row, (mask, _, is_hidden) in enumerate(expected):
        box = found["boxes"][row]
        assert abs(box - bounds(mask)).max() <= 1  # boxes of ellipses are not of whole pixels
        encoded = tf.constant([png(mask.astype(np.uint8))])
        crop = augment.crop_masks(encoded, box[np.newaxis], SIZE, SIDE)[0]
        np.testing.assert_array_equal(found["masks"][row], crop)
        assert not is_hidden or (paste_back(found["masks"][row], box) & cover).mean() < 0.01
    assert found["image_id"] == 1 and found["image_size"].tolist() == [*SIZE]


def paste_back(crop, box):
    y1, x1, y2, x2 = box
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    i = np.floor((rows - y1) / (y2 - y1) * SIDE).astype(int)
    j = np.floor((columns - x1) / (x2 - x1) * SIDE).astype(int)
    within = (i >= 0) & (i < SIDE) & (j >= 0) & (j < SIDE)
    return within & (crop[i.clip(0, SIDE - 1), j.clip(0, SIDE - 1)] >= 128)


def test_a_cut_object_has_the_box_of_its_rest(paste):
    # A square of which the pasted square takes the left half.
    first = example(1, SIZE, [(10, 10, 20, 30)], [3], shape=square)
    second = example(2, SIZE, [(8, 4, 22, 20)], [7], shape=square)

    found, _ = paste(first, False, SIZE, second, False, SIZE, [0.9, 0, 0, 0, 0, 0])

    assert found["classes"].tolist() == [1, 2, 0, 0, 0]
    assert found["boxes"][:2].tolist() == [[10, 20, 20, 30], [8, 4, 22, 20]]
    assert (found["masks"][:2] >= 128).all() and not found["masks"][2:].any()


def square(size, box):
    y1, x1, y2, x2 = box
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def test_how_many_and_which_are_drawn(paste):
    def labels(draws):
        found, _ = paste(record(1, [], 3), False, SIZE, record(2, SECOND, 7), False, SIZE, draws)
        return found

    assert (labels(ALL)["classes"] == 2).sum() == 2
    nothing = labels([0.3, *ALL[1:]])  # below one of three
    assert not nothing["classes"].any()
    np.testing.assert_array_equal(nothing["image"], pixels(1, *SIZE))
    one = labels(LAST)
    np.testing.assert_allclose(one["boxes"][:2], [SECOND[1], [0] * 4], atol=1e-4)


def test_objects_beside_a_small_image_enlarge_its_content(paste):
    # The first image takes the upper left quarter; the second, at twice its size, all and more.
    half, double = (20, 24), (80, 96)
    first, second = record(1, FIRST[1:2], 3), record(2, [(5, 12, 15, 22)], 7)

    found, _ = paste(first, False, half, second, False, double, [0.9, 0, 0, 0, 0, 0])

    assert found["image_size"].tolist() == [30, 44]
    np.testing.assert_allclose(found["boxes"][1], [10, 24, 30, 44], atol=1e-4)
    mask = Image.fromarray(ellipse(SIZE, (5, 12, 15, 22)) * np.uint8(255))
    mask = np.asarray(mask.resize(double[::-1], Image.Resampling.BILINEAR))[:40, :48] >= 128
    pasted = np.asarray(Image.fromarray(pixels(2, *SIZE)).resize(double[::-1], 2))[:40, :48]
    assert abs(found["image"][mask].astype(int) - pasted[mask]).max() <= 1
    beside = ~mask
    beside[: half[0], : half[1]] = False
    assert not found["image"][beside].any()
    element = {key: value[np.newaxis] for key, value in found.items()}
    schema.check_batch(element, schema.training_spec(1, SIZE, ROWS, SIDE), num_classes=2)


def test_objects_without_a_mask_are_not_pasted_and_hidden_with_all_of_their_box(paste):
    """Of the first image: one under the pasted square, one half under it, one with a mask."""
    boxes = [(10, 6, 20, 18), (10, 12, 20, 40), (30, 30, 38, 46)]
    first = example(1, SIZE, boxes, [3] * 3, shape=square, has_mask=[False, False, True])
    second = [(8, 4, 22, 20), (24, 4, 30, 10), (2, 36, 10, 46)]
    second = example(2, SIZE, second, [7] * 3, shape=square, has_mask=[True, False, False])

    for draw in (0.5, 0.99):
        draws = [draw, 0.4, 0.1, 0.2, 0, 0]
        found, cut = paste(first, False, SIZE, second, False, SIZE, draws)
        assert cut == 0 and found["classes"].tolist() == [1, 1, 2, 0, 0]
        assert found["boxes"][:3].tolist() == [[10, 12, 20, 40], [30, 30, 38, 46], [8, 4, 22, 20]]
        assert found["has_mask"].tolist() == [False, True, True, False, False]
        element = {key: value[np.newaxis] for key, value in found.items()}
        schema.check_batch(element, schema.training_spec(1, SIZE, ROWS, SIDE), num_classes=2)
    nothing, _ = paste(first, False, SIZE, second, False, SIZE, [0.49, 0.4, 0.1, 0.2, 0, 0])
    assert nothing["classes"].tolist() == [1, 1, 1, 0, 0]


def test_of_too_many_the_largest_are_kept(paste):
    boxes = [(0, x, 4 + x // 8, x + 6) for x in (0, 8, 16, 24)]

    found, cut = paste(record(1, boxes, 3), False, SIZE, record(2, SECOND, 7), False, SIZE, ALL)

    assert cut == 1 and found["classes"].tolist() == [1, 1, 1, 2, 2]
    assert found["boxes"][0, 1] == 8  # the smallest went


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Images 1 to 4 are landscape and 5 to 8 portrait."""
    boxes = [(4, 6, 16, 30), (18, 2, 30, 12), (1, 20, 9, 31)]
    sizes = {i: (32, 48) if i <= 4 else (48, 32) for i in range(1, 9)}
    return write(
        tmp_path_factory.mktemp("drawn"),
        [example(i, sizes[i], boxes[i % 2 :], shape=ellipse) for i in sizes],
    )


def batches(source, count, start_step=0, counters=None, **settings):
    common = {"max_objects": 4, "mask_size": SIDE, "parallel_records": 2, "copy_paste": True}
    pipeline = Pipeline(**common | settings)
    dataset = pipeline.training(source, [3], 2, 1, start_step, counters=counters)
    return list(itertools.islice(dataset, count))


def test_jittered_batches_meet_the_contract_and_go_on_after_resumption(drawn):
    settings = {"min_side": 30, "max_side": 45, "jitter": LargeScaleJitter(0.5, 2.0, (64, 64))}

    whole = batches(drawn, 8, **settings)

    for batch in whole:
        schema.check_batch(batch, schema.training_spec(2, None, 4, SIDE), num_classes=1)
    assert_same_batches(whole[5:], batches(drawn, 3, start_step=5, **settings))


def test_batches_are_those_without_it_but_for_what_is_pasted(drawn):
    settings = {"min_side": 30, "max_side": 45, "buckets": ((48, 48),)}

    changed = 0
    for batch, other in zip(
        batches(drawn, 8, **settings), batches(drawn, 8, copy_paste=False, **settings), strict=True
    ):
        schema.check_batch(batch, schema.training_spec(2, None, 4, SIDE), num_classes=1)
        for key in ("image_id", "original_size", "image_scale"):
            np.testing.assert_array_equal(batch[key], other[key])
        changed += (batch["image"].numpy() != other["image"].numpy()).any((1, 2, 3)).sum()

    assert 4 <= changed <= 15


def test_portraits_and_landscapes_meet_in_fixed_shapes(drawn):
    """What is pasted fits the batch, though a shape holds each of both and none of them both."""
    settings = {"min_side": 64, "max_side": 96, "buckets": ((32, 48), (48, 32))}
    counters = PipelineCounters()

    found = batches(drawn, 12, counters=counters, **settings)

    for batch in found:
        schema.check_batch(batch, schema.training_spec(2, None, 4, SIDE), num_classes=1)
    assert counters.skipped_records == 0
    assert {(48, 48)} < {tuple(batch["image"].shape[1:3]) for batch in found}


def test_a_damaged_record_is_named_wherever_it_was_to_be_pasted(tmp_path):
    source = write(
        tmp_path, [example(i, (32, 48), [(4, 6, 16, 30)], shape=ellipse) for i in range(1, 5)]
    )
    index = store.load_index(source)
    path = next(tmp_path.glob("*.tfrecord"))
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    counters = PipelineCounters()

    sides = {"min_side": 30, "max_side": 45}
    found = batches(index, 12, counters=counters, max_skipped_share=0.5, **sides)

    assert all(1 not in batch["image_id"].numpy() for batch in found)
    assert set(counters.skipped_by_record) == {(str(path), 0)}
    # Each epoch of two batches has it once; what is more was to be pasted.
    assert counters.skipped_records > 8


def test_it_needs_masks_and_takes_no_keypoints():
    with pytest.raises(ValueError, match="copy_paste needs masks, and include_masks is False"):
        Pipeline(copy_paste=True, include_masks=False)
    with pytest.raises(ValueError, match="copy_paste and include_keypoints are both set"):
        Pipeline(copy_paste=True, include_keypoints=True)
