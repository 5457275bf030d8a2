"""Pictures: what must be visible, sizes, and inputs without objects."""

import logging

import numpy as np
import pytest
from PIL import Image

from rethink_tf.report import pictures


def grey(height=480, width=640):
    return np.full((height, width, 3), 90, np.uint8)


def one_object(height=480, width=640):
    mask = np.zeros((1, height, width), bool)
    mask[0, height // 4 : height // 2, width // 4 : width // 2] = True
    box = [[height / 4, width / 4, height / 2, width / 2]]
    return pictures.Objects(np.array(box), ["cat"], np.array([0.87]), mask)


def test_classes_have_distinct_and_lasting_colours():
    names = [f"class {index}" for index in range(80)]
    colours = pictures.class_colours(names)
    assert len(set(colours.values())) == 80
    assert all(0 <= part <= 255 for colour in colours.values() for part in colour)
    alone = pictures.class_colours(["cat"])["cat"]
    assert pictures.class_colours(["cat", "cat"]) == {"cat": alone}
    assert pictures.class_colours([]) == {}
    assert len(pictures.class_colours(str(index) for index in range(200))) == 200


def test_mask_box_and_label_are_drawn():
    image = grey()
    colour = np.array(pictures.class_colours(["cat"])["cat"])
    picture = pictures.draw_objects(image, *one_object())
    assert picture.shape == image.shape and picture.dtype == np.uint8
    # Translucent inside: between the photograph and the colour.
    expected = 90 + 0.45 * (colour - 90.0)
    np.testing.assert_allclose(picture[180, 240], expected, atol=1.5)
    np.testing.assert_array_equal(picture[120, 300], colour)  # the frame
    np.testing.assert_array_equal(picture[300:], image[300:])  # nothing below
    label = picture[95:120, 160:230].reshape(-1, 3)
    assert (label == colour).all(axis=1).any() and (label.max(axis=1) < 40).any()
    np.testing.assert_array_equal(image, grey())  # the input is untouched


def test_keypoints_are_drawn_where_they_are_seen():
    keypoints = np.array([[[200, 400, 2], [300, 100, 0.9], [50, 50, 0]]])
    picture = pictures.draw_objects(grey(), one_object().boxes, ["cat"], keypoints=keypoints)
    colour = pictures.class_colours(["cat"])["cat"]
    for y, x, _ in keypoints[0].astype(int)[:2]:
        np.testing.assert_array_equal(picture[y, x], colour)
        assert (picture[y - 8 : y + 8, x - 8 : x + 8].max(axis=-1) < 40).any()  # the dark rim
    np.testing.assert_array_equal(picture[50, 50], [90, 90, 90])
    with pytest.raises(ValueError, match="keypoints has 2 entries for 1 boxes"):
        pictures.draw_objects(grey(), one_object().boxes, ["cat"], keypoints=[keypoints[0]] * 2)


def test_without_masks_and_scores():
    boxes = one_object().boxes
    picture = pictures.draw_objects(grey(), boxes, ["cat"])
    np.testing.assert_array_equal(picture[180, 240], [90, 90, 90])
    assert (picture[120] != 90).any()


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(128, 128, 4), (100, 479, 2), (90, 480, 1)]
)
def test_small_images_are_enlarged(height, width, factor):
    picture = pictures.draw_objects(grey(height, width), *one_object(height, width))
    assert picture.shape == (factor * height, factor * width, 3)
    frame = picture[factor * height // 4, factor * (width * 3 // 8)]
    np.testing.assert_array_equal(frame, pictures.class_colours(["cat"])["cat"])


def test_no_objects():
    empty = pictures.Objects(np.zeros((0, 4)), [], np.zeros(0), np.zeros((0, 480, 640)))
    np.testing.assert_array_equal(pictures.draw_objects(grey(), *empty), grey())
    picture = pictures.side_by_side(grey(), pictures.Objects([], []), empty)
    assert picture.shape[0] > 480 and picture.shape[1] > 1280


@pytest.mark.parametrize(
    "box",
    [
        [-50, -60, 700, 900],
        [470, 630, 500, 700],
        [500, 700, 600, 800],
        [10, 10, 10, 10],
        [50, 50, 20, 20],
        [0, 0, 1, 1],
        [float("nan"), 0, float("inf"), 5],
    ],
)
def test_boxes_at_the_border_and_without_area(box):
    picture = pictures.draw_objects(grey(), [box], ["traffic light"], [0.5])
    assert picture.shape == (480, 640, 3)


def test_many_objects_in_a_tiny_image():
    rng = np.random.default_rng(0)
    corner = rng.random((100, 2)) * 100
    boxes = np.concatenate([corner, corner + rng.random((100, 2)) * 30], axis=1)
    names = [f"a class with a long name {index}" for index in range(100)]
    assert pictures.draw_objects(grey(16, 9), boxes, names).shape == (480, 270, 3)


def test_labels_of_equal_boxes_do_not_hide_each_other():
    box = [[200.0, 200.0, 300.0, 300.0]] * 2
    picture = pictures.draw_objects(grey(), box, ["cat", "dog"])
    colours = pictures.class_colours(["cat", "dog"])
    counts = [(picture == np.array(colours[name])).all(axis=2).sum() for name in ("cat", "dog")]
    assert min(counts) > 200


def test_an_object_is_labelled_where_it_has_a_note():
    boxes = [[200.0, 100.0, 300.0, 200.0], [200.0, 400.0, 300.0, 500.0]]
    picture = pictures.draw_objects(grey(), boxes, ["cat", "dog"], notes=["missed", ""])
    colours = pictures.class_colours(["cat", "dog"])
    counts = [(picture == np.array(colours[name])).all(axis=2).sum() for name in ("cat", "dog")]
    # The dog has its frame of four lines of 100 x 2 pixels alone.
    assert counts[1] <= 800 < counts[0]


def test_proposals_are_drawn_without_labels_and_objects_in_front():
    proposals = np.array([[100, 100, 200, 200], [0, 0, 0, 0], [50, 300, 150, 400]], np.float32)
    truth = np.array([[100, 100, 200, 200], [300, 300, 400, 400]], np.float32)
    picture = pictures.draw_proposals(grey(), truth, proposals)
    green, orange = (60, 230, 90), (255, 150, 30)
    places = [picture[y, x].tolist() for y, x in ((100, 150), (300, 350), (50, 350), (0, 0))]
    assert places == [list(green), list(green), list(orange), [90, 90, 90]]


def test_side_by_side():
    detections = pictures.Objects([[100, 100, 200, 200]], ["dog"], [0.5])
    picture = pictures.side_by_side(grey(), one_object(), detections)
    bar, middle = picture.shape[0] - 480, picture.shape[1] // 2
    colours = pictures.class_colours(["cat", "dog"])
    left, right = picture[bar:, :640], picture[bar:, -640:]
    np.testing.assert_array_equal(
        left, pictures.draw_objects(grey(), *one_object(), colours=colours)
    )
    np.testing.assert_array_equal(
        right, pictures.draw_objects(grey(), *detections, colours=colours)
    )
    assert picture[:bar, :middle].max() > 200 and picture[:bar, middle:].max() > 200  # titles


def test_narrow_images_have_room_for_titles():
    empty = pictures.Objects([], [])
    assert pictures.side_by_side(grey(500, 20), empty, empty).shape[1] > 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": grey().astype(np.float32)}, "uint8"),
        ({"image": grey()[..., 0]}, "uint8"),
        ({"class_names": []}, "class_names has 0 entries for 1 boxes"),
        ({"scores": [0.5, 0.5]}, "scores has 2 entries"),
        ({"masks": np.zeros((1, 28, 28))}, "paste it first"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    arguments = {"image": grey(), **one_object()._asdict(), **change}
    with pytest.raises(ValueError, match=message):
        pictures.draw_objects(**arguments)


def test_save_png_round_trip(tmp_path):
    path = tmp_path / "pictures" / "step_10.png"
    image = pictures.draw_objects(grey(), *one_object())
    pictures.save_png(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    with pytest.raises(TypeError):
        pictures.save_png(path, np.zeros((2, 2, 5), np.float64))
    # The old file stands, and nothing half written lies beside it.
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert [entry.name for entry in path.parent.iterdir()] == ["step_10.png"]


def test_names_that_the_font_cannot_draw_are_ids(caplog):
    names = {1: "cat", 2: "caf\xe9", 3: "\u72d7", 7: "\u043a\u043e\u0442 (cat)", 9: "tree no. 1"}
    with caplog.at_level(logging.INFO, logger="absl"):
        shown = pictures.drawable_names(names)
    assert shown == {1: "cat", 2: "cafe", 3: "class 3", 7: "class 7", 9: "tree no. 1"}
    assert "cafe is caf\xe9, class 3 is \u72d7, class 7 is" in caplog.text
