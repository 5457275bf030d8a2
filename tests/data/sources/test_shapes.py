"""Tests of rethink_tf/data/sources/shapes.py."""

import json
import os
import pathlib
import threading

import numpy as np
import pytest
from pycocotools.coco import COCO

from rethink_tf.data.records import store, tfrecord_files
from rethink_tf.data.sources import shapes

SMALL = {"num_train": 6, "num_val": 3, "image_size": 64, "seed": 5, "max_objects": 4}
SMALL |= {"num_shards": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shapes.make_shapes(str(tmp_path_factory.mktemp("shapes") / "data"), **SMALL)


def _record_bytes(output, split):
    index = store.load_index(os.path.join(output, split))
    return [pathlib.Path(path).read_bytes() for path in index.paths]


def test_leaves_records_annotations_and_images(made):
    for split, count in (("train", 6), ("val", 3)):
        index = store.load_index(os.path.join(made, split))
        truth = COCO(os.path.join(made, "annotations", f"instances_{split}.json"))
        manifest = store.load_manifest(os.path.join(made, split))

        assert len(index) == len(truth.imgs) == count
        assert len(index.paths) == 2
        assert set(index.height) == set(index.width) == {64}
        assert manifest["num_objects"] == len(truth.anns) and manifest["has_masks"]
        assert manifest["skipped"] == {}
        assert len(os.listdir(os.path.join(made, "images", split))) == count
    assert [c["name"] for c in store.load_categories(os.path.join(made, "val"))] == [
        "circle",
        "rectangle",
        "triangle",
        "star",
    ]


def test_no_image_is_in_both_splits(made):
    ids = [store.load_index(os.path.join(made, split)).image_id for split in ("train", "val")]

    assert not set(ids[0]) & set(ids[1])


def test_same_seed_gives_the_same_bytes_and_another_does_not(made, tmp_path):
    again = shapes.make_shapes(str(tmp_path / "again"), **SMALL)
    other = shapes.make_shapes(str(tmp_path / "other"), **(SMALL | {"seed": 6}))

    for split in ("train", "val"):
        assert _record_bytes(made, split) == _record_bytes(again, split)
        assert _record_bytes(made, split) != _record_bytes(other, split)


def test_validation_images_do_not_follow_the_number_of_training_images(made, tmp_path):
    more = shapes.make_shapes(str(tmp_path / "more"), **(SMALL | {"num_train": 7}))

    assert _record_bytes(made, "val") == _record_bytes(more, "val")


def test_keypoints_are_the_ends_of_the_visible_part(made):
    manifest = store.load_manifest(os.path.join(made, "train"))
    assert manifest["keypoints"] == {"names": list(shapes.KEYPOINTS), "flip_pairs": [[1, 3]]}
    assert manifest["num_keypoints"] == 4 * manifest["num_objects"]
    truth = COCO(os.path.join(made, "train", store.GROUND_TRUTH_FILE))
    for annotation in truth.anns.values():
        rows, columns = np.nonzero(truth.annToMask(annotation))
        top, left, bottom, right = np.reshape(annotation["keypoints"], [4, 3])[:, :2]
        assert top[1] == rows.min() and bottom[1] == rows.max()
        assert left[0] == columns.min() and right[0] == columns.max()
        assert top[0] == columns[rows == rows.min()].mean()
        assert right[1] == rows[columns == columns.max()].mean()


def test_boxes_and_areas_are_those_of_the_visible_pixels(made):
    truth = COCO(os.path.join(made, "train", store.GROUND_TRUTH_FILE))

    for image_id in truth.imgs:
        covered = np.zeros((64, 64), int)
        for annotation in truth.imgToAnns[image_id]:
            mask = truth.annToMask(annotation)
            covered += mask
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
            assert annotation["bbox"] == [columns[0], rows[0], width, height]
            assert annotation["area"] == mask.sum() >= shapes.MIN_VISIBLE_PIXELS
        assert covered.max() == 1


def test_images_hold_every_class_and_every_number_of_shapes():
    counts, labels = set(), set()
    for image_id in range(60):
        pixels, drawn, masks = shapes.draw_image(0, image_id, 64, 3)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        assert masks.shape == (len(drawn), 64, 64)
        counts.add(len(drawn))
        labels |= set(drawn.tolist())

    assert counts == {1, 2, 3}
    assert labels == {1, 2, 3, 4}


def test_drawn_pixels_are_the_mask():
    # A shape has one colour, but for noise and shading; beside it lies the background.
    inside, beside = [], []
    for image_id in range(40):
        pixels, _, masks = shapes.draw_image(1, image_id, 96, 1)
        (mask,) = masks
        inner = mask & np.roll(mask, 2, 0) & np.roll(mask, -2, 0)
        inner &= np.roll(mask, 2, 1) & np.roll(mask, -2, 1)
        wide = mask | np.roll(mask, 2, 0) | np.roll(mask, -2, 0)
        wide |= np.roll(mask, 2, 1) | np.roll(mask, -2, 1)
        colour = np.median(pixels[inner], axis=0)
        inside.append(np.linalg.norm(pixels[inner] - colour, axis=-1).mean())
        beside.append(np.linalg.norm(pixels[~wide] - colour, axis=-1).mean())

    assert max(inside) < 45
    assert min(beside) > 70
    assert np.median(beside) > 5 * np.median(inside)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        # Of a unit circle's diameter squared: pi/4; a square's 1/2; a triangle's 3 sqrt(3)/16.
        ("circle", np.pi / 4),
        ("rectangle", 1 / 2),
        ("triangle", 3 * 3**0.5 / 16),
        # 10 triangles of sides 1/2 and 0.45/2 at 36 degrees.
        ("star", 10 * 0.5 * 0.5 * 0.225 * np.sin(np.pi / 5)),
    ],
)
def test_coverage_has_the_area_of_the_shape(name, area):
    class Fixed:
        """Diameter 60 in the middle of 128 pixels, turned by 0.5; a rectangle is a square."""

        def uniform(self, low, high, size=None):
            if size == 2:
                return np.array([64.3, 63.8])
            return {shapes.MIN_DIAMETER: 60 / 128, 0: 0.5, 0.6: 1.0}[low]

    coverage, window = shapes._draw_coverage(Fixed(), name, 128)

    assert coverage.astype(float).sum() / 255 == pytest.approx(area * 60**2, rel=0.02)
    assert coverage[window].sum() == coverage.sum()
    if name != "triangle":
        centre = (coverage.sum(0) @ np.arange(128), coverage.sum(1) @ np.arange(128))
        assert np.allclose(centre / coverage.sum() + 0.5, [64.3, 63.8], atol=0.1)


