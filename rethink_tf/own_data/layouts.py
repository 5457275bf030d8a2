"""What a folder of data holds: record directories, COCO's form, or PASCAL VOC's layout.

Recognised, with `train`, `val` (`valid`, `validation`, `test`) or whatever the splits are called:

    train/manifest.json, val/manifest.json              record directories (also *.tfrecord alone)
    train/_annotations.coco.json beside its images      Roboflow's export, or any one COCO file
    annotations/instances_train2017.json, train2017/    COCO's own layout
    trainval.json, images/                              one COCO file, images anywhere below
    Annotations/, JPEGImages/, ImageSets/Main/          PASCAL VOC, also one folder a year

Folders are local. Nothing here needs TensorFlow.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re

TRAINING = ("train", "training", "trainval")
EVALUATION = ("val", "valid", "validation", "test", "testing", "dev")
VOC_FOLDERS = ("Annotations", "JPEGImages", "ImageSets/Main")
# Other files of COCO for the same images.
_OTHER_COCO = re.compile(r"(person_keypoints|captions|panoptic|stuff|image_info|unlabeled)_")
_LOOKED_AT = 10  # images, about: a folder that has one of them is that of a COCO file


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
        kind: "records", "coco" or "voc".
        splits: {name: places}: of records the one directory, of COCO pairs of (folder of images,
            file), of VOC texts "FOLDER:LIST".
    """

    kind: str
    splits: dict[str, list]


def find_layout(data_dir):
    """Says what a folder holds.

    Args:
        data_dir: str.

    Raises:
        FileNotFoundError: if it is no folder.
        ValueError: if nothing in it is known, saying what was found and what is known.
    """
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"DATA_DIR {data_dir} is not a folder.")
    for kind, find in (("records", _find_records), ("voc", _find_voc), ("coco", _find_coco)):
        if splits := find(root):
            return Layout(kind, splits)
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    raise ValueError(
        f"DATA_DIR {data_dir} holds no data of a known layout, but: {shown or 'nothing'}. "
        "Known are record directories (train/manifest.json), COCO files with their images "
        "(train/_annotations.coco.json; annotations/instances_train2017.json and train2017/; "
        "one .json and images/) and PASCAL VOC (Annotations/, JPEGImages/, ImageSets/Main/)."
    )


def choose_splits(layout, wanted=None):
    """Says which split to train on and which to evaluate.

    Args:
        layout: `Layout`.
        wanted: two names, or one for both uses of one split; None for the usual names.

    Returns:
        (name, name), the second None where there is one split alone and a part of it is to be held
        out.

    Raises:
        ValueError: if a name is not there, or the usual ones are not.
    """
    names = list(layout.splits)
    if wanted is not None:
        wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        missing = [name for name in wanted if name not in names]
        if missing or not 1 <= len(wanted) <= 2:
            raise ValueError(
                f"SPLITS = {wanted!r}: give one or two of the splits that the data has: "
                f"{', '.join(names)}."
            )
        return wanted[0], wanted[1] if len(wanted) == 2 else None
    by_kind = {_plain(name): name for name in reversed(names)}
    train = next((by_kind[name] for name in TRAINING if name in by_kind), None)
    evaluation = next((by_kind[name] for name in EVALUATION if name in by_kind), None)
    if train is None and len(names) == 1:
        return names[0], None
    if train is None:
        raise ValueError(
            f"None of the splits {', '.join(names)} is called train: say which to train on and "
            f"which to evaluate: --gin_param='SPLITS=({names[0]!r}, {names[1]!r})'."
        )
    return train, evaluation


def _plain(name):
    """Returns a split's name without a year: "train" for "train2017"."""
    return re.sub(r"[_-]?\d{4}$", "", name).lower()


def _find_records(root):
    def has_records(folder):
        return (folder / "manifest.json").is_file() or any(folder.glob("*.tfrecord"))

    if has_records(root):
        return {root.name: [str(root)]}
    return {folder.name: [str(folder)] for folder in _folders(root) if has_records(folder)}


def _find_voc(root):
    years = [
        folder
        for folder in (root, *_folders(root))
        if all((folder / part).is_dir() for part in VOC_FOLDERS)
    ]
    splits = collections.defaultdict(list)
    for year in years:
        for path in sorted((year / "ImageSets" / "Main").glob("*.txt")):
            # Lists of one class, such as dog_train.txt, say a second word a line.
            if "_" not in path.stem and len((path.read_text().split("\n")[0]).split()) <= 1:
                splits[path.stem].append(f"{year}:{path.stem}")
    if "train" in splits and "val" in splits:
        splits.pop("trainval", None)  # both of them joined
    return dict(splits)


def _find_coco(root):
    in_folders = {}
    for folder in _folders(root):
        files = _coco_files(folder)
        if len(files) == 1 and (images := _images_of(files[0], folder)):
            in_folders[folder.name] = [(images, str(files[0]))]
    if in_folders:
        return in_folders
    splits = {}
    for path in [*_coco_files(root), *_coco_files(root / "annotations")]:
        if images := _images_of(path, root):
            name = re.sub(r"^(instances|annotations?)[_-]", "", path.stem)
            splits[_plain(name)] = [(images, str(path))]
    return splits


def _coco_files(folder):
    """Returns the COCO files of objects in a folder."""
    if not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.glob("*.json")) if _is_coco(path)]
    of_objects = [path for path in paths if not _OTHER_COCO.match(path.name)]
    return of_objects or paths


def _is_coco(path):
    return {"images", "annotations", "categories"} <= _read(path).keys()


def _read(path):
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _images_of(path, root):
    """Returns the folder below `root` that the file names of a COCO file are relative to."""
    entries = _read(path)["images"]
    names = [each.get("file_name") for each in entries if isinstance(each, dict)]
    names = [name for name in names if isinstance(name, str)]
    step = max(len(names) // _LOOKED_AT, 1)
    below = sorted(folder for folder, _, _ in os.walk(root))
    for folder in [str(path.parent), *below]:
        if any(os.path.isfile(os.path.join(folder, name)) for name in names[::step]):
            return folder
    return None


def _folders(root):
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def sizes(layout, data_dir):
    """Returns {path relative to data_dir: size} of what annotates the data; see `changed`."""
    paths = set()
    for place in sum(layout.splits.values(), []):
        if layout.kind == "coco":
            paths.add(place[1])
        else:
            folder, _, name = place.rpartition(":")
            paths |= {f"{folder}/ImageSets/Main/{name}.txt", f"{folder}/Annotations"}
    return {os.path.relpath(path, data_dir): _size(path) for path in sorted(paths)}


def changed(sizes, data_dir):
    """Returns the first path whose size is no longer what `sizes` says, or None."""
    for path, size in sizes.items():
        if _size(os.path.join(data_dir, path)) != size:
            return path
    return None


def _size(path):
    """Returns a file's size in bytes, of a folder that of all its files; -1 where there is none."""
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path))
    return os.path.getsize(path) if os.path.exists(path) else -1
