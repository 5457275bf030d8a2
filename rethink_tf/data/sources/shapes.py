"""A data set of coloured shapes, drawn from a seed: what the quickstart and tests train on.

Four classes (circle, rectangle, triangle, star) of varied size, rotation and colour overlap one
another on backgrounds of gradients and noise. Masks and boxes are those of the visible pixels. An
image is drawn from the seed and its id alone, so the same arguments give the same bytes, and the
validation images do not change with the number of training images. Every shape has four keypoints:
the ends of its visible part.
"""

import dataclasses
import functools
import io
import json
import math
import os

import gin
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_api

from rethink_tf.data.sources import coco, drawn_folders

CATEGORIES = ("circle", "rectangle", "triangle", "star")  # category ids 1 to 4
PARAMETERS_FILE = "shapes.json"
KEYPOINTS = ("top_end", "left_end", "bottom_end", "right_end")
FORMAT_VERSION = 2  # raise it when the same seed gives other images or annotations

MIN_IMAGE_SIZE = 48  # below it, the smallest shapes have too few pixels to be told apart
# Diameter of a shape's circumscribed circle, as a part of the image's side.
MIN_DIAMETER, MAX_DIAMETER = 0.14, 0.45
# A shape of which less than this share, or fewer pixels, would be seen is not drawn.
MIN_VISIBLE_PART, MIN_VISIBLE_PIXELS = 0.25, 12
# Euclidean distance of RGB colours in 0..1 (black to white: 1.73), from the background's two
# colours and from the other shapes of the image.
MIN_CONTRAST, MIN_SHAPE_CONTRAST = 0.4, 0.25

