"""Tests of rethink_tf/data/coco.py, coco_checks.py and coco_images.py."""

import copy
import io
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from rethink_tf.data import coco, coco_checks, coco_images, frames, records

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT / ".." / "shared"
HEIGHT, WIDTH = 20, 30


def _rle(mask, compressed):
    encoded = mask_api.encode(np.asfortranarray(mask, np.uint8))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    runs, last = [0], 0
    for value in mask.T.reshape(-1):
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def _blob():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 4:14] = 1
    mask[5, 6] = 0
    return mask


def _dataset():
    """Images 1 to 4; 1: a polygon and a crowd, 2: a compressed RLE, 3: nothing, 4: a polygon."""
    square = [[2, 3, 12, 3, 12, 9, 2, 9]]
    box = [4, 3, 10, 6]
    return {
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH}
            for k in (4, 2, 1, 3)
        ],
        "categories": [{"id": 20, "name": "cat"}, {"id": 3, "name": "ant"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 6], "area": 60.5,
             "iscrowd": 0, "segmentation": square},
            {"id": 12, "image_id": 1, "category_id": 20, "bbox": box, "area": 59, "iscrowd": 1,
             "segmentation": _rle(_blob(), compressed=False)},
            {"id": 13, "image_id": 2, "category_id": 20, "bbox": box,
             "segmentation": _rle(_blob(), compressed=True)},
            {"id": 14, "image_id": 4, "category_id": 3, "bbox": [2, 3, 10, 6], "iscrowd": 0,
             "area": 60, "segmentation": square},
        ],
    }  # fmt: skip


def _pixels(image_id, channels=3):
    rng = np.random.default_rng(image_id)
    return rng.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


@pytest.fixture
def source(tmp_path):
    """(folder of images, path of the JSON, dataset), the JSON still to be written."""
    folder = tmp_path / "images"
    folder.mkdir()
    for image_id in range(1, 5):
        Image.fromarray(_pixels(image_id)).save(folder / f"{image_id}.png")
    return folder, tmp_path / "instances.json", _dataset()


def _convert(source, output="records", num_shards=2, **options):
    folder, path, dataset = source
    path.write_text(dataset if isinstance(dataset, str) else json.dumps(dataset))
    output = str(path.parent / output)
    options = {"num_workers": 0, "progress": False} | options
    return output, coco.convert(str(folder), str(path), output, num_shards, **options)


def _features(output):
    index = records.load_index(output)
    features = {}
    for path in index.paths:
        for _, payload in frames.read_frames(path):
            feature = tf.train.Example.FromString(payload).features.feature
            features[int(feature["image/source_id"].bytes_list.value[0])] = feature
    return features


def _masks(feature):
    return [
        np.asarray(Image.open(io.BytesIO(png)))
        for png in feature["image/object/mask"].bytes_list.value
    ]


def _add(dataset, **changes):
    """Appends annotation 99, a good one except for the changes."""
    dataset["annotations"].append(copy.deepcopy(dataset["annotations"][0]) | {"id": 99} | changes)


def test_manifest_counts_and_truth_is_what_was_given(source):
    output, manifest = _convert(source)

    assert manifest == records.load_manifest(output)
    assert (manifest["num_images"], manifest["num_objects"], manifest["num_crowds"]) == (4, 3, 1)
    assert manifest["categories"] == [
        {"id": 3, "name": "ant", "num_objects": 2},
        {"id": 20, "name": "cat", "num_objects": 1},
    ]
    assert manifest["skipped"] == {} and manifest["num_clipped"] == 0 and manifest["has_masks"]
    assert manifest["source"] == {"images": "images", "annotations": "instances.json"}
    truth = COCO(os.path.join(output, records.GROUND_TRUTH_FILE))
    assert sorted(truth.imgs) == [1, 2, 3, 4]
    for annotation in source[2]["annotations"]:
        assert truth.anns[annotation["id"]].items() >= annotation.items()
    # Annotation 13 states no area: that of its mask.
    assert truth.anns[13]["area"] == _blob().sum()


