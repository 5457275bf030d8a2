"""Tests of benchmarks/input_pipeline.py and photographs.py: that both sides do the same work."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import input_pipeline, photographs
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import store, tfrecord_files

# The photographs' own size, so that both sides leave it: they shrink in different ways.
SHORT, LONG = 480, 640


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return photographs.make_records(tmp_path_factory.mktemp("photographs") / "a", 6, 3, 1)


def test_photographs_are_those_of_their_seed_and_like_cocos(drawn, tmp_path):
    again = photographs.make_records(tmp_path / "again", 6, 3, 1)
    other = photographs.make_records(tmp_path / "other", 6, 4, 1)

    index = store.load_index(drawn)
    shards = [pathlib.Path(store.load_index(each).paths[0]) for each in (drawn, again, other)]
    assert shards[0].read_bytes() == shards[1].read_bytes() != shards[2].read_bytes()
    assert {*zip(index.height, index.width, strict=True)} <= set(photographs.SIZES)
    assert 120_000 < index.length.mean() < 220_000
    assert index.num_objects.min() >= 1
    assert not store.load_manifest(drawn)["skipped"]


def test_model_garden_reads_our_records_as_we_do(drawn):
    from official.vision.dataloaders import maskrcnn_input, tf_example_decoder

    index = store.load_index(drawn)
    row = int(np.flatnonzero(index.height < index.width)[0])
    ids = [category["id"] for category in store.load_categories(drawn)]
    # In the shape that Model Garden pads to.
    shapes = {"min_side": SHORT, "max_side": LONG, "buckets": [(512, LONG)]}
    pipeline = Pipeline(**shapes, flip_probability=0, parallel_records=2)
    ours = next(iter(pipeline.training(index.select([row]), ids, 1, seed=0)))
    payload = dict(tfrecord_files.read_frames(index.paths[0]))[index.offset[row]]

    parser = maskrcnn_input.Parser([SHORT, LONG], 2, 6, 1, [0.5, 1.0, 2.0], 8.0, include_mask=True)
    decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)
    image, labels = parser.parse_fn(True)(decoder.decode(tf.constant(payload)))

    labels = {key: labels[key].numpy() for key in ("gt_boxes", "gt_classes", "gt_masks")}
    ours.pop("padding")
    ours = {key: value[0].numpy() for key, value in ours.items()}
    count, height, width = index.num_objects[row], index.height[row], index.width[row]
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    levels = (image.numpy() * deviation + mean) * 255
    assert levels.shape == ours["image"].shape == (512, LONG, 3)
    # Model Garden's decoding of JPEG is the fast one.
    difference = abs(levels - ours["image"])[:height, :width]
    assert difference.mean() < 2 and difference.max() < 30
    np.testing.assert_allclose(labels["gt_boxes"][:count], ours["boxes"][:count], atol=0.02)
    assert labels["gt_classes"][:count].tolist() == ours["classes"][:count].tolist()
    assert abs(labels["gt_masks"][:count] - ours["masks"][:count] / 255).mean() < 0.05


def test_rows_by_hand():
    def runs(rate, cpu):
        each = {"images_per_second": rate, "cpu_seconds": cpu}
        return [each | {"peak_bytes": 3e9, "start_bytes": 1e9}] * 3

    measured = {
        "ours": runs(100.0, 0.02),
        "Model Garden": runs(20.0, 0.1),
        "Model Garden, deterministic": runs(10.0, 0.2),
    }

    rows = input_pipeline.make_rows(measured, accelerator_rate=10.0)

    found = {row[0]: row[1:] for row in rows}
    assert found["ours"] == pytest.approx([100, 5, 20, 5, 50, 10, 3, 2])
    assert found["Model Garden, deterministic"] == pytest.approx([10, 0.5, 200, 0.5, 5, 1, 3, 2])
