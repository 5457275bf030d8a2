"""Makes record directories of a folder of data, once, and says where they are."""

import dataclasses
import json
import os
import shutil
import uuid
from xml.etree import ElementTree

from absl import logging

from rethink_tf import console, files
from rethink_tf.data import coco, voc
from rethink_tf.own_data import layouts

FOLDER = "records"
SOURCE_FILE = "source.json"
IMAGES_A_SHARD = 500
MAX_SHARDS = 32
# Below, starting processes takes longer than they save.
IMAGES_FOR_WORKERS = 200


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where the record directories of a run are.

    Attributes:
        data_dir: str, the folder that they are in.
        train_split: str, the name of one.
        evaluation_split: str, the name of one, or None: a part of the other is to be held out.
    """

    data_dir: str
    train_split: str
    evaluation_split: str | None


def prepare(data_dir, model_dir, wanted=None):
    """Returns the record directories of a folder, and makes them where there are none.

    They are made in the folder's own `records`, or in that of the model where the data cannot be
    written to. They are made beside it first and renamed: of two processes, one finds the other's.

    Args:
        data_dir: str, what the user has; see `layouts`.
        model_dir: str.
        wanted: names of splits, as of `layouts.choose_splits`.

    Raises:
        ValueError: if nothing there is known or can be used, or it changed since the records were
            made.
        FileNotFoundError: if there is no such folder.
    """
    data_dir = os.path.abspath(data_dir)
    places = [os.path.join(folder, FOLDER) for folder in (data_dir, os.path.abspath(model_dir))]
    for place in places:
        if os.path.exists(os.path.join(place, SOURCE_FILE)):
            return _take(place, data_dir, wanted)
    layout = layouts.find_layout(data_dir)
    if layout.kind == "records":
        train, evaluation = layouts.choose_splits(layout, wanted)
        return Prepared(os.path.dirname(layout.splits[train][0]), train, evaluation)
    place = places[0] if os.access(data_dir, os.W_OK) else places[1]
    _make(place, layout, data_dir)
    return _take(place, data_dir, wanted)


def _take(place, data_dir, wanted):
    """Returns records that were made before; they must be of what lies in the folder now."""
    with open(os.path.join(place, SOURCE_FILE)) as file:
        source = json.load(file)
    if source["data_dir"] == data_dir and (path := layouts.changed(source["sizes"], data_dir)):
        raise ValueError(
            f"{os.path.join(data_dir, path)} changed after {place} was made of it: remove {place} "
            "to have it made again (and take another MODEL_DIR for a run on the new data)."
        )
    layout = layouts.Layout("records", {name: [] for name in source["splits"]})
    return Prepared(place, *layouts.choose_splits(layout, wanted))


def _make(place, layout, data_dir):
    """Converts every split of a folder."""
    logging.info("Making records of %s in %s.", data_dir, place)
    temporary = f"{place}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        classes = _voc_classes(layout)
        for name, found in layout.splits.items():
            manifest = _convert(layout.kind, found, os.path.join(temporary, name), classes)
            logging.info(
                "%s: %d images, %d objects%s, skipped: %s.",
                name,
                manifest["num_images"],
                manifest["num_objects"],
                " with masks" if manifest["has_masks"] else "",
                manifest["skipped"] or "nothing",
            )
        source = {
            "data_dir": data_dir,
            "splits": list(layout.splits),
            "sizes": layouts.sizes(layout, data_dir),
        }
        files.write_whole(os.path.join(temporary, SOURCE_FILE), json.dumps(source, indent=1) + "\n")
        try:
            os.rename(temporary, place)  # fails if another process has put its own there
        except OSError:
            if not os.path.exists(os.path.join(place, SOURCE_FILE)):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(kind, found, output, classes):
    """Converts one split and returns its manifest."""
    num_images = sum(_count_images(kind, place) for place in found)
    options = {
        "output": output,
        "num_shards": min(max(num_images // IMAGES_A_SHARD, 1), MAX_SHARDS),
        "num_workers": 0 if num_images < IMAGES_FOR_WORKERS else None,
        "progress": console.shows_bars(),
    }
    if kind == "voc":
        return voc.convert(found, classes=classes, **options)
    ((images, annotations),) = found
    return coco.convert(images, annotations, **options)


def _count_images(kind, place):
    if kind == "coco":
        with open(place[1], "rb") as file:
            return len(json.load(file)["images"])
    return len(_listed(place))


def _listed(place):
    """Returns the XML files of a VOC list."""
    folder, _, name = place.rpartition(":")
    with open(os.path.join(folder, "ImageSets", "Main", f"{name}.txt")) as file:
        names = [line.split()[0] for line in file if line.strip()]
    return [os.path.join(folder, "Annotations", f"{each}.xml") for each in names]


def _voc_classes(layout):
    """Returns VOC's classes where there are no others, else the names that the objects have."""
    if layout.kind != "voc":
        return None
    names = set()
    for path in {path for place in sum(layout.splits.values(), []) for path in _listed(place)}:
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except (OSError, ElementTree.ParseError):
            continue  # the converter names it
        names |= {(each.findtext("name") or "").strip() for each in objects}
    return voc.CLASSES if names <= set(voc.CLASSES) else sorted(names - {""})