def test_index_follows_the_image_ids(source):
    index = records.load_index(_convert(source)[0])

    assert index.image_id.tolist() == [1, 2, 3, 4]
    assert index.shard.tolist() == [0, 0, 1, 1]
    assert index.num_objects.tolist() == [1, 1, 0, 1]


def test_model_gardens_decoder_reads_the_records(source):
    from official.vision.dataloaders import tf_example_decoder

    index = records.load_index(_convert(source)[0])
    decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)

    decoded = {}
    for serialized in tf.data.TFRecordDataset(index.paths):
        entry = {key: value.numpy() for key, value in decoder.decode(serialized).items()}
        decoded[int(entry["source_id"])] = entry

    first = decoded[1]
    assert (first["image"] == _pixels(1)).all()
    assert (first["height"], first["width"]) == (HEIGHT, WIDTH)
    assert first["groundtruth_classes"].tolist() == [3, 20]
    assert first["groundtruth_is_crowd"].tolist() == [False, True]
    assert first["groundtruth_area"].tolist() == [60.5, 59]
    corners = first["groundtruth_boxes"] * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    assert np.allclose(corners, [[3, 2, 9, 12], [3, 4, 9, 14]], atol=1e-5)
    square = np.zeros((HEIGHT, WIDTH))
    square[3:9, 2:12] = 1
    assert (first["groundtruth_instance_masks"] == [square, _blob()]).all()
    assert (decoded[2]["groundtruth_instance_masks"] == [_blob()]).all()
    assert decoded[3]["groundtruth_instance_masks"].shape == (0, HEIGHT, WIDTH)
    assert decoded[3]["groundtruth_boxes"].shape == (0, 4)


def test_boxes_alone_convert_without_masks(source):
    for k, annotation in enumerate(source[2]["annotations"]):
        del annotation["segmentation"]
        if k % 2:
            annotation["segmentation"] = []

    output, manifest = _convert(source, strict=True)

    assert manifest["has_masks"] is False and manifest["num_objects"] == 3
    assert all("image/object/mask" not in feature for feature in _features(output).values())


def test_bytes_do_not_depend_on_the_number_of_workers(source):
    here, _ = _convert(source, "here")
    there, _ = _convert(source, "there", num_workers=2)

    assert sorted(os.listdir(here)) == sorted(os.listdir(there))
    for name in os.listdir(here):
        if name != records.INDEX_FILE:  # a zip file holds times
            same = pathlib.Path(here, name).read_bytes() == pathlib.Path(there, name).read_bytes()
            assert same, name


BAD_ANNOTATIONS = {
    "unknown_category": {"category_id": 5},
    "annotation_of_unknown_image": {"image_id": 77},
    "annotation_duplicate_id": {"id": 11},
    "box_without_area": {"bbox": [2, 3, 0, 6]},
    "box_outside_image": {"bbox": [WIDTH, 3, 5, 5]},
    "segmentation_empty": {"segmentation": []},
    "annotation_malformed": {"bbox": [2, float("nan"), 5, 6]},
    "segmentation_malformed": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
}
OTHER_BAD_ANNOTATIONS = [
    ("box_without_area", {"bbox": [2, 3, 4, -6]}),
    ("box_outside_image", {"bbox": [-9, 3, 5, 5]}),
    ("segmentation_empty", {"segmentation": [[]]}),
    ("segmentation_empty", {"segmentation": [[1, 2, 3, 4]]}),
    ("segmentation_empty", {"segmentation": [[50, 50, 60, 50, 60, 60]]}),
    ("segmentation_empty", {"segmentation": None}),
    ("segmentation_malformed", {"segmentation": [[1, 2, 3, 4, 5, "6"]]}),
    ("segmentation_malformed", {"segmentation": [[1, 2, 3, 4, 5, 1e300]]}),
    ("segmentation_malformed", {"segmentation": "polygon"}),
    ("segmentation_malformed", {"segmentation": {"size": [30, 20], "counts": [600]}}),
    ("segmentation_malformed", {"segmentation": {"size": [20, 30], "counts": [599]}}),
    ("segmentation_malformed", {"segmentation": {"size": [20, 30], "counts": [700, -100]}}),
    ("segmentation_malformed", {"segmentation": {"size": [20, 30], "counts": "zzzzzzzzzzzzzzz"}}),
    ("segmentation_malformed", {"segmentation": {"size": [20, 30], "counts": "\x00\x01"}}),
    ("annotation_malformed", {"bbox": [1, 2, 3]}),
    ("annotation_malformed", {"bbox": ["1", 2, 3, 4]}),
    ("annotation_malformed", {"bbox": None}),
    ("annotation_malformed", {"area": float("inf")}),
    ("annotation_malformed", {"iscrowd": 2}),
    ("annotation_malformed", {"image_id": "1"}),
    ("annotation_malformed", {"id": True}),
]


