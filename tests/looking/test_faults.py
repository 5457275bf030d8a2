"""Suspicious boxes and near-duplicate images that were planted, and that nothing else is named."""

import io
import types

import numpy as np
import pytest
from drawn_records import pixels
from PIL import Image, ImageEnhance

from rethink_tf.looking import duplicates, suspicious


def table(sizes, objects):
    """A table of (image, category, box, mask's bounds or None) each."""
    row, category, boxes, bounds = zip(*objects, strict=True)
    row = np.array(row)
    return types.SimpleNamespace(
        image_sizes=np.array(sizes),
        row=row,
        category=np.array(category),
        boxes=np.array(boxes, float),
        mask_bounds=np.array([[np.nan] * 4 if each is None else each for each in bounds], float),
        per_image=np.bincount(row, minlength=len(sizes)),
    )


def test_each_kind_is_found_where_it_was_planted():
    good = [10, 20, 40, 80]
    found = suspicious.find(
        table(
            [(100, 200), (100, 200), (100, 200)],
            [
                (0, 1, good, good),  # 0: nothing is wrong
                (0, 1, [50, 50, 51, 90], None),  # 1: one pixel
                (0, 2, [-2, 20, 40, 80], None),  # 2: outside, and nearly the box of 0
                (1, 1, [0, 1, 100, 200], None),  # 3: whole image
                (1, 1, [10, 120, 50, 160], None),  # 4
                (1, 1, [10, 120, 50, 161], None),  # 5: that of 4 again, IoU 40 / 41
                (1, 2, [10, 120, 50, 160], None),  # 6: that of 4 and 5, of another class
                (2, 1, [20, 10, 80, 40], [10, 20, 40, 80]),  # 7: swapped
                (2, 1, [20, 100, 60, 140], [50, 130, 95, 190]),  # 8: a mask elsewhere
                (2, 1, [20, 100, 23, 104], [21, 101, 24, 105]),  # 9: a pixel off, of a small one
            ],
        )
    )
    assert [(each.kind, each.objects) for each in found] == [
        ("one pixel", (1,)),
        ("outside", (2,)),
        ("whole image", (3,)),
        ("duplicate", (4, 5)),
        ("two classes", (4, 6)),
        ("two classes", (5, 6)),
        ("x and y swapped", (7,)),
        ("mask elsewhere", (8,)),
    ]


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_split_whose_x_and_y_are_swapped(is_swapped):
    rng = np.random.default_rng(0)
    objects = []
    for image in range(20):
        for _ in range(4):
            y, x = rng.uniform(0, 60), rng.uniform(0, 150)
            box = np.array([y, x, y + 40, x + 50])
            if is_swapped:
                box = box[[1, 0, 3, 2]]
                if box[0] >= 100:
                    continue  # outside: left out by the converter
                box[2:] = np.minimum(box[2:], [100, 200])
            objects.append((image, 1, box, None))
    found = suspicious.may_be_swapped(table([(100, 200)] * 20, objects))
    assert bool(found) == is_swapped


def encoded(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_copies_are_found_and_no_other_pair():
    images = [Image.fromarray(pixels(number, 120, 160)) for number in range(40)]
    flat = Image.new("RGB", (160, 120), (200, 200, 200))
    images += [
        encoded(images[3].resize((80, 60)), 40),  # 40
        images[7].transpose(Image.Transpose.FLIP_LEFT_RIGHT),  # 41
        ImageEnhance.Brightness(images[11]).enhance(1.2),  # 42
        images[12].transpose(Image.Transpose.FLIP_TOP_BOTTOM),  # 43: is not looked for
        flat,
        flat.copy(),
    ]
    found = duplicates.find_pairs(duplicates.make_prints(images))
    pairs = {(each.first, each.second): each for each in found}
    assert set(pairs) == {(3, 40), (7, 41), (11, 42)}
    assert [pairs[key].is_mirrored for key in sorted(pairs)] == [False, True, False]
    assert min(each.correlation for each in found) > 0.98


def test_prints_of_many_images_are_compared_in_blocks(monkeypatch):
    images = [Image.fromarray(pixels(number, 60, 80)) for number in range(6)]
    prints = duplicates.make_prints([*images, *images])
    whole = duplicates.find_pairs(prints)
    monkeypatch.setattr(duplicates, "_BLOCK", 5)
    assert duplicates.find_pairs(prints) == whole
    assert [(each.first, each.second) for each in whole] == [(k, k + 6) for k in range(6)]
