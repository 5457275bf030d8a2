"""The record directories of a run: what is trained on and what is evaluated."""

import dataclasses
import os

import numpy as np

from rethink_tf import files
from rethink_tf.data.records import categories, foreign, store
from rethink_tf.data.records.keypoints import KeypointLayout


@dataclasses.dataclass(frozen=True)
class Split:
    """One record directory, restricted to the images that a pipeline keeps.

    Attributes:
        directory: str.
        index: `store.RecordIndex` of the images.
        categories: [{"id", "name"}] by id.
        has_masks: bool, whether its objects have masks, some at least.
        has_all_masks: bool, whether all of them have.
        keypoints: `KeypointLayout` of its objects, None where they have none.
    """

    directory: str
    index: store.RecordIndex
    categories: list
    has_masks: bool
    keypoints: KeypointLayout | None = None
    has_all_masks: bool = True

    @property
    def category_ids(self):
        """Sorted ids of the data set's categories; class k is the k-th."""
        return [entry["id"] for entry in self.categories]

    def ground_truth(self):
        """Returns the ground truth of its images, a dict in COCO form; see `load_ground_truth`."""
        return load_ground_truth(self.directory, self.index.image_id)


def open_splits(mode, data_dir, train_split, evaluation_split, pipeline):
    """Opens what a run needs; records without a manifest get one.

    Args:
        mode: "train", "evaluate" or "train_and_evaluate".
        data_dir, pipeline: as of `open_split`.
        train_split: str, the name of the directory to train on.
        evaluation_split: str, that of the one to evaluate.

    Returns:
        `Split` to train on and `Split` to evaluate, None for what the mode needs not.

    Raises:
        ValueError: as `open_split`.
    """
    foreign.make_manifests(data_dir, (train_split, evaluation_split))
    train_data = test_data = None
    if mode != "evaluate":
        train_data = open_split(data_dir, train_split, pipeline, is_training=True)
    if mode != "train":
        test_data = open_split(data_dir, evaluation_split, pipeline, is_training=False)
    return train_data, test_data


def open_split(data_dir, name, pipeline, is_training):
    """Opens a record directory.

    Args:
        data_dir: str, the folder of the record directories.
        name: str, the directory's name in it.
        pipeline: `input.pipeline.Pipeline`, which may keep some of the images only.
        is_training: bool, whether it is to be trained on; else evaluated. The pipeline keeps other
            images for each.

    Returns:
        `Split`.

    Raises:
        ValueError: if the directory is not complete, has fewer images than are to be chosen, no
            object to train on, or no keypoints where the pipeline includes them; the message says
            what is wrong with it.
    """
    directory = os.path.join(data_dir, name)
    manifest = store.load_manifest(directory)
    found = store.load_categories(directory)
    keypoints = KeypointLayout.from_manifest(manifest)
    if pipeline.include_keypoints and keypoints is None:
        raise ValueError(
            f"{directory} has no keypoints, and Pipeline.include_keypoints asks for them: convert "
            "the data again from a file whose categories and annotations have 'keypoints', as by "
            "python -m rethink_tf.data.coco --annotations=person_keypoints_train2017.json ..."
        )
    index = (pipeline.selected_index if is_training else pipeline.evaluation_index)(directory)
    if is_training and not index.num_objects.any():
        raise ValueError(
            f"{directory} has no object to train on in its {len(index)} images: see what was "
            f"skipped in its {store.MANIFEST_FILE}, and convert the data again."
        )
    entries = [{"id": each["id"], "name": each["name"]} for each in found]
    num_objects = manifest["num_objects"]
    return Split(
        directory,
        index,
        entries,
        manifest.get("has_masks", True),
        keypoints,
        manifest.get("num_masks", num_objects) >= num_objects,
    )


def check_splits(splits, needs_masks=False, needs_keypoints=False):
    """Checks that splits fit each other and the detector.

    Args:
        splits: list of `Split`, at least one.
        needs_masks: bool, whether the detector has a mask head.
        needs_keypoints: bool, whether it has a keypoint head.

    Returns:
        The sorted category ids that all of them have.

    Raises:
        ValueError: if their categories differ by id or name, one has no masks where they are
            needed, or their keypoints differ where those are.
    """
    first = splits[0]
    for split in splits:
        places = first.directory, split.directory
        differs = categories.difference(first.categories, split.categories, places)
        if differs:
            raise ValueError(
                f"{first.directory} and {split.directory} have different categories:\n{differs}\n"
                "Convert both from files with the same 'categories', ids and names."
            )
        if needs_keypoints and split.keypoints != first.keypoints:
            names = [each.keypoints.names if each.keypoints else () for each in (first, split)]
            raise ValueError(
                f"{first.directory} and {split.directory} have different keypoints, {names[0]} and "
                f"{names[1]}: convert both from files with the same 'keypoints'."
            )
        if needs_masks and not split.has_masks:
            raise ValueError(
                f"{split.directory} has no masks, and the detector has a mask head: add "
                "--gin_file=overlays/boxes_only.gin for boxes only."
            )
    return first.category_ids


def category_names(split):
    """Returns {category id: name} of a `Split`."""
    return {each["id"]: each["name"] for each in store.load_categories(split.directory)}


def load_ground_truth(directory, image_ids):
    """Returns the images and annotations of some records.

    Args:
        directory: str, a record directory.
        image_ids: ints, the images wanted; each must be there.

    Returns:
        dict in COCO form: images, annotations, categories.

    Raises:
        ValueError: if the directory has no ground truth, or not of one of the images.
    """
    path = os.path.join(directory, store.GROUND_TRUTH_FILE)
    if store.load_manifest(directory).get("made_from") == foreign.SOURCE:
        index = store.load_index(directory)
        index = index.select(np.isin(index.image_id, image_ids))
        return foreign.make_ground_truth(index, store.load_categories(directory))
    truth = files.read_json(
        path, "evaluation needs it; convert the data set again with python -m rethink_tf.data.coco."
    )
    if not isinstance(truth, dict) or not {"images", "annotations"} <= truth.keys():
        raise ValueError(f"{path} is no ground truth in COCO's form: convert the data set again.")
    wanted = {int(image_id) for image_id in image_ids}
    missing = wanted - {image["id"] for image in truth["images"]}
    if missing:
        raise ValueError(
            f"{path} has no image with id {min(missing)} (and {len(missing) - 1} more of the "
            "records): convert the data set again."
        )
    return truth | {
        "images": [each for each in truth["images"] if each["id"] in wanted],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in wanted],
    }