_SUPERSAMPLING = 4
_FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}
_MAX_OBJECTS = 99


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Attributes:
        num_train: training images.
        num_val: validation images; none of them is a training image.
        image_size: height and width in pixels.
        seed: integer >= 0 that everything is drawn from.
        max_objects: shapes an image, at most; at least one.
        num_shards: record files of each split (one an image if it has fewer).

    Raises:
        ValueError: if a value is out of range.
    """

    num_train: int
    num_val: int
    image_size: int
    seed: int
    max_objects: int
    num_shards: int

    def __post_init__(self):
        least = {"seed": 0, "image_size": MIN_IMAGE_SIZE}
        most = {"max_objects": _MAX_OBJECTS, "num_train": 10**6, "num_val": 10**6}
        for name, value in dataclasses.asdict(self).items():
            lowest = least.get(name, 1)
            if not isinstance(value, int) or not lowest <= value <= most.get(name, value):
                limit = f" and at most {most[name]}" if name in most else ""
                raise ValueError(
                    f"make_shapes.{name} is {value!r}; it must be an integer of at least "
                    f"{lowest}{limit}"
                )


@gin.register
def make_shapes(
    output: str,
    num_train: int = 3000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
    max_objects: int = 6,
    num_shards: int = 8,
) -> str:
    """Draws the data set where it is not there yet; see `drawn_folders.draw_once`.

    Args:
        output: folder for it, on a local disk. The records are in `output/train`, `output/val`.
        num_train, num_val, image_size, seed, max_objects, num_shards: as of `Drawing`.

    Returns:
        `output`.

    Raises:
        ValueError: if `output` holds shapes of other arguments, or one is out of range.
        FileExistsError: if `output` holds something else.
    """
    drawing = Drawing(num_train, num_val, image_size, seed, max_objects, num_shards)
    wanted = {"version": FORMAT_VERSION} | dataclasses.asdict(drawing)
    return drawn_folders.draw_once(
        output, "shapes", PARAMETERS_FILE, wanted, lambda folder: write_shapes(folder, drawing)
    )


def write_shapes(output: str, drawing: Drawing) -> None:
    """Draws the data set into a new folder.

    Leaves `images/{train,val}/*.jpg`, `annotations/instances_{train,val}.json` in COCO form, the
    record directories `train` and `val`, and, last, `shapes.json` with the drawing.

    Raises:
        FileExistsError: if `output` holds finished records.
    """
    os.makedirs(os.path.join(output, "annotations"), exist_ok=True)
    for split, num_images in (("train", drawing.num_train), ("val", drawing.num_val)):
        folder = os.path.join(output, "images", split)
        path = os.path.join(output, "annotations", f"instances_{split}.json")
        os.makedirs(folder, exist_ok=True)
        ids = [_FIRST_IMAGE_ID[split] + number for number in range(num_images)]
        dataset = _draw_images(folder, ids, drawing)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(dataset, file)
        coco.convert(
            images=folder,
            annotations=path,
            output=os.path.join(output, split),
            num_shards=min(drawing.num_shards, num_images),
            num_workers=0,  # to start a process takes longer than its share of the work
            strict=True,
            progress=False,
        )
    with open(os.path.join(output, PARAMETERS_FILE), "w", encoding="utf-8") as file:
        json.dump({"version": FORMAT_VERSION} | dataclasses.asdict(drawing), file, indent=1)


def _draw_images(folder, ids, drawing):
    """Draws images into a folder and returns their data set in COCO form."""
    seed, size = drawing.seed, drawing.image_size
    dataset = {
        "info": {"description": f"shapes drawn from seed {seed}"},
        "categories": [
            {"id": i, "name": name, "keypoints": list(KEYPOINTS)}
            for i, name in enumerate(CATEGORIES, start=1)
        ],
        "images": [],
        "annotations": [],
    }
    for image_id in ids:
        pixels, labels, masks = draw_image(seed, image_id, size, drawing.max_objects)
        name = f"{image_id:07d}.jpg"
        with open(os.path.join(folder, name), "wb") as file:
            file.write(_encode_jpeg(pixels))
        dataset["images"].append({"id": image_id, "file_name": name, "height": size, "width": size})
        dataset["annotations"] += _annotations(image_id, labels, masks)
    return dataset


def draw_image(
    seed: int, image_id: int, image_size: int, max_objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one image. K shapes, S pixels a side.

    Args:
        seed: integer >= 0.
        image_id: integer >= 0; with the seed it decides everything.
        image_size: S.
        max_objects: K is 1 to this.

    Returns:
        (pixels uint8 [S, S, 3] RGB, labels int64 [K] category ids, masks bool [K, S, S] of the
        visible pixels; no pixel is in two masks). The shapes are in order from back to front.
    """
    rng = np.random.default_rng([seed, image_id])
    canvas, palette = _draw_background(rng, image_size)
    count = int(rng.integers(1, max_objects + 1))
    labels = rng.integers(1, len(CATEGORIES) + 1, count)
    coverages, windows, colours = [], [], []
    for label in labels:
        coverage, window = _draw_coverage(rng, CATEGORIES[label - 1], image_size)
        coverages.append(coverage)
        windows.append(window)
        colours.append(_pick_colour(rng, palette, colours))
    shapes = np.stack(coverages) >= 128
    kept = _visible_enough(shapes)
    for k in kept:
        ramp = _ramp(image_size, rng.uniform(0, 2 * math.pi))[windows[k]]
        shading = np.float32(1) + np.float32(rng.uniform(0, 0.15)) * ramp
        alpha = coverages[k][windows[k]] * np.float32(1 / 255)
        below = canvas[windows[k]]
        below += alpha[..., None] * (colours[k].astype(np.float32) * shading[..., None] - below)
    noise = _noise(seed, image_size)
    row, column = rng.integers(0, image_size, 2)
    noise = noise[row : row + image_size, column : column + image_size]
    canvas += np.float32(rng.uniform(0.01, 0.04)) * noise
    canvas *= 255
    canvas += 0.5
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    return pixels, labels[kept], _visible(shapes[kept])


def _draw_background(rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (float32 [S, S, 3] in 0..1, its two colours [2, 3])."""
    first = rng.uniform(0.15, 0.85, 3)
    second = np.clip(first + rng.uniform(-0.25, 0.25, 3), 0, 1)
    mix = 0.5 + 0.5 * _ramp(size, rng.uniform(0, 2 * math.pi))
    cells = int(rng.integers(3, 9))
    blobs = Image.fromarray(rng.normal(0, 0.25, (cells, cells)).astype(np.float32))
    mix += np.asarray(blobs.resize((size, size), Image.Resampling.BICUBIC))
    colours = np.stack([first, second]).astype(np.float32)
    return colours[0] + mix[..., None] * (colours[1] - colours[0]), colours


def _pick_colour(rng, palette: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """A colour [3] in 0..1 that can be told from the background, and from other shapes if it can.

    The best of 20 draws where none is good enough.
    """
    draws = rng.uniform(0, 1, (20, 3))
    score = np.linalg.norm(draws[:, None] - palette, axis=-1).min(-1) / MIN_CONTRAST
    if others:
        distances = np.linalg.norm(draws[:, None] - np.stack(others), axis=-1)
        score = np.minimum(score, distances.min(-1) / MIN_SHAPE_CONTRAST)
    good = np.flatnonzero(score >= 1)
    return draws[good[0] if len(good) else np.argmax(score)]


def _draw_coverage(rng, name: str, size: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Which part of each pixel a shape covers.

    Returns:
        (uint8 [S, S], 255 is all of a pixel; the (rows, columns) outside of which it is zero).
    """
    diameter = rng.uniform(MIN_DIAMETER, MAX_DIAMETER) * size
    # The border may cut off a tenth of the diameter.
    centre = rng.uniform(0.4 * diameter, size - 0.4 * diameter, 2)
    angle, aspect = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1)
    corners = centre + diameter / 2 * _corners(name, aspect) @ _rotation(angle)
    start = np.clip(np.floor(corners.min(0)), 0, size).astype(int)
    stop = np.clip(np.ceil(corners.max(0)), 0, size).astype(int)
    drawing = Image.new("L", tuple((stop - start) * _SUPERSAMPLING))
    # Pillow takes the corners for whole pixels, and cuts decimals off towards zero.
    points = np.floor((corners - start) * _SUPERSAMPLING)
    ImageDraw.Draw(drawing).polygon([tuple(point) for point in points.tolist()], fill=255)
    coverage = np.zeros((size, size), np.uint8)
    window = (slice(start[1], stop[1]), slice(start[0], stop[0]))
    coverage[window] = np.asarray(drawing.reduce(_SUPERSAMPLING))
    return coverage, window


