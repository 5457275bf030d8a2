"""Tests of rethink_tf/data/input/pipeline.py, on records drawn here and photographs."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from drawn_records import SETTINGS, assert_same_batches, by_image, example, pixels, write
from PIL import Image
from pycocotools.coco import COCO

from rethink_tf.data import schema
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.input.reading import PipelineCounters
from rethink_tf.data.records import store
from rethink_tf.data.sources import coco

PADDING = schema.PADDING_IMAGE_ID
CATEGORY_IDS = [7, 3, 90]


def training(source, batch_size=2, seed=1, category_ids=CATEGORY_IDS, rest=None, **changes):
    """The dataset of `Pipeline.training` with `rest` for its other arguments."""
    pipeline = Pipeline(**SETTINGS | changes)
    return pipeline.training(source, category_ids, batch_size, seed, **rest or {})


def take(dataset, count):
    return list(itertools.islice(dataset, count))


def test_batches_meet_the_contract_in_given_shapes(drawn):
    batches = take(training(drawn), 10)

    spec = schema.training_spec(2, None, 3, 8)
    shapes = set()
    for batch in batches:
        schema.check_batch(batch, spec, num_classes=3)
        shapes.add(tuple(batch["image"].shape))
    assert (
        {(2, 32, 48, 3), (2, 48, 32, 3)}
        <= shapes
        <= {(2, 32, 48, 3), (2, 48, 32, 3), (2, 48, 48, 3)}
    )
    assert training(drawn).element_spec == spec | {"padding": tf.TensorSpec([None], tf.bool)}
    assert set(by_image(batches)) == set(range(1, 11))


def test_tight_shapes_follow_from_the_sizes_drawn(drawn):
    """In 23 x 45 pixels the landscape images, in 38 x 30 the portrait ones."""
    settings = {"buckets": None, "rest": {"multiple": 16}}
    shapes = set()
    for batch in take(training(drawn, **settings), 15):
        shape, sizes = tuple(batch["image"].shape[1:3]), batch["image_size"].numpy()
        assert shape == tuple(-(-sizes.max(0) // 16) * 16)
        is_full = (-(-sizes // 16) * 16 == shape).all()
        assert len(batch["padding"]) == (0 if is_full else 1)
        shapes.add(shape)
    assert {(32, 48), (48, 32)} <= shapes <= {(32, 48), (48, 32), (48, 48)}
    # A compiler gets a few fixed ones, and one program for each, padded or not.
    settings["rest"] |= {"is_compiled": True}
    few = take(
        training(drawn, **settings, min_side=(16, 30), min_side_sampling="range", max_shapes=2), 25
    )
    assert len({tuple(batch["image"].shape) for batch in few}) <= 2
    assert all(len(batch["padding"]) == 1 for batch in few)
    sizes = np.concatenate([batch["image_size"] for batch in few]).min(1)
    assert sizes.min() < 18 and sizes.max() > 26  # none was shrunk into a shape


def test_image_boxes_and_masks_by_hand(drawn):
    image = by_image(take(training(drawn, flip_probability=0), 10))[2]

    # 20x40: 40 * 30 / 20 = 60 is above 45, so 22.5 x 45; 22.5 rounds to 23.
    assert image["image_size"].tolist() == [23, 45]
    assert image["original_size"].tolist() == [20, 40]
    np.testing.assert_allclose(image["image_scale"], [23 / 20, 45 / 40], rtol=1e-6)
    expected = Image.fromarray(pixels(2, 20, 40)).resize((45, 23), Image.Resampling.BILINEAR)
    assert abs(image["image"][:23, :45].astype(int) - np.asarray(expected)).max() <= 1
    np.testing.assert_allclose(image["boxes"][0], [4.6, 11.25, 18.4, 33.75], rtol=1e-5)
    assert image["classes"].tolist() == [1, 0, 0]  # category 3 is the smallest of 3, 7, 90
    # The box is 12 x 20, the mask its left half and its lower half; the crop 8 x 8.
    inside = image["masks"][0] >= 128
    assert inside[:4, :4].all() and inside[4:].all() and not inside[:4, 4:].any()


def test_flip_mirrors_image_boxes_and_masks(drawn):
    straight = by_image(take(training(drawn, flip_probability=0), 10))
    flipped = by_image(take(training(drawn, flip_probability=1), 10))

    for image_id, image in straight.items():
        mirrored, width = flipped[image_id], image["image_size"][1]
        content = image["image"][:, :width].astype(int)
        assert abs(content[:, ::-1] - mirrored["image"][:, :width]).max() <= 1
        for box, other in zip(image["boxes"], mirrored["boxes"], strict=True):
            y1, x1, y2, x2 = box
            wanted = [y1, width - x2, y2, width - x1] if box.any() else box
            np.testing.assert_allclose(other, wanted, atol=1e-4)
        np.testing.assert_array_equal(image["masks"][:, :, ::-1], mirrored["masks"])


def test_about_half_are_flipped_and_each_image_both_ways(drawn):
    straight = by_image(take(training(drawn, flip_probability=0), 10))
    flips = {1: [], 7: []}
    for batch in take(training(drawn), 120):
        for image_id, image in by_image([batch]).items():
            if image_id in flips:
                flips[image_id].append((image["image"] != straight[image_id]["image"]).any())

    assert 0.2 < np.mean(flips[1]) < 0.8 and 0.2 < np.mean(flips[7]) < 0.8


def test_resumed_run_gets_the_same_batches(drawn):
    settings = {"min_side": (20, 25, 30), "min_side_sampling": "choice"}
    whole = take(training(drawn, **settings), 9)

    resumed = take(training(drawn, **settings, rest={"start_step": 5}), 4)

    assert_same_batches(whole[5:], resumed)
    other_seed = take(training(drawn, **settings, seed=2), 9)
    ids = [[batch["image_id"].numpy().tolist() for batch in run] for run in (whole, other_seed)]
    assert ids[0] != ids[1]


def test_pipelines_and_replicas_share_the_global_batch(drawn):
    whole = take(training(drawn, batch_size=4), 3)
    shares = []
    for pipeline_id in range(2):
        context = tf.distribute.InputContext(2, pipeline_id, num_replicas_in_sync=4)
        shares.append(take(training(drawn, batch_size=4, rest={"input_context": context}), 6))

    for step, batch in enumerate(whole):
        parts = [share[2 * step + replica] for share in shares for replica in range(2)]
        joined = {key: tf.concat([part[key] for part in parts], 0) for key in batch}
        joined[schema.PADDING] = parts[0][schema.PADDING]
        assert_same_batches([batch], [joined])


def test_records_on_a_remote_file_system_are_those_of_a_local_one(drawn):
    remote = "ram://records/drawn"
    tf.io.gfile.makedirs(remote)
    for name in tf.io.gfile.listdir(str(drawn)):
        tf.io.gfile.copy(f"{drawn}/{name}", f"{remote}/{name}", overwrite=True)
    shares = []
    for pipeline_id in range(2):
        rest = {"input_context": tf.distribute.InputContext(2, pipeline_id, 2)}
        shares.append(take(training(remote, batch_size=2, rest=rest), 5))
        local = take(training(drawn, batch_size=2, rest=rest), 5)
        assert_same_batches(local, shares[-1])
    ids = [{int(batch["image_id"][0]) for batch in share} for share in shares]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == set(range(1, 11))


def test_micro_batches_are_the_global_batch_in_order(drawn):
    sides = {"min_side": (20, 25, 30), "min_side_sampling": "choice"}
    whole = take(training(drawn, batch_size=8, **sides), 3)[1:]
    shares = []
    for pipeline_id in range(2):
        context = tf.distribute.InputContext(2, pipeline_id, num_replicas_in_sync=2)
        rest = {"input_context": context, "accumulate_steps": 2, "start_step": 1}
        shares.append(take(training(drawn, batch_size=8, **sides, rest=rest), 4))

    for step, batch in enumerate(whole):
        parts = [share[2 * step + part] for part in range(2) for share in shares]
        assert all(len(part["image"]) == 2 for part in parts)
        height, width = batch["image"].shape[1:3]
        for part in parts:
            # Each micro-batch has a shape of its own.
            part["image"] = tf.image.pad_to_bounding_box(part["image"], 0, 0, height, width)
        joined = {key: tf.concat([part[key] for part in parts], 0) for key in batch}
        joined[schema.PADDING] = batch[schema.PADDING]
        assert_same_batches([batch], [joined])


def test_strategy_gives_each_replica_its_share(drawn, two_cpus):
    strategy = tf.distribute.MirroredStrategy(two_cpus)

    distributed = strategy.distribute_datasets_from_function(
        lambda context: training(drawn, batch_size=4, rest={"input_context": context})
    )

    for batch, whole in zip(
        take(distributed, 3), take(training(drawn, batch_size=4), 3), strict=True
    ):
        parts = strategy.experimental_local_results(batch["image_id"])
        assert tf.concat(parts, 0).numpy().tolist() == whole["image_id"].numpy().tolist()


def test_batch_that_cannot_be_shared_is_an_error(drawn):
    context = tf.distribute.InputContext(1, 0, num_replicas_in_sync=4)

    with pytest.raises(ValueError, match="6 images cannot be shared equally by 4 replicas"):
        training(drawn, batch_size=6, rest={"input_context": context})
    with pytest.raises(ValueError, match="6 images .* by 1 replicas .* in 4 micro-batches"):
        training(drawn, batch_size=6, rest={"accumulate_steps": 4})


def test_shorter_side_is_drawn_from_those_given(drawn):
    settings = {"min_side": (16, 20), "max_side": 60, "buckets": [(64, 64)]}
    batches = take(training(drawn, **settings, min_side_sampling="choice"), 40)

    sides = [int(size.min()) for batch in batches for size in batch["image_size"].numpy()]
    assert set(sides) == {16, 20} and 20 < sides.count(16) < 60


def test_image_larger_than_every_bucket_is_shrunk_not_cropped(drawn):
    batches = take(training(drawn, buckets=[(20, 20)]), 5)

    found = by_image(batches)
    assert batches[0]["image"].shape == [2, 20, 20, 3]
    sizes = {tuple(image["image_size"]) for image in found.values()}
    assert sizes <= {(10, 20), (20, 16)}  # halves of 23x45 and 38x30 that fit
    dataset = training(drawn, buckets=[(20, 20)])
    assert dataset.element_spec["image"].shape == [2, 20, 20, 3]


def test_crowds_are_left_out_and_the_largest_objects_kept(tmp_path):
    boxes = [(0, 0, 4, 4), (0, 0, 20, 20), (0, 0, 8, 8), (0, 10, 10, 20), (5, 5, 18, 18)]
    source = write(tmp_path, [example(1, (20, 20), boxes, [3, 3, 7, 7, 90], [0, 1, 0, 0, 0])])
    counters = PipelineCounters()
    dataset = training(source, 1, flip_probability=0, rest={"counters": counters})

    batch = next(iter(dataset))

    assert batch["classes"].numpy().tolist() == [[2, 2, 3]]  # in their own order
    np.testing.assert_allclose(batch["boxes"][0, 0], [0, 0, 12, 12], rtol=1e-5)
    assert counters.cut_objects >= 1  # the 4 x 4 one; the pipeline may be some batches ahead
    assert counters.as_dict()["skipped_records"] == 0


def test_empty_images_can_be_left_out_and_subsets_taken(drawn):
    index = store.load_index(drawn)

    kept = Pipeline(keep_empty=False).training_index(index)
    assert kept.image_id.tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert len(Pipeline(keep_empty=True).training_index(index)) == 10
    assert len(Pipeline(num_images=4).training_index(index)) == 4
    batches = take(training(drawn, keep_empty=True), 10)
    assert not by_image(batches)[6]["classes"].any()


def test_images_of_crowds_alone_are_empty_and_what_is_left_out_is_said(tmp_path, caplog):
    """As Detectron2's filter_images_with_only_crowd_annotations: 2 of 4 images stay."""
    box = (0, 0, 9, 9)
    images = [
        example(1, (20, 20), [box], [3], [0]),
        example(2, (20, 20), [], [], []),
        example(3, (20, 20), [box], [3], [1]),  # a crowd alone
        example(4, (20, 20), [box, box], [3, 7], [1, 0]),
    ]
    source = write(tmp_path / "some", images)
    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO", "absl"):
        kept = Pipeline(keep_empty=False).training_index(source)
    assert kept.image_id.tolist() == [1, 4]
    assert "2 of 4 images left out, without any object (crowds aside)" in caplog.text
    batches = take(training(source, 1, keep_empty=False), 6)
    assert set(by_image(batches)) == {1, 4}

    source = write(tmp_path / "none", images[1:3])
    with pytest.raises(ValueError, match=r"none: no image has an object .*keep_empty = False"):
        Pipeline(keep_empty=False).training_index(source)


