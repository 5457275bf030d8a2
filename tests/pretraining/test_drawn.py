"""The drawn classification set: what it holds, and that it is another task than detection's."""

import json

import numpy as np
import pytest

from rethink_tf.data.sources import shapes
from rethink_tf.pretraining import drawn
from rethink_tf.pretraining.textures import TEXTURES


def test_an_image_depends_on_seed_split_and_number_alone():
    first, label = drawn.draw_image(3, "train", 21, 48)
    again, same = drawn.draw_image(3, "train", 21, 48)
    np.testing.assert_array_equal(first, again)
    assert label == same == 21 % 16 and first.shape == (48, 48, 3) and first.dtype == np.uint8
    for seed, split, number in ((4, "train", 21), (3, "validation", 21), (3, "train", 37)):
        assert (drawn.draw_image(seed, split, number, 48)[0] != first).mean() > 0.5


def test_the_classes_are_none_of_the_detection_sets():
    assert len(drawn.CLASS_NAMES) == 16 and not set(drawn.CLASS_NAMES) & set(shapes.CATEGORIES)


@pytest.mark.parametrize("name", TEXTURES)
def test_a_pattern_shows_both_colours_at_every_scale(name):
    """A class whose pattern were one flat colour could not be told."""
    for seed in range(5):
        pattern = drawn._draw_pattern(np.random.default_rng(seed), name, 64)
        assert pattern.shape == (64, 64) and 0 <= pattern.min() and pattern.max() <= 1
        assert pattern.std() > 0.08 and 0.05 < pattern.mean() < 0.95


def test_colours_do_not_tell_the_class():
    """Mean colours of the classes are alike: a linear rule on them would be at chance."""
    means = np.array([drawn.draw_image(0, "train", n, 32)[0].mean((0, 1)) for n in range(640)])
    labels = np.arange(640) % 16
    centres = np.array([means[:320][labels[:320] == each].mean(0) for each in range(16)])
    distances = np.linalg.norm(means[320:, None] - centres, axis=-1)
    assert (distances.argmin(1) == labels[320:]).mean() < 0.15


def test_files_are_equal_whatever_the_number_of_training_images(tmp_path):
    for name, count in (("few", 4), ("more", 9)):
        drawn.make_textures(
            str(tmp_path / name), num_train=count, num_val=3, image_size=32, num_shards=1
        )
    path = "validation-00000-of-00001"
    assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
    # A second call leaves the set as it is.
    before = (tmp_path / "few" / path).stat().st_mtime_ns
    drawn.make_textures(str(tmp_path / "few"), num_train=4, num_val=3, image_size=32, num_shards=1)
    assert (tmp_path / "few" / path).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="num_train is 4 there, 5 is wanted"):
        drawn.make_textures(
            str(tmp_path / "few"), num_train=5, num_val=3, image_size=32, num_shards=1
        )
    assert json.loads((tmp_path / "few" / "textures.json").read_text())["classes"][0] == "stripes"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"no textures\.json"):
        drawn.make_textures(str(tmp_path))
    with pytest.raises(ValueError, match="at least 32 pixels"):
        drawn.make_textures(str(tmp_path / "new"), image_size=16)