def _corners(name: str, aspect: float) -> np.ndarray:
    """Corners (x, y) [P, 2] of a shape in the unit circle, touching it."""
    if name == "rectangle":
        turn = math.atan(aspect)
        angles = np.array([turn, math.pi - turn, math.pi + turn, -turn])
        return np.stack([np.cos(angles), np.sin(angles)], -1)
    num_corners, inner = {"circle": (48, 1), "triangle": (3, 1), "star": (10, 0.45)}[name]
    angles = np.arange(num_corners) * (2 * math.pi / num_corners)
    radius = np.where(np.arange(num_corners) % 2, inner, 1)[:, None]
    return radius * np.stack([np.cos(angles), np.sin(angles)], -1)


def _rotation(angle: float) -> np.ndarray:
    return np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float64
    )


def _visible_enough(shapes: np.ndarray) -> list[int]:
    """Which of bool [K, S, S], from back to front, to draw so that all can be seen."""
    kept = list(range(len(shapes)))
    pixels = shapes.sum((1, 2))
    while True:
        visible = _visible(shapes[kept]).sum((1, 2))
        part = np.where(visible < MIN_VISIBLE_PIXELS, 0, visible / np.maximum(pixels[kept], 1))
        worst = int(np.argmin(part))
        # The one in front is never hidden, so one is always left.
        if part[worst] >= MIN_VISIBLE_PART or len(kept) == 1:
            return kept
        kept.pop(worst)


def _visible(shapes: np.ndarray) -> np.ndarray:
    """Takes from each of bool [K, S, S], from back to front, what those before it hide."""
    visible = shapes.copy()
    covered = np.zeros(shapes.shape[1:], bool)
    for k in reversed(range(len(shapes))):
        visible[k] &= ~covered
        covered |= shapes[k]
    return visible


def _annotations(image_id: int, labels: np.ndarray, masks: np.ndarray) -> list[dict]:
    annotations = []
    for k, (label, mask) in enumerate(zip(labels, masks, strict=True)):
        rle = mask_api.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "id": image_id * (_MAX_OBJECTS + 1) + k,
                "image_id": image_id,
                "category_id": int(label),
                "bbox": mask_api.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "keypoints": [number for x, y in _ends(mask) for number in (x, y, 2)],
                "num_keypoints": len(KEYPOINTS),
            }
        )
    return annotations


def _ends(mask: np.ndarray) -> list[tuple[float, float]]:
    """Pixels (x, y) of a mask that are highest, leftmost, lowest and rightmost, as `KEYPOINTS`.

    Of several, their middle.
    """
    y, x = np.nonzero(mask)
    at_ends = (y == y.min(), x == x.min(), y == y.max(), x == x.max())
    return [(float(x[each].mean()), float(y[each].mean())) for each in at_ends]


def _ramp(size: int, angle: float) -> np.ndarray:
    """float32 [S, S] from -1 to 1 in the direction of an angle."""
    steps = (np.arange(size, dtype=np.float32) * 2 / (size - 1) - 1) / np.float32(math.sqrt(2))
    return np.float32(math.cos(angle)) * steps + np.float32(math.sin(angle)) * steps[:, None]


@functools.lru_cache(maxsize=2)
def _noise(seed: int, size: int) -> np.ndarray:
    """float32 [2S, 2S, 3] of standard deviation 1, that each image takes a window of."""
    noise = np.random.default_rng([seed, 0]).standard_normal((2 * size, 2 * size, 3), np.float32)
    noise.setflags(write=False)
    return noise


def _encode_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