@pytest.mark.parametrize("setting", ["num_images", "evaluation_num_images"])
def test_a_subset_larger_than_the_data_names_setting_and_folder(drawn, setting):
    pipeline = Pipeline(**{setting: 11})
    choose = pipeline.selected_index if setting == "num_images" else pipeline.evaluation_index
    with pytest.raises(ValueError, match=f"Pipeline.{setting}, for .*drawn.*11 images .* has 10"):
        choose(drawn)


@pytest.mark.parametrize("included", [True, False])
def test_difficult_objects_are_trained_on_or_not(tmp_path, included):
    boxes = [(0, 0, 8, 8), (0, 10, 10, 20), (5, 5, 18, 18)]
    one = example(1, (20, 20), boxes, [3, 7, 90], [0, 0, 0], difficult=[0, 1, 0])
    # Data without the flag is all trained on.
    two = example(2, (20, 20), boxes, [3, 7, 90])
    source = write(tmp_path, [one, two])

    found = by_image(take(training(source, 2, include_difficult=included), 2))

    assert found[1]["classes"].tolist() == ([1, 2, 3] if included else [1, 3, 0])
    assert found[2]["classes"].tolist() == [1, 2, 3]


def test_data_without_masks(tmp_path):
    source = write(tmp_path, [example(1, (20, 30), [(1, 2, 9, 9)], with_masks=False)])

    batch = next(iter(training(source, 1, include_masks=False)))
    schema.check_batch(batch, schema.training_spec(1, None, 3, None))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1.*has 0 masks.*include_masks"):
        next(iter(training(source, 1)))