@pytest.mark.parametrize(
    ("reason", "changes"), list(BAD_ANNOTATIONS.items()) + OTHER_BAD_ANNOTATIONS
)
def test_bad_annotation_is_skipped_counted_and_named(source, reason, changes):
    _add(source[2], **changes)

    output, manifest = _convert(source)

    assert manifest["skipped"] == {reason: 1}
    (entry,) = manifest["skipped_entries"]
    assert entry["reason"] == reason
    assert f"annotation {changes.get('id', 99)!r} of image" in entry["entry"]
    assert (manifest["num_objects"], manifest["num_crowds"]) == (3, 1)
    truth = json.loads(pathlib.Path(output, records.GROUND_TRUTH_FILE).read_text())
    assert sorted(a["id"] for a in truth["annotations"]) == [11, 12, 13, 14]


@pytest.mark.parametrize("reason", BAD_ANNOTATIONS)
def test_strict_stops_at_a_bad_annotation(source, reason):
    _add(source[2], **BAD_ANNOTATIONS[reason])

    with pytest.raises(coco_checks.BadEntryError, match=f"{reason}: annotation .*--strict"):
        _convert(source, strict=True)

    assert not (source[1].parent / "records" / records.MANIFEST_FILE).exists()
    with pytest.raises((FileNotFoundError, ValueError)):
        records.load_index(source[1].parent / "records")


def test_annotation_that_is_no_object_is_named_by_its_place(source):
    source[2]["annotations"] += [None, {"id": 5}]

    _, manifest = _convert(source)

    first, second = (entry["entry"] for entry in manifest["skipped_entries"])
    assert first == "annotations[4]: it is a NoneType, not an object"
    assert second == "annotation 5 of image None: no image_id, category_id, bbox"


def _remove(folder):
    (folder / "1.png").unlink()


def _cut(folder):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:300])


def _make_text(folder):
    (folder / "1.png").write_text("no image")


def _make_smaller(folder):
    Image.fromarray(_pixels(1)[:-1]).save(folder / "1.png")


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("image_missing", _remove),
        ("image_unreadable", _cut),
        ("image_unreadable", _make_text),
        ("image_wrong_size", _make_smaller),
    ],
)
def test_bad_image_is_skipped_with_its_annotations(source, reason, damage):
    damage(source[0])

    output, manifest = _convert(source)

    assert manifest["skipped"] == {"annotation_of_skipped_image": 2, reason: 1}
    assert manifest["skipped_entries"][0]["entry"].startswith("image 1 (1.png): ")
    assert (manifest["num_images"], manifest["num_objects"], manifest["num_crowds"]) == (3, 2, 0)
    assert [shard["records"] for shard in manifest["shards"]] == [1, 2]
    assert records.load_index(output).image_id.tolist() == [2, 3, 4]
    with pytest.raises(coco_checks.BadEntryError, match=f"{reason}: image 1"):
        _convert(source, "strict", strict=True)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("image_malformed", {"height": "20"}),
        ("image_malformed", {"width": 0}),
        ("image_malformed", {"width": float("nan")}),
        ("image_malformed", {"file_name": 7}),
        ("image_malformed", {"file_name": ""}),
    ],
)
def test_bad_image_entry_is_skipped_with_its_annotations(source, reason, changes):
    source[2]["images"][0] |= changes

    _, manifest = _convert(source)

    assert manifest["skipped"] == {"annotation_of_skipped_image": 1, reason: 1}
    assert manifest["num_images"] == 3


