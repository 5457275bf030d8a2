"""Tests of rethink_tf/data/sources/image_files.py and decode_check.py."""

import io
import resource

import numpy as np
import pytest
import tensorflow as tf
from drawn_records import png_bomb
from PIL import Image, ImageOps
from record_features import read_features

from rethink_tf.data.input import decode
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import store
from rethink_tf.data.sources import coco, image_files

ORIENTATIONS = range(1, 9)
# Where the object lies in the stored pixels: (x, y, width, height) of 30 x 20 (width x height).
STORED_BOX = (2, 3, 10, 6)


def red_object(mode="RGB"):
    pixels = np.full([20, 30, 3], 120, np.uint8)
    x, y, width, height = STORED_BOX
    pixels[y : y + height, x : x + width] = (255, 0, 0)
    return Image.fromarray(pixels).convert(mode)


def save(path, image, orientation, image_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, image_format, exif=exif, **({"quality": 95} if image_format == "JPEG" else {}))


def upright_box(path):
    """Where the red object is in what Pillow shows."""
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    rows, columns = np.nonzero(shown[..., 0] - shown[..., 1] > 60)
    x, y = columns.min(), rows.min()
    return [int(v) for v in (x, y, columns.max() + 1 - x, rows.max() + 1 - y)], shown


def decoded(feature):
    encoded = feature["image/encoded"].bytes_list.value[0]
    return decode.decode_pixels(encoded).numpy().astype(int)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_all_orientations_are_those_of_pillow(coco_source, image_format):
    source = coco_source.dataset
    source["images"], source["annotations"][1:] = [], []
    template, expected = source["annotations"].pop() | {"segmentation": []}, {}
    for k in ORIENTATIONS:
        name = f"turned{k}.img"
        save(coco_source.folder / name, red_object(), k, image_format)
        box, shown = upright_box(coco_source.folder / name)
        height, width = shown.shape[:2]
        expected[k] = shown
        source["images"].append({"id": k, "file_name": name, "height": height, "width": width})
        source["annotations"].append(template | {"id": k, "image_id": k, "bbox": box})

    output, manifest = coco_source.convert(strict=True)

    assert manifest["images"]["exif"] == "apply"
    assert manifest["images"]["num_by_orientation"] == {str(k): 1 for k in range(2, 9)}
    features = read_features(output)
    for k in ORIENTATIONS:
        found = decoded(features[k])
        assert found.shape == expected[k].shape
        assert abs(found - expected[k]).mean() < 2, k
        x, y, width, height = source["annotations"][k - 1]["bbox"]
        inside = found[y + 2 : y + height - 2, x + 2 : x + width - 2]
        assert (inside[..., 0] - inside[..., 1]).min() > 100, k
    # Training and evaluation see the frame of the annotations.
    pipeline = Pipeline(min_side=20, max_side=30, include_masks=False, flip_probability=0.0)
    for batch in pipeline.evaluation(output, 1):
        k = int(batch["image_id"][0])
        assert batch["original_size"][0].numpy().tolist() == list(expected[k].shape[:2])


def test_orientation_is_ignored_on_demand_and_sizes_that_contradict_are_named(coco_source):
    for k, orientation in ((1, 3), (2, 6)):
        save(coco_source.folder / f"{k}.png", red_object(), orientation, "PNG")
    output, manifest = coco_source.convert(exif="ignore", strict=True)
    assert manifest["images"]["num_by_orientation"] == {"3": 1, "6": 1}
    for k in (1, 2):
        assert (decoded(read_features(output)[k]) == np.asarray(red_object())).all()

    _, manifest = coco_source.convert("applied")
    named = [e["entry"] for e in manifest["skipped_entries"] if e["reason"] == "image_wrong_size"]
    assert len(named) == 1 and "image 2 (2.png): height x width is 20 x 30 as stored" in named[0]
    assert "30 x 20 as its EXIF orientation 6" in named[0] and "--exif=ignore" in named[0]
    with pytest.raises(ValueError, match="exif is 'no'"):
        coco_source.convert("none", exif="no")


def png16(values):
    return tf.io.encode_png(tf.constant(values, tf.uint16)).numpy()


def sixteen_bits(kind, high):
    rng = np.random.default_rng(0)
    channels = {"grey": 1, "grey and alpha": 2, "colour": 3, "colour and alpha": 4}.get(kind, 1)
    values = rng.integers(100, high + 1, [20, 30, channels])
    values[0, 0], values[0, 1] = 100, high
    return values


@pytest.mark.parametrize("kind", ["grey", "grey and alpha", "colour", "colour and alpha", "TIFF"])
def test_sixteen_bits_are_refused_or_scaled_as_asked(coco_source, kind):
    values = sixteen_bits(kind, 4095)
    if kind == "TIFF":
        Image.fromarray(values[..., 0].astype(np.uint16)).save(coco_source.folder / "1.png", "TIFF")
    else:
        (coco_source.folder / "1.png").write_bytes(png16(values))
    colour = values[..., :3] if values.shape[-1] > 2 else values[..., :1]

    _, manifest = coco_source.convert()
    (entry,) = [e for e in manifest["skipped_entries"] if e["reason"] == "image_sixteen_bit"]
    assert "of 16 bits with values from 100 to 4095 of 65535" in entry["entry"]
    assert "--sixteen_bit=full" in entry["entry"]

    for option, expected in (
        ("full", colour / 257),
        ("range", (colour - 100) / (4095 - 100) * 255),
    ):
        output, manifest = coco_source.convert(option, sixteen_bit=option, strict=True)
        facts = manifest["images"]
        assert (facts["sixteen_bit"], facts["num_sixteen_bit"]) == (option, 1)
        assert facts["sixteen_bit_range"] == [100, 4095]
        assert np.abs(decoded(read_features(output)[1]) - expected).max() <= 0.5 + 1e-9
    with pytest.raises(ValueError, match="sixteen_bit is 'auto'; give one of full, range"):
        coco_source.convert("other", sixteen_bit="auto")


