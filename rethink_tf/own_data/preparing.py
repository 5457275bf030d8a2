"""Makes record directories of a folder of data, once, and says where they are."""

import dataclasses
import glob
import json
import os
import shutil
import uuid
from xml.etree import ElementTree

from absl import logging

from rethink_tf import console, files
from rethink_tf.data.sources import coco, voc
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


def prepare(data_dir, model_dir, wanted=None, is_training=True):
    """Returns the record directories of a folder, and makes them where there are none.

    They are made in `records` of the model's folder, never in the user's own: other runs take that
    as their data. They are made beside it first and renamed: of two processes, one finds the
    other's.

    Args:
        data_dir: str, what the user has; see `layouts`.
        model_dir: str.
        wanted: names of splits, as of `layouts.choose_splits`.
        is_training: whether the run goes on training; other data may only be evaluated.

    Raises:
        ValueError: if nothing there is known or can be used, or it is not what the run began with.
        FileNotFoundError: if there is no such folder.
    """
    for folder in (data_dir, model_dir):
        if "://" in str(folder):
            raise ValueError(
                f"{folder} is not on a local disk, which own_data.gin needs: make the records with "
                "python -m rethink_tf.data.coco, and train them with another gin file."
            )
    data_dir, model_dir = os.path.abspath(data_dir), os.path.abspath(model_dir)
    places = sorted(glob.glob(os.path.join(glob.escape(model_dir), f"{FOLDER}*", SOURCE_FILE)))
    differing = None
    for path in places:
        source = files.read_json(path, "remove its folder, and the records are made again.")
        differing = layouts.changed(source["sizes"], data_dir)
        if differing is None:
            layout = layouts.Layout("records", {name: [] for name in source["splits"]})
            return Prepared(os.path.dirname(path), *layouts.choose_splits(layout, wanted))
    layout = layouts.find_layout(data_dir)
    if layout.kind == "records":
        train, evaluation = layouts.choose_splits(layout, wanted)
        return Prepared(os.path.dirname(layout.splits[train][0]), train, evaluation)
    if places and is_training:
        raise ValueError(
            f"The run in {model_dir} began with other data than {data_dir} holds now ({differing} "
            "differs): take another MODEL_DIR."
        )
    place = os.path.join(model_dir, FOLDER + (f"-{len(places) + 1}" if places else ""))
    _make(place, layout, data_dir)
    return prepare(data_dir, model_dir, wanted, is_training)


def _make(place, layout, data_dir):
    """Converts every split of a folder."""
    logging.info(
        "Making records of %s in %s (for other runs: DATA_DIR=%r).", data_dir, place, place
    )
    folder, name = os.path.split(place)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        classes = _voc_classes(layout)
        for name, found in layout.splits.items():
            manifest = _convert(layout.kind, found, os.path.join(temporary, name), classes)
            logging.info(
                "%s: %d images, %d objects, %d with masks, skipped: %s.",
                name,
                manifest["num_images"],
                manifest["num_objects"],
                manifest["num_masks"],
                manifest["skipped"] or "nothing",
            )
        source = {"splits": list(layout.splits), "sizes": layouts.sizes(layout, data_dir)}
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
