"""What is analysed: the last evaluation of a run, or anybody's results in COCO's form."""

import dataclasses
import functools
import io
import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from rethink_tf import files, metrics_file
from rethink_tf.evaluation import coco_columns, coco_metrics, comparing
from rethink_tf.report import pictures, run_data

# What is compared beside boxes, and what annotations and results have it under.
_KEYS = {"segm": "segmentation", "keypoints": "keypoints"}


class NoImageError(ValueError):
    """An image can't be shown."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Ground truth and detections of some images.

    Attributes:
        title: what the results are of.
        truth: `coco_columns.GroundTruth`.
        names: K names of the categories, in the order of their ids.
        found: `coco_columns.Results`.
        iou_types: of "bbox", "segm" and "keypoints", what can be compared.
        read_image: callable taking an entry of the ground truth's images, returns uint8 [H, W, 3],
            or raises `NoImageError`; None where there are no images to read.
    """

    title: str
    truth: coco_columns.GroundTruth
    names: list[str]
    found: coco_columns.Results
    iou_types: list[str]
    read_image: Callable | None

    @functools.cached_property
    def drawable_names(self) -> dict[int, str]:
        """Names that pictures can show, by the position of the category."""
        return pictures.drawable_names(dict(enumerate(self.names)))


def read_files(annotations: str, results: str, images: str | None) -> Case:
    """Reads a ground truth and results in COCO's form.

    Args:
        annotations: path of the ground truth's JSON.
        results: path of the results' JSON.
        images: folder of the images, by their "file_name"; None for no pictures.

    Raises:
        ValueError: if a file is not in COCO's form, or the results are not of the ground truth.
        OSError: if one does not read.
    """
    return _make_case(results, annotations, annotations, results, _from_folder(images))


def read_run(model_dir: str, annotations: str | None, images: str | None) -> Case:
    """Reads the newest evaluation of a run, one by test augmentation only if there is no other.

    Args:
        model_dir: folder of the run.
        annotations: path of the ground truth's JSON; None for that of the run's records.
        images: folder of the images; None for those of the records.

    Raises:
        ValueError: if the run has no evaluation, or does not say of which images.
        OSError: if its records do not read.
    """
    step, is_augmented = _newest_evaluation(model_dir)
    results = metrics_file.results_path(model_dir, step, is_augmented)
    title = f"{model_dir}, step {step:,}" + ", by test augmentation" * is_augmented
    if annotations:
        case = read_files(annotations, results, images)
        return dataclasses.replace(case, title=title)
    described = run_data.read(model_dir).get("evaluation")
    if not described:
        raise ValueError(
            f"{model_dir} does not say what it was evaluated on ({run_data.FILE}): evaluate it "
            "again by --mode=evaluate, or give --annotations."
        )
    # Only now: reading records needs TensorFlow.
    from rethink_tf.data.records import splits

    directory = described["directory"]
    if not files.exists(directory):
        raise ValueError(
            f"{directory}, the records of {model_dir}, is not there: give its ground_truth.json by "
            "--annotations, and the images by --images."
        )
    truth = splits.load_ground_truth(directory, _evaluated_ids(model_dir, described))
    read_image = _from_folder(images) or functools.partial(_from_records, directory, {})
    return _make_case(title, truth, directory, results, read_image)


def _newest_evaluation(model_dir):
    """Returns the step, and whether it is by test augmentation."""
    for is_augmented in (False, True):
        steps = metrics_file.evaluated_steps(model_dir, is_augmented)
        for step in sorted(steps, reverse=True):
            if files.exists(metrics_file.results_path(model_dir, step, is_augmented)):
                return step, is_augmented
    raise ValueError(
        f"{model_dir} holds no evaluation (results/detections-STEP.json): give the folder of a run "
        "that was evaluated, or --annotations and --results."
    )


def _evaluated_ids(model_dir, described):
    """Returns the ids of the images that a run was evaluated on; older runs do not name them."""
    from rethink_tf.data.records import store

    if "image_ids" in described:
        return described["image_ids"]
    ids = store.load_index(described["directory"]).image_id.tolist()
    if len(ids) != described["num_images"]:
        raise ValueError(
            f"{model_dir} was evaluated on {described['num_images']:,} of the {len(ids):,} images "
            f"of {described['directory']}, and does not say which: evaluate it again by "
            "--mode=evaluate."
        )
    return ids


def _make_case(title, truth, where, results, read_image):
    columns = coco_columns.GroundTruth(truth)
    kept = comparing.kept_images(columns)
    try:
        objects = columns.instances("bbox", kept)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if objects.crowds.all():
        raise ValueError(f"{where} has no object to find, crowd regions aside.")
    entries = coco_metrics.read_results(results)
    try:
        found = coco_columns.Results(entries, columns)
        iou_types = ["bbox"]
        for each, key in _KEYS.items():
            if columns.have(key, kept).any() and any(entry.get(key) for entry in entries):
                iou_types.append(each)
        for each in iou_types:  # which checks them
            found.instances(each, kept, np.zeros(0, np.int64))
    except ValueError as error:
        raise ValueError(f"{results}: {error}") from error
    names = list(coco_metrics.unique_names(columns.categories).values())
    return Case(title, columns, names, found, iou_types, read_image)


def _from_folder(images):
    if images is None:
        return None
    if not os.path.isdir(images):
        raise ValueError(f"--images: there is no folder {images}.")

    def read_image(entry):
        name = entry.get("file_name")
        if not name:
            raise NoImageError(f"image {entry['id']} has no file_name")
        path = os.path.join(images, name)
        return _decode(files.read_bytes(path), path, entry)

    return read_image


def _from_records(directory, opened, entry):
    """Returns the image of an entry from a record directory, which `opened` keeps open."""
    from rethink_tf.data.input import decode, reading
    from rethink_tf.data.records import store

    if not opened:
        index = store.load_index(directory)
        opened |= {"index": index, "shards": reading.Shards(index.paths)}
    index = opened["index"]
    (rows,) = np.nonzero(index.image_id == entry["id"])
    place = {name: getattr(index, name)[rows[0]] for name in ("shard", "offset", "length")}
    record = opened["shards"].read(place)
    encoded = decode.parse_image(record)["image/encoded"].numpy()
    return _decode(encoded, f"the record of image {entry['id']}", entry)


def _decode(encoded, where, entry):
    """Returns an image as it was annotated: upright where its annotations are so."""
    if encoded is None:
        raise NoImageError(f"{where} is missing")
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            image = file.convert("RGB")
            size = (entry.get("width", image.width), entry.get("height", image.height))
            upright = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError) as error:
        raise NoImageError(f"{where} is no image that reads ({error})") from error
    shown = next((each for each in (image, upright) if each.size == size), None)
    if shown is None:
        raise NoImageError(
            f"{where} is of {image.width} x {image.height} pixels, its annotations of "
            f"{size[0]} x {size[1]}"
        )
    return np.asarray(shown)
