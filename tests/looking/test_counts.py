"""How batches are filled, and which images are compared, by hand values."""

import types

from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import store
from rethink_tf.looking import batch_fill, similar


def index_of(*sizes):
    rows = [
        {"shard": 0, "offset": 100 * k, "length": 90, "image_id": k, "height": h, "width": w,
         "num_objects": 1}
        for k, (h, w) in enumerate(sizes)
    ]  # fmt: skip
    return store.RecordIndex.from_rows("/data/train", ["/data/train/a.tfrecord"], rows)


def test_how_batches_are_filled():
    # As resized 64 x 64, twice, and 64 x 128, twice: images of like sizes meet.
    index = index_of((50, 50), (128, 128), (50, 100), (64, 128))
    tight, few = batch_fill.measure(Pipeline(min_side=64, max_side=128), index, 2, 1, 32, False)
    assert tight.what == "as tight as each batch allows (this run)"
    assert (tight.num_batches, tight.content, tight.pixels_per_image) == (2, 1.0, 64 * 96)
    assert sorted(tight.shapes) == [((64, 64), 1), ((64, 128), 1)]
    assert few.what == "at most 8, for a compiler" and few.content == 1.0

    bucket = Pipeline(min_side=64, max_side=128, buckets=((96, 128),))
    own, tight, few = batch_fill.measure(bucket, index, 4, 1, 32, False)
    assert own.what == "Pipeline.buckets (this run)" and own.shapes == [((96, 128), 1)]
    assert own.content == (2 * 64 * 64 + 2 * 64 * 128) / (4 * 96 * 128)
    assert tight.content == 0.75 and tight.shapes == [((64, 128), 1)]

    # Two micro-batches of two images each: a shape each.
    own, *_ = batch_fill.measure(Pipeline(min_side=64, max_side=128), index, 4, 1, 32, False, 2)
    assert own.num_batches == 2

    compiled = Pipeline(min_side=64, max_side=128, max_shapes=1)
    own, tight = batch_fill.measure(compiled, index, 2, 1, 32, True)
    assert own.what == "at most 1, for a compiler (this run)" and own.content == 0.75
    assert tight.content == 1.0


def test_evaluation_takes_up_to_half_of_the_images_that_are_compared():
    def counts(train, test, num_images):
        tables = {
            name: types.SimpleNamespace(index=index_of(*[(32, 32)] * count))
            for name, count in (("training", train), ("evaluation", test))
        }
        chosen = similar._choose(tables, num_images)
        assert len(set(chosen)) == len(chosen)
        return [sum(name == split for name, _ in chosen) for split in tables]

    assert counts(1000, 400, 2000) == [1000, 400]
    assert counts(1000, 400, 200) == [100, 100]
    assert counts(1000, 40, 200) == [160, 40]
    assert counts(30, 400, 200) == [30, 170]
    assert counts(30, 40, 0) == [0, 0]