def test_unknown_category_is_named(tmp_path):
    source = write(tmp_path, [example(5, (20, 30), [(1, 2, 9, 9)], labels=[4])])

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image 5\) has category id 4"):
        next(iter(training(source, 1)))


def test_bad_settings_are_errors(drawn):
    with pytest.raises(ValueError, match="max_side 100 is below min_side 200"):
        Pipeline(min_side=200, max_side=100)
    with pytest.raises(ValueError, match="min_side is 0"):
        Pipeline(min_side=0)
    with pytest.raises(ValueError, match="flip_probability is 2"):
        Pipeline(flip_probability=2)
    with pytest.raises(ValueError, match="no categories"):
        training(drawn, category_ids=[])


def test_records_of_model_gardens_own_builder(tmp_path):
    from official.vision.data import tf_example_builder

    image = pixels(3, 24, 30)
    mask = np.zeros([1, 24, 30], np.uint8)
    mask[0, 6:18, 3:27] = 1
    builder = tf_example_builder.TfExampleBuilder()
    builder.add_image_matrix_feature(image, "PNG", b"33")
    builder.add_boxes_feature([0.1], [0.9], [0.25], [0.75], [7])
    builder.add_instance_mask_matrices_feature(mask)
    source = write(tmp_path, [builder.example.SerializeToString()])

    batch = next(iter(training(source, 1, min_side=24, flip_probability=0)))

    assert batch["image_id"].numpy() == [33] and batch["classes"][0, 0] == 2
    np.testing.assert_allclose(batch["boxes"][0, 0], [6, 3, 18, 27], rtol=1e-5)
    np.testing.assert_array_equal(batch["image"][0, :24, :30], image)
    assert batch["masks"][0, 0].numpy().min() > 128