def test_what_is_hidden_is_not_drawn():
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 2:8, 2:8] = True  # hidden but for 6 of 36 by the next
    masks[1, 2:8, 3:9] = True
    masks[2, 12:18, 12:18] = True

    assert shapes._visible_enough(masks) == [1, 2]
    masks[0, 2:8, 0:3] = True  # now 18 of 48 are seen
    assert shapes._visible_enough(masks) == [0, 1, 2]


def test_what_hides_only_behind_hidden_shapes_is_drawn():
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 0:10, 0:8] = True  # all but hidden by the second, seen without it
    masks[1, 0:10, 0:10] = True
    masks[2, 0:10, 2:20] = True

    # The first is hidden whole and goes first; 20 of 100 of the second are seen.
    assert shapes._visible_enough(masks) == [2]
    masks[2, 0:10, 2:4] = False
    assert shapes._visible_enough(masks) == [1, 2]


def test_made_once(made):
    before = os.stat(os.path.join(made, shapes.PARAMETERS_FILE)).st_mtime_ns

    assert shapes.make_shapes(made, **SMALL) == made

    assert os.stat(os.path.join(made, shapes.PARAMETERS_FILE)).st_mtime_ns == before


def test_other_arguments_in_the_folder_are_named(made):
    with pytest.raises(ValueError, match="seed is 5 there, 8 is wanted; max_objects is 4 there"):
        shapes.make_shapes(made, **(SMALL | {"seed": 8, "max_objects": 2}))


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="no shapes.json"):
        shapes.make_shapes(str(tmp_path), **SMALL)

    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_empty_folder_is_filled(tmp_path):
    folder = tmp_path / "mounted"
    folder.mkdir()

    shapes.make_shapes(str(folder), **SMALL)

    assert len(store.load_index(folder / "train")) == 6


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_encode_jpeg", stop)
    with pytest.raises(KeyboardInterrupt):
        shapes.make_shapes(str(tmp_path / "data"), **SMALL)

    assert os.listdir(tmp_path) == []


def test_two_at_once_both_end_well(tmp_path):
    folder, results = str(tmp_path / "data"), []

    def make():
        results.append(shapes.make_shapes(folder, **SMALL))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [folder, folder]
    assert os.listdir(tmp_path) == ["data"]
    assert len(store.load_index(os.path.join(folder, "train"))) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_train", 0), ("num_val", -1), ("image_size", 16), ("seed", -1), ("max_objects", 100),
     ("num_shards", 0), ("image_size", 64.0)],
)  # fmt: skip
def test_argument_out_of_range_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"make_shapes.{name} is {value}"):
        shapes.make_shapes(str(tmp_path / "data"), **(SMALL | {name: value}))

    assert os.listdir(tmp_path) == []


def test_fewer_images_than_shards_take_one_each(tmp_path):
    output = shapes.make_shapes(str(tmp_path / "data"), **(SMALL | {"num_shards": 4}))

    assert len(store.load_index(os.path.join(output, "val")).paths) == 3


def test_records_hold_the_images_that_were_drawn(made):
    index = store.load_index(os.path.join(made, "train"))
    _, payload = next(iter(tfrecord_files.read_frames(index.paths[0])))
    jpeg = pathlib.Path(made, "images", "train", "0000001.jpg").read_bytes()

    assert jpeg in payload
    parameters = json.loads(pathlib.Path(made, shapes.PARAMETERS_FILE).read_text())
    assert parameters == {"version": shapes.FORMAT_VERSION} | SMALL
