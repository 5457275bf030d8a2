"""Folders and records as sources: order, crops, what is broken, and what is not there."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rethink_tf.data.input import reading
from rethink_tf.data.records import tfrecord_files
from rethink_tf.pretraining import images, inputs

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def encode(colour, size=(40, 50), form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full([*size, 3], colour, np.uint8)).save(buffer, form)
    return buffer.getvalue()


def make_folders(folder, count=4):
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number}.png").write_bytes(encode(colour))
    return str(folder)


def make_records(folder, encoded, labels, split="train"):
    """Writes two shards of Model Garden's form."""
    examples = []
    for data, label in zip(encoded, labels, strict=True):
        feature = {
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        message = tf.train.Example(features=tf.train.Features(feature=feature))
        examples.append(message.SerializeToString())
    for shard in range(2):
        path = str(folder / f"{split}-0000{shard}-of-00002")
        tfrecord_files.write_shard(path, examples[shard::2])
    return str(folder)


def epoch(source, left_out=None, **options):
    """Returns the batches of evaluation as dicts of arrays."""
    options = {"image_size": 32, "parallel_images": 2} | options
    dataset = inputs.ImageInput(**options).evaluation(source, 4, None, left_out or inputs.LeftOut())
    return list(dataset.as_numpy_iterator())


def training(source, left_out, start=0, **options):
    options = {"image_size": 32, "parallel_images": 2} | options
    return inputs.ImageInput(**options).training(source, 4, 1, start, None, left_out)


def test_folders_give_each_image_once_with_the_class_of_its_folder(tmp_path):
    source = images.ImageFolders(make_folders(tmp_path, 3), images.VALIDATION)
    batches = epoch(source)
    assert source.num_images == 9 and source.num_classes == 3 and len(batches) == 3
    seen = []
    for batch in batches:
        for row in np.flatnonzero(batch["weight"]):
            colour = list(COLOURS.values())[batch["label"][row]]
            np.testing.assert_array_equal(batch["image"][row], np.full([32, 32, 3], colour))
            seen.append(batch["image_id"][row])
    assert sorted(seen) == list(range(9))
    assert batches[-1]["weight"].sum() == 1  # The rest of the last batch is padding.


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_records_give_labels_from_0_and_the_images(tmp_path, form):
    encoded = [encode(colour, form=form) for colour in COLOURS.values()] * 2
    folder = make_records(tmp_path, encoded, [1, 2, 3] * 2, "validation")
    source = images.ImageRecords(folder, images.VALIDATION, num_classes=3)
    for batch in epoch(source):
        for row in np.flatnonzero(batch["weight"]):
            colour = list(COLOURS.values())[batch["label"][row]]
            assert np.abs(batch["image"][row].astype(int) - colour).max() <= 3


def test_a_broken_image_is_counted_and_named_and_weighs_nothing(tmp_path, caplog):
    folder = make_folders(tmp_path, 3)
    broken = tmp_path / "train" / "green" / "1.png"
    broken.write_bytes(broken.read_bytes()[:30])
    left_out = inputs.LeftOut()
    source = images.ImageFolders(folder, images.TRAIN)
    batches = training(source, left_out, max_skipped_share=0.2).take(9).as_numpy_iterator()
    weights = np.concatenate([batch["weight"] for batch in batches])
    assert (weights == 0).sum() == 4  # Nine batches of four are four epochs of nine.
    assert left_out.as_dict()["skipped_records"] >= 4 and left_out.num_images == 1
    assert caplog.text.count(str(broken)) >= 1


def test_too_many_broken_images_end_the_run_with_one_error(tmp_path):
    encoded = [encode((1, 2, 3))] * 5 + [b"none"] * 3
    source = images.ImageRecords(make_records(tmp_path, encoded, [1] * 8), images.TRAIN, 2)
    left_out = inputs.LeftOut()
    with pytest.raises(reading.DataError, match=r"of 8|8 images.*max_skipped_share"):
        for _ in reading.naming_errors(training(source, left_out).take(9), left_out):
            pass


def test_a_label_out_of_range_names_the_record_and_the_setting(tmp_path):
    source = images.ImageRecords(
        make_records(tmp_path, [encode((1, 2, 3))] * 4, [1, 2, 0, 1]), images.TRAIN, 2
    )
    left_out = inputs.LeftOut()
    message = r"train-00000-of-00002 at byte \d+ has the label 0.*1 to 2.*first_label"
    with pytest.raises(reading.DataError, match=message):
        for _ in reading.naming_errors(training(source, left_out).take(3), left_out):
            pass


def test_what_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no records train-"):
        images.ImageRecords(str(tmp_path), images.TRAIN)
    with pytest.raises(ValueError, match=r"train has no folder of a class.*train/CLASS"):
        images.ImageFolders(str(tmp_path), images.TRAIN)
    folder = make_folders(tmp_path)
    (tmp_path / "val" / "mauve").mkdir()
    with pytest.raises(ValueError, match="classes that .* has not: mauve"):
        images.ImageFolders(folder, images.VALIDATION)
    (tmp_path / "train" / "mauve").mkdir()
    with pytest.raises(ValueError, match="train/mauve holds no image"):
        images.ImageFolders(folder, images.TRAIN)
    (tmp_path / "train-00000-of-00001").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="not an uncompressed TFRecord file"):
        images.ImageRecords(folder, images.TRAIN)


def test_training_goes_on_with_the_batches_of_an_unbroken_run(tmp_path):
    rng = np.random.default_rng(0)
    encoded = [encode(rng.integers(0, 256, (40, 50, 3))) for _ in range(6)]
    source = images.ImageRecords(make_records(tmp_path, encoded, [1, 2] * 3), images.TRAIN, 2)
    straight = list(training(source, inputs.LeftOut()).take(5).as_numpy_iterator())
    resumed = list(training(source, inputs.LeftOut(), start=3).take(2).as_numpy_iterator())
    for there, here in zip(straight[3:], resumed, strict=True):
        for name, value in there.items():
            np.testing.assert_array_equal(value, here[name], err_msg=name)
    # The crops of an image differ from epoch to epoch.
    by_image = {}
    for batch in straight:
        for image, number in zip(batch["image"], batch["image_id"], strict=True):
            by_image.setdefault(number, []).append(image)
    assert all(np.any(each[0] != each[1]) for each in by_image.values())


@pytest.mark.parametrize("size", [(40, 60), (200, 30), (31, 31)])
def test_crops_lie_in_the_image_and_keep_their_bounds(size):
    image_input = inputs.ImageInput(32, min_area=0.3, max_ratio=1.5)
    rng, height, width = np.random.default_rng(0), *size
    for _ in range(50):
        draws = tf.constant(rng.uniform(size=inputs._NUM_DRAWS).astype(np.float32))
        y, x, h, w = image_input._random_crop(height, width, draws).numpy()
        assert 0 <= y <= y + h <= height and 0 <= x <= x + w <= width
        assert 1 / 1.6 <= w / h <= 1.6
        is_fallback = (h, w) == (min(height, round(width * 1.5)), min(width, round(height * 1.5)))
        assert h * w >= 0.27 * height * width or is_fallback
