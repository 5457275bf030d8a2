"""Tests of rethink_tf/data/sources/box_forms.py: other forms of boxes, told by the masks."""

import numpy as np
import pytest

from rethink_tf.data.sources import box_forms

WIDTH, HEIGHT = 640, 480
IMAGES = {1: {"width": WIDTH, "height": HEIGHT}}


def objects(form, count=40, wrong=None, segmentation="polygons"):
    """Objects whose boxes are written in a form; of the last `count - wrong` in COCO's."""
    rng = np.random.default_rng(3)
    entries = []
    for number in range(count):
        w, h = rng.integers(20, 90), rng.integers(100, 200)
        x, y = rng.integers(100, WIDTH - w - 100), rng.integers(40, HEIGHT - h)
        box = np.array([x, y, w, h], np.float64)
        if wrong is None or number < wrong:
            box = form(box)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        mask = [[int(value) for value in polygon]]
        if segmentation == "runs":
            pixels = np.zeros([HEIGHT, WIDTH], np.uint8)
            pixels[y : y + h, x : x + w] = 1
            flat = pixels.T.ravel()
            cuts = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
            mask = {"size": [HEIGHT, WIDTH], "counts": np.diff(cuts).tolist()}
        entry = {"id": number, "image_id": 1, "bbox": box.tolist()}
        entries.append(entry | ({"segmentation": mask} if segmentation else {}))
    return entries


def corners(box):
    return np.concatenate([box[:2], box[:2] + box[2:]])


def centres(box):
    return np.concatenate([box[:2] + box[2:] / 2, box[2:]])


def fractions(box):
    return box / [WIDTH, HEIGHT, WIDTH, HEIGHT]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (corners, r"look like corners \[x1, y1, x2, y2\] in pixels"),
        (lambda b: corners(b)[[1, 0, 3, 2]], r"look like corners \[y1, x1, y2, x2\] in pixels"),
        (lambda b: b[[1, 0, 3, 2]], r"look like \[y, x, height, width\] in pixels"),
        (centres, r"look like \[centre x, centre y, width, height\] in pixels"),
        (lambda b: np.array([600, 0, 30, 30.0]), "look like no form that is known"),
    ],
)
def test_the_form_is_named(form, message):
    for segmentation in ("polygons", "runs"):
        with pytest.raises(ValueError, match=rf"\d+% of 40 boxes contradict.*{message}"):
            box_forms.check(objects(form, segmentation=segmentation), IMAGES)


def test_fractions_need_no_masks():
    for form in (fractions, lambda b: fractions(corners(b)), lambda b: fractions(centres(b))):
        for segmentation in ("polygons", None):
            with pytest.raises(ValueError, match="look like fractions of the image"):
                box_forms.check(objects(form, segmentation=segmentation), IMAGES)


def test_what_is_right_or_wrong_in_a_few_passes():
    box_forms.check(objects(lambda b: b), IMAGES)
    box_forms.check(objects(corners, wrong=15), IMAGES)
    box_forms.check(objects(corners, segmentation=None), IMAGES)  # nothing contradicts them
    with pytest.raises(ValueError, match=r"62% of 40 boxes.*corners \[x1, y1, x2, y2\]"):
        box_forms.check(objects(corners, wrong=25), IMAGES)
    # Whole objects whose masks are of the part that is seen.
    box_forms.check(objects(lambda b: b * [1, 1, 1.3, 1.3]), IMAGES)
    box_forms.check([None, {"bbox": "?"}, {"image_id": 1, "bbox": [1, 2, 3, "4"]}], IMAGES)


def test_conversion_stops_before_it_reads_an_image(coco_source):
    for annotation in coco_source.dataset["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [y, x, h, w] if w == h else [x + 10, y + 8, w, h]
    with pytest.raises(ValueError, match="100% of 4 boxes contradict their own masks"):
        coco_source.convert()
    assert not (coco_source.root / "records").exists()