def test_a_turned_image_of_sixteen_bits(tmp_path):
    """Colour, whose values TensorFlow reads, is turned as grey is, which Pillow reads."""
    values = sixteen_bits("colour", 60000)
    for k in ORIENTATIONS:
        exif = Image.Exif()
        exif[0x0112] = k
        grey = io.BytesIO()
        Image.fromarray(values[..., 0].astype(np.uint16)).save(grey, "PNG", exif=exif)
        chunk = grey.getvalue()[grey.getvalue().index(b"eXIf") - 4 :]
        chunk = chunk[: 12 + int.from_bytes(chunk[:4], "big")]
        plain = png16(np.repeat(values[..., :1], 3, -1))
        header_end = 8 + 25  # the signature, and IHDR
        turned = plain[:header_end] + chunk + plain[header_end:]
        found = []
        for encoded in (grey.getvalue(), turned):
            path = tmp_path / "turned.png"
            path.write_bytes(encoded)
            size = (30, 20) if k > 4 else (20, 30)
            image = {"height": size[0], "width": size[1]}
            options = image_files.Options(sixteen_bit="full")
            loaded = image_files.load_image(str(path), image, options)
            found.append(decode.decode_pixels(loaded.encoded).numpy())
        np.testing.assert_array_equal(*found)


def test_what_only_pillow_reads_is_stored_as_it_read_it(coco_source):
    """A JPEG whose end marker is lost; one cut short, which neither reads, is named."""
    pixels = Image.fromarray(coco_source.pixels(1)).resize((30, 20)).convert("RGB")
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=90)
    whole = buffer.getvalue()
    (coco_source.folder / "1.png").write_bytes(whole[:-2] + b"\0" * 512)
    (coco_source.folder / "2.png").write_bytes(whole[:-40])
    with Image.open(coco_source.folder / "1.png") as image:
        expected = np.asarray(image.convert("RGB"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode.decode_pixels((coco_source.folder / "1.png").read_bytes())

    output, manifest = coco_source.convert()

    assert manifest["noted"] == {"image_encoded_again": 1}
    assert "image 1 (1.png): TensorFlow does not decode it" in manifest["noted_entries"][0]["entry"]
    assert manifest["skipped"] == {"annotation_of_skipped_image": 1, "image_unreadable": 1}
    feature = read_features(output)[1]
    assert feature["image/format"].bytes_list.value[:] == [b"png"]
    assert (decoded(feature) == expected).all()
    pipeline = Pipeline(min_side=20, max_side=30, include_masks=False)
    assert [int(b["image_id"][0]) for b in pipeline.evaluation(output, 1)] == [1, 3, 4]


def test_names_that_are_not_utf8_are_converted_and_shown_as_bytes(coco_source):
    """A file in Latin-1, whose names of files are on the disk in Latin-1, too."""
    (coco_source.folder / "1.png").rename(coco_source.folder / "caf\udce9.png")
    coco_source.dataset["categories"][1]["name"] = "caf\xe9"
    coco_source.dataset["images"][2]["file_name"] = "caf\xe9.png"
    coco_source.write()
    text = coco_source.path.read_text().encode().decode("unicode_escape")
    coco_source.path.write_bytes(text.encode("latin-1"))
    output = str(coco_source.root / "records")

    manifest = coco.convert(
        str(coco_source.folder), str(coco_source.path), output, 1, num_workers=1, progress=False
    )

    assert manifest["num_images"] == 4 and manifest["noted"] == {"category_name_not_utf8": 1}
    assert [c["name"] for c in store.load_categories(output)] == ["caf\\xe9", "cat"]
    feature = read_features(output)[1]
    assert feature["image/filename"].bytes_list.value[:] == [b"caf\xe9.png"]


def test_names_that_no_file_can_have_are_named(coco_source):
    coco_source.dataset["images"][0]["file_name"] = "\ud83d.png"
    coco_source.dataset["categories"][1]["name"] = "dog \ud83d"
    _, manifest = coco_source.convert()
    assert manifest["skipped"] == {"annotation_of_skipped_image": 1, "image_malformed": 1}
    assert [c["name"] for c in manifest["categories"]] == ["dog \\ud83d", "cat"]


def test_image_bombs_are_left_out_without_being_decoded(coco_source):
    """One that states a small size, and one of more pixels than Pillow opens."""
    cases = {12_000: 100, 20_000: 20_000}
    for side, stated in cases.items():
        (coco_source.folder / f"{side}.png").write_bytes(png_bomb(side))
        coco_source.dataset["images"].append(
            {"id": side, "file_name": f"{side}.png", "height": stated, "width": stated}
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, manifest = coco_source.convert()

    # Their pixels would take 432 MB and 1.2 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert manifest["skipped"] == {"image_wrong_size": 1, "image_unreadable": 1}
    named = {entry["reason"]: str(entry) for entry in manifest["skipped_entries"]}
    assert "12000.png" in named["image_wrong_size"]
    assert "decompression bomb" in named["image_unreadable"]
