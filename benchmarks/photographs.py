"""Drawn data with the statistics of COCO's photographs, where no real ones are at hand.

Sizes, bytes an image, objects an image and the sizes of the objects are about COCO's (train2017),
as it is these that the input pipeline's time depends on.
"""

import contextlib
import json
import pathlib
import tempfile

import numpy as np
from PIL import Image, ImageDraw

NUM_CATEGORIES = 80
# 860,001 objects on 118,287 photographs.
OBJECTS_AN_IMAGE = 7.3
# (height, width) of the three most common forms and about how often they come.
SIZES = ((480, 640), (427, 640), (640, 480))
SIZE_SHARES = (0.45, 0.3, 0.25)
# Smallest and largest side of an object, as parts of the image's, evenly in their logarithm.
MIN_PART, MAX_PART = 0.04, 0.8
# With this much grain and quality an image has the 160 KB that COCO's photographs have.
GRAIN, JPEG_QUALITY = 10.0, 92


def add_arguments(parser):
    """Adds the choice of the records to an argparse parser; see `records_of`."""
    parser.add_argument("--data", default=None, help="record directory; drawn if not given")
    parser.add_argument("--photographs", type=int, default=64, help="images to draw, 4 or more")
    parser.add_argument(
        "--objects", type=float, default=OBJECTS_AN_IMAGE, help="drawn an image, on average"
    )


@contextlib.contextmanager
def records_of(flags):
    """Gives the record directory of the command line, or one that is drawn and then removed."""
    if flags.data is not None:
        yield flags.data
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_records(
            pathlib.Path(folder) / "data",
            flags.photographs,
            flags.seed,
            num_objects=flags.objects,
        )


def make_records(directory, num_images, seed, num_shards=4, num_objects=OBJECTS_AN_IMAGE):
    """Draws photographs, writes them as a COCO data set and converts it with the project's tool.

    The same arguments give the same records.

    Args:
        directory: where to put the data set; the records are in its folder `records`.
        num_images: int, at least num_shards.
        seed: int.
        num_shards: int.
        num_objects: float >= 1, objects an image on average; their number is distributed
            geometrically and at most eight times that.

    Returns:
        str, the record directory.
    """
    from rethink_tf.data.sources import coco  # Late: workers only need the options.

    directory = pathlib.Path(directory)
    folder = directory / "images"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        generator = np.random.default_rng([seed, image_id])
        height, width = SIZES[generator.choice(len(SIZES), p=SIZE_SHARES)]
        outlines = draw_outlines(generator, height, width, num_objects)
        picture = paint(generator, height, width, outlines)
        name = f"{image_id:06d}.jpg"
        picture.save(folder / name, "JPEG", quality=JPEG_QUALITY)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for outline in outlines:
            annotations.append(make_annotation(len(annotations) + 1, image_id, outline, generator))
    names = [{"id": k, "name": f"category {k}"} for k in range(1, NUM_CATEGORIES + 1)]
    dataset = {"images": images, "annotations": annotations, "categories": names}
    instances = directory / "instances.json"
    instances.write_text(json.dumps(dataset))
    records = str(directory / "records")
    coco.convert(str(folder), str(instances), records, num_shards, num_workers=0, progress=False)
    return records


def draw_outlines(generator, height, width, num_objects):
    """Draws the outlines of one image's objects: ellipses with up to a third of unevenness.

    Args:
        generator: numpy Generator.
        height: int, pixels.
        width: int, pixels.
        num_objects: float, the mean of their number.

    Returns:
        list of float [P, 2], (x, y), pixels, within the image.
    """
    outlines = []
    for _ in range(min(generator.geometric(1 / num_objects), round(8 * num_objects))):
        extent = np.exp(generator.uniform(np.log(MIN_PART), np.log(MAX_PART), 2))
        radii = extent * [width, height] / 2
        centre = radii + generator.uniform(0, 1, 2) * ([width, height] - 2 * radii)
        angle = np.linspace(0, 2 * np.pi, generator.integers(12, 60), endpoint=False)
        waves = generator.uniform(0, 1 / 9, 3) * np.cos(
            angle[:, np.newaxis] * [2, 3, 5] + generator.uniform(0, 2 * np.pi, 3)
        )
        reach = np.clip(1 + waves.sum(-1), 0, 4 / 3) * 3 / 4
        unit = np.stack([np.cos(angle), np.sin(angle)], -1)
        outlines.append(centre + unit * reach[:, np.newaxis] * radii)
    return outlines


def paint(generator, height, width, outlines):
    """Paints an image: noise of the spectrum f ** -1.25, objects, and grain.

    Args:
        generator: numpy Generator.
        height: int, pixels.
        width: int, pixels.
        outlines: of `draw_outlines`.

    Returns:
        PIL image, RGB.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    amplitude = np.maximum(frequency, 1 / max(height, width)) ** -1.25
    layers = np.fft.rfft2(generator.normal(size=[4, height, width])) * amplitude
    layers = np.fft.irfft2(layers, s=(height, width))
    layers /= layers.std((1, 2), keepdims=True)
    # Light varies more than colour.
    scene = 120 + 45 * layers[0, ..., np.newaxis] + 15 * np.moveaxis(layers[1:], 0, -1)
    picture = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    for outline in outlines:
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in outline], fill=140)
        picture.paste(tuple(generator.integers(0, 256, 3).tolist()), mask=mask)
    grain = generator.normal(scale=GRAIN, size=[height, width, 1])
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def make_annotation(annotation_id, image_id, outline, generator):
    """Returns COCO's entry of an object; its category is drawn."""
    low, high = outline.min(0), outline.max(0)
    x, y = outline.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": int(generator.integers(1, NUM_CATEGORIES + 1)),
        "bbox": [*low.round(2).tolist(), *(high - low).round(2).tolist()],
        "area": float(area),
        "iscrowd": 0,
        "segmentation": [outline.round(2).ravel().tolist()],
    }