def test_duplicate_image_and_category_keep_the_first(source):
    source[2]["images"].append(source[2]["images"][0] | {"file_name": "3.png"})
    source[2]["categories"] += [{"id": 3, "name": "bee"}, {"id": 4}]

    output, manifest = _convert(source)

    assert manifest["skipped"] == {
        "category_duplicate_id": 1,
        "category_malformed": 1,
        "image_duplicate_id": 1,
    }
    assert _features(output)[4]["image/filename"].bytes_list.value[:] == [b"4.png"]
    assert [c["name"] for c in manifest["categories"]] == ["ant", "cat"]


def test_box_that_partly_leaves_the_image_is_clipped_and_counted(source):
    # The second leaves by less than the two decimals that COCO rounds to.
    _add(source[2], bbox=[-2, 15, 7, 10])
    _add(source[2], id=100, bbox=[20, 10, 10.004, 10])

    output, manifest = _convert(source, strict=True)

    assert manifest["num_clipped"] == 1 and manifest["num_objects"] == 5
    feature = _features(output)[1]
    sides = [feature[f"image/object/bbox/{side}"].float_list.value for side in
             ("ymin", "xmin", "ymax", "xmax")]  # fmt: skip
    boxes = np.array(sides).T * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    assert np.allclose(boxes[2:], [[15, 0, 20, 5], [10, 20, 20, 30]], atol=1e-5)
    truth = COCO(os.path.join(output, records.GROUND_TRUTH_FILE))
    assert truth.anns[99]["bbox"] == [0, 15, 5, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "instances.json is not JSON"),
        ("[]", "instances.json holds a list"),
        ('{"images": [], "annotations": []}', "'categories' is missing.*found: images"),
        ('{"images": 3, "annotations": [], "categories": []}', "'images' is a int"),
        ('{"images": [], "annotations": [], "categories": []}', "no image is left"),
    ],
)
def test_unusable_file_is_one_clear_error(source, content, message):
    with pytest.raises(ValueError, match=message):
        _convert((source[0], source[1], content))


def test_nothing_usable_is_an_error_and_leaves_no_records(source):
    for path in source[0].iterdir():
        path.unlink()

    with pytest.raises(ValueError, match="no image could be used.*'image_missing': 4"):
        _convert(source)

    with pytest.raises(ValueError, match="half-written"):
        records.load_index(source[1].parent / "records")


@pytest.mark.parametrize("number", [0, 5])
def test_number_of_shards_must_fit(source, number):
    with pytest.raises(ValueError, match=f"num_shards is {number}"):
        _convert(source, num_shards=number)


def test_finished_records_are_replaced_only_on_demand(source):
    output, _ = _convert(source)
    with pytest.raises(FileExistsError, match="--overwrite"):
        _convert(source)

    _convert(source, num_shards=1, overwrite=True)

    assert len(records.load_index(output)) == 4
    assert sum(name.endswith(".tfrecord") for name in os.listdir(output)) == 1


