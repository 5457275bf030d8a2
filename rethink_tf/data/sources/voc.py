"""PASCAL VOC's layout, read, checked and converted to a directory of TFRecords.

A set is a folder of one year (JPEGImages, Annotations, ImageSets/Main) and a list in it; all are
joined into one data set of boxes. The entries are brought into COCO's form and then checked,
skipped and written as those of `coco` are.

VOC's boxes (xmin, ymin, xmax, ymax) are 1-based pixels and hold the last one: xmin = 1, xmax = 500
are all columns of an image 500 wide. In continuous coordinates that is (xmin - 1, ymin - 1, xmax,
ymax). Objects marked as difficult are kept with "difficult": 1 in the ground truth and a feature of
that name in the records; `pipeline` and `voc_metrics` say what becomes of them.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import tensorflow as tf
import tqdm

from rethink_tf.data.records.skips import SkipLog
from rethink_tf.data.sources import coco_checks, image_files, writing

# In the order of the devkit; category ids 1 to 20.
CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor".split()
)

# What annotators' tools write in place of 0 and 1.
_DIFFICULT = {"": 0, "0": 0, "false": 0, "no": 0, "unspecified": 0, "1": 1, "true": 1, "yes": 1}
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_UNKNOWN = len(_IMAGE_ENDINGS)
_IMAGES_A_YEAR = 10**6
# Above every id of a year.
_FIRST_HASHED_ID = 2**48


def convert(
    sets: Sequence[str],
    output: str,
    num_shards: int,
    *,
    classes: Sequence[str] = CLASSES,
    **options,
) -> dict:
    """Converts sets of images with their boxes to TFRecords.

    Args:
        sets: "FOLDER:LIST" each, such as "VOCdevkit/VOC2007:trainval".
        output: folder to make.
        num_shards: number of record files.
        classes: names of the classes; the k-th (from 1) has category id k.
        **options: further attributes of `writing.Conversion`.

    Returns:
        The manifest, as it is in `output`. "num_objects" counts difficult ones too.

    Raises:
        coco_checks.BadEntryError: in strict mode, at the first bad entry.
        ValueError: if an object is of an unknown class, two images have one id, nothing is left,
            there are fewer images than `num_images`, or an argument is bad.
        FileNotFoundError: if a folder or a list is not there.
        FileExistsError, ChildProcessError: as in `coco.convert`.
    """
    if not sets:
        raise ValueError("no set was given; write FOLDER:LIST, such as VOCdevkit/VOC2007:trainval")
    conversion = writing.Conversion(output, num_shards, **options)
    skips = SkipLog(conversion.strict)
    reader = _Reader(classes, skips, conversion.image_options)
    places = [_split_set(text) for text in sets]
    listed = [(folder, split, _read_list(folder, split)) for folder, split in places]
    for folder, split, names in listed:
        for name in tqdm.tqdm(names, "annotations", unit="image", disable=not conversion.progress):
            reader.read(folder, split, name)
    checked = coco_checks.check_dataset(reader.dataset, skips, reader.object_names)
    return writing.write_records(
        checked,
        lambda image: reader.parents[image["id"]],
        skips,
        where=", ".join(sets),
        source={"sets": [f"{os.path.basename(folder)}:{split}" for folder, split in places]},
        conversion=conversion,
    )


def image_id(folder: str, name: str) -> int:
    """Returns the id of an image, which depends on its year and name alone.

    Year and number where it has both, the year from the name or else from the folder: 2007000027
    for "2007_000027" and for "000027" in "VOC2007" (they are the same photograph). Other names get
    a hash of "FOLDER/NAME" above these.

    Args:
        folder: the folder of the year, or its last part.
        name: as in the lists, without ".jpg".
    """
    folder = os.path.basename(folder)
    dated = re.fullmatch(r"(\d{4})_(\d{1,6})", name)
    year = re.search(r"\d{4}$", folder)
    if dated:
        return int(dated[1]) * _IMAGES_A_YEAR + int(dated[2])
    if year and re.fullmatch(r"\d{1,6}", name):
        return int(year[0]) * _IMAGES_A_YEAR + int(name)
    digest = hashlib.blake2b(f"{folder}/{name}".encode(), digest_size=6).digest()
    return _FIRST_HASHED_ID + int.from_bytes(digest, "big")


def _split_set(text: str) -> tuple[str, str]:
    """Returns the folder, absolute, and the list of "FOLDER:LIST"."""
    folder, colon, split = text.rpartition(":")
    if not (folder and colon and split) or split.startswith("//"):
        raise ValueError(
            f"--set={text}: write FOLDER:LIST, such as VOCdevkit/VOC2007:trainval for the images "
            "that VOCdevkit/VOC2007/ImageSets/Main/trainval.txt lists"
        )
    return folder.rstrip("/") if "://" in folder else os.path.abspath(folder), split


def _read_list(folder: str, split: str) -> list[str]:
    """Returns the names in ImageSets/Main/<split>.txt."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        if not tf.io.gfile.isdir(os.path.join(folder, part)):
            raise FileNotFoundError(
                f"{folder} has no folder {part}; give the folder of one year, such as "
                "VOCdevkit/VOC2007"
            )
    main = os.path.join(folder, "ImageSets", "Main")
    path = os.path.join(main, f"{split}.txt")
    if not tf.io.gfile.exists(path):
        there = sorted(os.path.basename(found) for found in tf.io.gfile.glob(f"{main}/*.txt"))
        lists = ", ".join(name.removesuffix(".txt") for name in there) or "none"
        raise FileNotFoundError(f"{path} is missing; the lists there are: {lists}")
    with tf.io.gfile.GFile(path, "rb") as file:
        # Names of files keep bytes that are not UTF-8, by which they are found.
        text = file.read().decode("utf-8-sig", "surrogateescape")
        lines = [line.split() for line in text.splitlines()]
    for number, words in enumerate(lines, start=1):
        if len(words) > 1:
            raise ValueError(
                f"{path} line {number} holds {len(words)} words, not the name of one image; "
                "lists of one class (such as dog_train) cannot be converted"
            )
    return [words[0] for words in lines if words]


