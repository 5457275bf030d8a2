"""Tests of the batches of evaluation, on records drawn here."""

import numpy as np
import tensorflow as tf
from drawn_records import SETTINGS, by_image, example, pixels, write
from PIL import Image

from rethink_tf.data import schema
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import store

PADDING = schema.PADDING_IMAGE_ID


def test_evaluation_is_of_all_images_whatever_is_trained_on(drawn):
    pipeline = Pipeline(**SETTINGS, num_images=4)
    assert len(pipeline.selected_index(drawn)) == 4
    index = pipeline.evaluation_index(drawn)
    assert index.image_id.tolist() == list(range(1, 11))
    assert set(by_image(pipeline.evaluation(drawn, 2))) - {PADDING} == set(range(1, 11))

    same = Pipeline(**SETTINGS, num_images=4, evaluation_num_images=4)
    chosen = same.selected_index(drawn).image_id.tolist()
    assert same.evaluation_index(drawn).image_id.tolist() == chosen
    assert set(by_image(same.evaluation(drawn, 2))) - {PADDING} == set(chosen)


def test_evaluation_has_each_image_once_and_padding(drawn):
    batches = list(Pipeline(**SETTINGS).evaluation(drawn, 4))

    spec = schema.evaluation_spec(4)
    for batch in batches:
        schema.check_batch(batch, spec)
    ids = [batch["image_id"].numpy().tolist() for batch in batches]
    assert sorted(sum(ids, [])) == [PADDING, PADDING, *range(1, 11)]
    # As many batches as there must be; one alone has both orientations.
    mixed = [len({image_id <= 6 for image_id in batch if image_id > 0}) for batch in ids]
    assert sorted(mixed) in ([1, 1, 1], [1, 1, 2])
    last = next(batch for batch in batches if PADDING in batch["image_id"].numpy())
    padding = last["image_id"].numpy() == PADDING
    assert not last["image"][padding].numpy().any() and len(last["padding"]) == 1
    assert last["image_size"][padding].numpy().tolist() == [[1, 1]] * 2
    expected = Image.fromarray(pixels(7, 40, 32)).resize((30, 38), Image.Resampling.BILINEAR)
    found = by_image(batches)[7]["image"][:38, :30].astype(int)
    assert abs(found - np.asarray(expected)).max() <= 1


def test_evaluation_in_further_sizes(tmp_path):
    """Two images of 20 x 28, and one of 20 x 80, which the pipeline's longest side makes small."""
    sizes = {1: (20, 28), 2: (20, 80), 3: (20, 28)}
    source = write(tmp_path, [example(i, size) for i, size in sizes.items()])
    pipeline, further = Pipeline(**SETTINGS), [(64, 400), (15, 400), (64, 100)]
    batches = list(pipeline.evaluation(source, 2, further_sizes=further))

    expected = {
        1: [[30, 42], [64, 90], [15, 21], [64, 90]],
        2: [[11, 45], [64, 256], [15, 60], [25, 100]],
    }
    expected[3] = expected[1]
    for place, batch in enumerate(batches):
        ids, sizes = batch["image_id"].numpy().tolist(), batch["image_size"].numpy().tolist()
        assert ids == batches[place // 4 * 4]["image_id"].numpy().tolist()
        sizes = [s for s, image_id in zip(sizes, ids, strict=True) if image_id > 0]
        assert sizes == [expected[image_id][place % 4] for image_id in ids if image_id > 0]
        # The given shape in the pipeline's own size, in the others as tight as can be.
        tight = tuple(-(-np.max(sizes, 0) // 32) * 32)
        assert tuple(batch["image"].shape[1:3]) == (tight if place % 4 else (32, 48))
    ids = sorted(tuple(batch["image_id"].numpy()) for batch in batches[::4])
    assert sorted(sum(ids, ())) == [PADDING, 1, 2, 3] and len(ids) == 2
    for batch in batches:
        schema.check_batch(batch, schema.evaluation_spec(2))
    # From the stored image, not from the one in the pipeline's own size.
    expected = Image.fromarray(pixels(1, 20, 28)).resize((90, 64), Image.Resampling.BILINEAR)
    image = by_image(batches[1::4])[1]["image"][:64, :90].astype(int)
    assert abs(image - np.asarray(expected)).max() <= 1
    index = store.load_index(source)
    assert pipeline.num_evaluation_batches(index, 2) == 2


def test_evaluation_is_shared_by_workers_equally(drawn):
    def ids(worker):
        context = tf.distribute.InputContext(2, worker, num_replicas_in_sync=2)
        dataset = Pipeline(**SETTINGS).evaluation(drawn, 4, context)
        return [batch["image_id"].numpy().tolist() for batch in dataset]

    whole = [
        batch["image_id"].numpy().tolist() for batch in Pipeline(**SETTINGS).evaluation(drawn, 4)
    ]
    assert [one + other for one, other in zip(ids(0), ids(1), strict=True)] == whole
