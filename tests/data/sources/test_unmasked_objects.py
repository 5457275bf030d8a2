"""Objects with a box and no mask, on their way from records to batches."""

import drawn_records
import numpy as np
import tensorflow as tf
from official.vision.dataloaders import tf_example_decoder

from rethink_tf.data import schema
from rethink_tf.data.input import augment
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.input.resizing import LargeScaleJitter
from rethink_tf.data.records import store

SIZE = (32, 48)
BOXES = [(4, 6, 28, 30), (18, 2, 30, 12), (1, 30, 9, 46)]
SPEC = schema.training_spec(1, None, 4, 8)


def take(directory, count, **options):
    pipeline = Pipeline(
        min_side=32,
        max_side=48,
        buckets=(SIZE,),
        max_objects=4,
        mask_size=8,
        parallel_records=2,
        flip_probability=0.0,
        **options,
    )
    index = store.load_index(directory)
    dataset = pipeline.training(index, [3], 1, seed=3)
    for batch in dataset.take(count):
        schema.check_batch(batch, SPEC, num_classes=1)
        batch.pop("padding")
        yield {key: value[0].numpy() for key, value in batch.items()}


def test_batches_say_which_objects_have_a_mask(tmp_path):
    """One record with all masks, one with some, one with none, one without an object."""
    flags = {1: None, 2: [True, False, True], 3: [False] * 3}
    examples = [
        drawn_records.example(key, SIZE, BOXES, has_mask=value) for key, value in flags.items()
    ]
    directory = drawn_records.write(tmp_path, [*examples, drawn_records.example(4, SIZE)])
    for serialized in examples:
        decoded = tf_example_decoder.TfExampleDecoder(include_mask=True).decode(serialized)
        assert decoded["groundtruth_instance_masks"].shape == (3, *SIZE)

    found = {int(batch["image_id"]): batch for batch in take(directory, 4)}

    for key, batch in found.items():
        expected = [] if key == 4 else flags[key] or [True] * 3
        assert batch["has_mask"].tolist() == expected + [False] * (4 - len(expected))
        boxes = np.reshape(BOXES[: len(expected)], [-1, 4])
        np.testing.assert_allclose(batch["boxes"][: len(expected)], boxes, atol=1e-4)
        assert batch["masks"].any(axis=(1, 2)).tolist() == batch["has_mask"].tolist()
    # Jitter and copy-paste keep the contract, and what has no mask.
    jitter = LargeScaleJitter(0.5, 2.0, SIZE)
    seen = [
        tuple(batch["has_mask"][batch["classes"] > 0])
        for batch in take(directory, 24, jitter=jitter, copy_paste=True)
    ]
    assert {True, False} == set(sum(seen, ()))


def test_a_view_cuts_the_box_of_an_object_without_a_mask():
    """Beside two with the same box: one whose mask is in view in part, one whose is not."""
    box = np.array([4, 6, 28, 30], np.float32)
    seen_mask, unseen = np.zeros([2, *SIZE], np.uint8)
    seen_mask[10:12, 8:10], unseen[20:28, 6:30] = 1, 1
    pngs = tf.constant([b"", drawn_records.png(seen_mask), drawn_records.png(unseen)])
    view = tf.constant([0.0, 0.0, 16.0, 48.0])
    cut = augment.clip_to_view(tf.constant(np.tile(box, [3, 1])), view)

    crops, boxes, seen = augment.crop_masks_in_view(
        pngs, cut, tf.constant([True] * 3), tf.constant(SIZE), 8
    )

    assert seen.numpy().tolist() == [True, True, False]
    assert boxes[:2].numpy().tolist() == [[4, 6, 16, 30], [10, 8, 12, 10]]
    assert not crops[0].numpy().any() and crops[1].numpy().all()