def test_photograph_against_pycocotools(shared_dir, tmp_path):
    data = shared_dir / "data" / "coco_tiny"
    annotations = str(data / "annotations" / "instances_val2017.json")
    output = str(tmp_path / "records")
    coco.convert(str(data / "val2017"), annotations, output, 1, num_workers=0, progress=False)
    truth = COCO(annotations)
    ids = [category["id"] for category in store.load_categories(output)]

    found = by_image(take(Pipeline(flip_probability=0).training(output, ids, 1, 0), 30))

    checked = 0
    for image_id, image in found.items():
        objects = truth.loadAnns(truth.getAnnIds(imgIds=image_id, iscrowd=False))
        count = (image["classes"] > 0).sum()
        assert count == len(objects)
        for row in range(count):
            checked += _is_annotation(truth, objects[row], image, row, ids)
    assert len(found) == 20 and checked > 100


def _is_annotation(truth, annotation, image, row, ids):
    """Asserts that an object is a COCO annotation: its class, its box and, pasted, its mask."""
    x, y, w, h = annotation["bbox"]
    scale = np.tile(image["image_scale"], 2)
    np.testing.assert_allclose(image["boxes"][row] / scale, [y, x, y + h, x + w], atol=0.01)
    assert ids[image["classes"][row] - 1] == annotation["category_id"]
    mask = truth.annToMask(annotation)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    i = np.floor((rows - y) / h * 112).astype(int)
    j = np.floor((columns - x) / w * 112).astype(int)
    within = (i >= 0) & (i < 112) & (j >= 0) & (j < 112)
    pasted = within & (image["masks"][row][i.clip(0, 111), j.clip(0, 111)] >= 128)
    iou = (pasted & (mask > 0)).sum() / np.maximum((pasted | (mask > 0)).sum(), 1)
    # Pixels of thin objects lie half in and half out of the continuous box.
    assert iou > (0.95 if mask.sum() > 1000 else 0.7), (annotation["id"], iou)
    return 1