class _BadEntryError(Exception):
    """Carries what is wrong with a file or an object, without its name."""


class _Reader:
    """Collects images and objects in COCO's form.

    Attributes:
        dataset: what `coco_checks.check_dataset` takes.
        object_names: annotation id -> how messages call it.
        parents: image id -> the folder that its "file_name" is relative to.
    """

    def __init__(self, classes, skips, options):
        classes = [str(name).strip() for name in classes]
        if not all(classes) or len(set(classes)) != len(classes):
            raise ValueError(f"the classes must be different names, found {classes}")
        self._ids = {name: position for position, name in enumerate(classes, start=1)}
        self._skips, self._options = skips, options
        self._files_of: dict[str, dict[str, str]] = {}
        self._owners: dict[int, str] = {}
        self.object_names: dict[int, str] = {}
        self.parents: dict[int, str] = {}
        categories = [{"id": key, "name": name} for name, key in self._ids.items()]
        self.dataset = {"categories": categories, "images": [], "annotations": []}

    def read(self, folder, split, name):
        """Reads the annotations of one image.

        Raises:
            ValueError: if its id was met before, or an object is of an unknown class.
        """
        parent, year = os.path.split(folder)
        key = self._claim_id(year, split, name)
        path = os.path.join(folder, "Annotations", f"{name}.xml")
        shown = f"{year}/Annotations/{name}.xml"
        try:
            root = _parse(path)
        except FileNotFoundError:
            self._skips.add("annotation_file_missing", f"{shown}: there is no such file")
            return
        except _BadEntryError as error:
            self._skips.add("annotation_file_malformed", f"{shown}: {error}")
            return
        objects = []
        for position, element in enumerate(root.findall("object"), start=1):
            where = f"{shown}: object {position}"
            try:
                label, entry = self._read_object(element, where)
            except _BadEntryError as error:
                self._skips.add("annotation_malformed", f"{where}: {error}")
                continue
            objects.append((f"{where} ({label})", entry))
        file_name = self._find_image(folder, name, root.findtext("filename"))
        try:
            size = self._read_size(root, os.path.join(parent, file_name))
        except _BadEntryError as error:
            self._skips.add("image_malformed", f"{shown}: {error}")
            for where, _ in objects:
                self._skips.add("annotation_of_skipped_image", f"{where}: its image was skipped")
            return
        self.parents[key] = parent
        self.dataset["images"].append({"id": key, "file_name": file_name, **size})
        for where, entry in objects:
            number = len(self.object_names) + 1
            self.object_names[number] = where
            self.dataset["annotations"].append({"id": number, "image_id": key, **entry})

    def _claim_id(self, year, split, name):
        key, owner = image_id(year, name), f"{name} of {year}:{split}"
        if key in self._owners:
            raise ValueError(
                f"{owner} has the image id {key}, which {self._owners[key]} has: it is the same "
                "image twice, or the names of two differ in zeros alone. Take it from one list, or "
                "rename it"
            )
        self._owners[key] = owner
        return key

    def _find_image(self, folder, name, stated):
        """Returns the path of an image, from the folder above that of its year.

        It is the file of the list's name, whatever its ending, else the one that <filename> states.
        """
        if folder not in self._files_of:
            found = tf.io.gfile.listdir(os.path.join(folder, "JPEGImages"))
            endings = {os.path.splitext(each) for each in sorted(found)}
            # .jpg wins where an image lies there in several forms.
            by_preference = sorted(endings, key=lambda e: (_rank(e[1]), e[1]), reverse=True)
            self._files_of[folder] = {
                stem: stem + ending for stem, ending in by_preference if _rank(ending) < _UNKNOWN
            }
        files = self._files_of[folder]
        stated = os.path.basename((stated or "").strip().replace("\\", "/"))
        found = files.get(name) or files.get(os.path.splitext(stated)[0]) or f"{name}.jpg"
        return f"{os.path.basename(folder)}/JPEGImages/{found}"

    def _read_size(self, root, path):
        """Returns {"height", "width"}; the image tells them where the file states 0 or nothing."""
        texts = {s: (root.findtext(f"size/{s}") or "").strip() for s in ("height", "width")}
        if all(re.fullmatch(r"0*[1-9]\d{0,8}", text) for text in texts.values()):
            return {side: int(text) for side, text in texts.items()}
        if not all(re.fullmatch(r"0*", text) for text in texts.values()):
            side = next(
                s for s, text in texts.items() if not re.fullmatch(r"\d*", text) or int(text)
            )
            raise _BadEntryError(f"{side} of its size is {texts[side]!r}, not a positive integer")
        try:
            height, width = image_files.read_size(path, self._options)
        except image_files.UnusableError as error:
            raise _BadEntryError(
                f"its size is {texts['height'] or 'missing'}, and of its image: {error.args[1]}"
            ) from error
        return {"height": height, "width": width}

    def _read_object(self, element, where):
        """Returns the name of the class, and the annotation without its ids."""
        label = (element.findtext("name") or "").strip()
        if not label:
            raise _BadEntryError("it has no name of a class")
        if label not in self._ids:
            raise ValueError(
                f"{where} is of class {label!r}, which is none of the {len(self._ids)} known: "
                f"{', '.join(self._ids)}. Correct it, or give the data set's own by --classes"
            )
        sides = ("xmin", "ymin", "xmax", "ymax")
        x1, y1, x2, y2 = (_read_coordinate(element, side) for side in sides)
        x1, y1 = x1 - 1, y1 - 1
        difficult = (element.findtext("difficult") or "").strip()
        if difficult.lower() not in _DIFFICULT:
            raise _BadEntryError(f"difficult is {difficult!r}, not 0 or 1")
        return label, {
            "category_id": self._ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
            "difficult": _DIFFICULT[difficult.lower()],
        }


def _parse(path):
    """Returns the root of an annotation file."""
    try:
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as file:
            root = ElementTree.fromstring(file.read())
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(path) from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # of an encoding, too
        raise _BadEntryError(f"not XML ({error})") from error
    if root.tag != "annotation":
        raise _BadEntryError(f"its root is <{root.tag}>, not <annotation>")
    return root


def _rank(ending):
    """How much an ending of an image's file is preferred, 0 the most."""
    ending = ending.lower()
    return _IMAGE_ENDINGS.index(ending) if ending in _IMAGE_ENDINGS else _UNKNOWN


def _read_coordinate(element, side):
    text = element.findtext(f"bndbox/{side}")
    try:
        value = float(text or "")
    except ValueError:
        value = None
    if not coco_checks.is_finite_number(value):
        raise _BadEntryError(f"{side} of its box is {text!r}, not a finite number")
    return value
