"""What the settings of a run need to know of its data, in a few numbers."""

import os

import numpy as np

from rethink_tf.data.records import splits, store, subsets
from rethink_tf.own_data import anchor_fit

# If there is one split, this share of it is held out for evaluation, at most so many images.
HELD_OUT_SHARE, MAX_HELD_OUT = 0.2, 1000
# Quantiles of the objects' sizes: beyond the first and the last, they need no anchors of their own.
SIZE_QUANTILES = (0.05, 0.5, 0.95)


def measure(prepared):
    """Measures the images that are trained on, and those held out beside them.

    Args:
        prepared: `preparing.Prepared`.

    Returns:
        dict of plain numbers: num_images to train on, num_held_out and the share `held_out` of
        `Pipeline` that gives so many, median height and width of the
        stored images in pixels, aspect_ratio (0.95 quantile of longer by shorter side),
        object_sizes (`SIZE_QUANTILES` of the square root of the box's area, as a part of the
        image's shorter side), aspect_ratios (`anchor_fit.fit_ratios` of the boxes), max_objects of
        an image, has_masks, has_keypoints.

    Raises:
        ValueError: if there are too few images, or no object.
    """
    directory = os.path.join(prepared.data_dir, prepared.train_split)
    index, manifest = store.load_index(directory), store.load_manifest(directory)
    num_objects = int(index.num_objects.sum())
    if len(index) < 2 or not num_objects:
        raise ValueError(
            f"{directory} has {len(index)} images and {num_objects} objects: too few to train on "
            "and to evaluate."
        )
    held_out = 0.0 if prepared.evaluation_split else _hold_out(index.image_id)
    num_held_out = int((subsets.hash_shares(index.image_id) < held_out).sum())
    sides = np.stack([index.height, index.width], -1)
    shapes = _object_shapes(directory, index)
    object_sizes = np.quantile(np.sqrt(shapes.prod(-1)), SIZE_QUANTILES)
    return {
        "num_images": len(index) - num_held_out,
        "num_held_out": num_held_out,
        "held_out": held_out,
        "height": int(np.median(index.height)),
        "width": int(np.median(index.width)),
        "aspect_ratio": _round(np.quantile(sides.max(-1) / sides.min(-1), 0.95)),
        "object_sizes": [_round(size) for size in object_sizes],
        "aspect_ratios": anchor_fit.fit_ratios(shapes),
        "max_objects": int(index.num_objects.max()),
        "has_masks": _has(prepared, "has_masks"),
        "has_keypoints": bool(manifest.get("keypoints")),
    }


def _hold_out(image_ids):
    """Returns the share of hashes below which about `HELD_OUT_SHARE` of the images lie."""
    count = min(max(round(HELD_OUT_SHARE * len(image_ids)), 1), MAX_HELD_OUT)
    shares = np.sort(subsets.hash_shares(image_ids))
    return round(float(shares[count - 1] + shares[count]) / 2, 9)


def _has(prepared, key):
    """Whether the manifests of all splits of a run say so."""
    names = filter(None, (prepared.train_split, prepared.evaluation_split))
    manifests = [store.load_manifest(os.path.join(prepared.data_dir, name)) for name in names]
    return all(bool(manifest.get(key)) for manifest in manifests)


def _object_shapes(directory, index):
    """Returns float [N, 2], height and width of boxes as parts of their image's shorter side."""
    truth = splits.load_ground_truth(directory, index.image_id)
    shorter = dict(zip(index.image_id.tolist(), np.minimum(index.height, index.width), strict=True))
    shapes = [
        (each["bbox"][3] / shorter[each["image_id"]], each["bbox"][2] / shorter[each["image_id"]])
        for each in truth["annotations"]
        if not each.get("iscrowd")
    ]
    return np.array(shapes)


def without_objects(prepared):
    """Returns the names of the categories that no object of the training images is of."""
    directory = os.path.join(prepared.data_dir, prepared.train_split)
    return [each["name"] for each in store.load_categories(directory) if not each["num_objects"]]


def count_images(prepared):
    """Returns how many images there are now, those held out included."""
    directory = os.path.join(prepared.data_dir, prepared.train_split)
    return len(store.load_index(directory))


def _round(value):
    return round(float(value), 4)