def _image_file(path, mode, image_format):
    image = Image.fromarray(_pixels(1)).resize((WIDTH, HEIGHT))
    if mode == "I;16":
        image = Image.fromarray(_pixels(1)[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(200)
    elif mode == "EXIF":  # "turn by 90 degrees": COCO's sizes and boxes are those before it
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, image_format, exif=exif)
        return
    else:
        image = image.convert(mode)
    image.save(path, image_format)


@pytest.mark.parametrize(
    ("mode", "image_format", "stored", "tolerance"),
    [
        ("RGB", "JPEG", "jpeg", 5),
        ("L", "JPEG", "jpeg", 5),
        ("EXIF", "JPEG", "jpeg", 5),
        # TensorFlow's default inverse DCT is the fast one: some levels off Pillow's on noise.
        # CMYK: encoded a second time, 4:4:4; the pixels are noise, which JPEG likes least.
        ("CMYK", "JPEG", "jpeg", 40),
        ("L", "PNG", "png", 0),
        ("P", "PNG", "png", 0),
        ("1", "PNG", "png", 0),
        ("RGBA", "PNG", "png", 0),
        ("I;16", "PNG", "png", 0),
        ("RGB", "BMP", "png", 0),
        ("P", "GIF", "png", 0),
        ("RGB", "WEBP", "png", 0),
    ],
)
def test_every_kind_of_image_decodes_to_what_it_shows(
    source, mode, image_format, stored, tolerance
):
    path = source[0] / "1.png"
    _image_file(path, mode, image_format)
    with Image.open(path) as image:
        shown = image.convert("RGB") if mode != "I;16" else None
    expected = np.asarray(shown) if shown else np.repeat(_pixels(1)[..., :1], 3, axis=-1)

    feature = _features(_convert(source, strict=True)[0])[1]

    assert feature["image/format"].bytes_list.value[:] == [stored.encode()]
    encoded = feature["image/encoded"].bytes_list.value[0]
    for decode in (tf.io.decode_image, tf.io.decode_jpeg):
        pixels = decode(encoded, channels=3).numpy().astype(int)
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(pixels - expected).max() <= tolerance


def test_rle_equals_pycocotools_on_random_masks():
    rng = np.random.default_rng(0)
    for density in (0, 0.02, 0.3, 0.9, 1):
        mask = (rng.uniform(size=(37, 53)) < density).astype(np.uint8)
        for compressed in (False, True):
            drawn = coco_images.decode_segmentation(_rle(mask, compressed), 37, 53)
            assert drawn.dtype == np.uint8 and (drawn == mask).all()


def test_command_line_converts_and_names_what_it_skips(source):
    folder, path, dataset = source
    _add(dataset, category_id=5)
    path.write_text(json.dumps(dataset))
    output = path.parent / "records"
    arguments = [f"--images={folder}", f"--annotations={path}", f"--output={output}"]
    command = [sys.executable, "-m", "rethink_tf.data.coco", *arguments]

    done = subprocess.run(
        [*command, "--num_shards=2", "--num_workers=1"], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "4 images, 3 objects, 1 crowds in 2 shards" in done.stdout
    assert "annotation 99 of image 1: there is no category 5" in done.stderr
    assert "4/4" in done.stderr  # the progress bar
    assert len(records.load_index(output)) == 4


def test_command_line_ends_with_one_clear_line(source, monkeypatch):
    folder, path, dataset = source
    _add(dataset, category_id=5)
    path.write_text(json.dumps(dataset))
    output = path.parent / "records"
    values = {"images": str(folder), "annotations": str(path), "output": str(output)}
    values |= {"num_shards": 2, "num_workers": 0, "strict": True, "overwrite": False}
    monkeypatch.setattr(coco.flags, "FLAGS", types.SimpleNamespace(**values))

    with pytest.raises(SystemExit, match="error: unknown_category: annotation 99 of image 1"):
        coco.main(["coco"])

    assert not output.exists()  # found before anything was written


@pytest.mark.parametrize(
    ("images", "annotations", "objects", "crowds"),
    [
        ("coco_tiny/val2017", "coco_tiny/annotations/instances_val2017.json", 109, 1),
        ("fruits_nuts/images", "fruits_nuts/trainval.json", 165, 0),
    ],
)
def test_real_photographs_keep_every_mask(tmp_path, images, annotations, objects, crowds):
    data = SHARED / "data"
    if not (data / annotations).exists():
        pytest.skip(f"{data / annotations} is not there")
    output = str(tmp_path / "records")

    manifest = coco.convert(
        str(data / images), str(data / annotations), output, 2, num_workers=0, strict=True
    )

    truth = COCO(str(data / annotations))
    assert (manifest["num_objects"], manifest["num_crowds"]) == (objects, crowds)
    features = _features(output)
    assert sorted(features) == sorted(truth.imgs)
    for image_id, feature in features.items():
        masks = _masks(feature)
        assert len(masks) == len(truth.imgToAnns[image_id])
        for mask, annotation in zip(masks, truth.imgToAnns[image_id], strict=True):
            assert (mask == truth.annToMask(annotation)).all()
