"""The manifest and the ground truth of a record directory, and what is said of them."""

import collections

from rethink_tf.data.records import keypoint_sides, keypoints, store
from rethink_tf.data.sources import image_files


def make_manifest(checked, kept, shards, skips, options) -> dict:
    """Makes the manifest of what was written.

    Args:
        checked: `coco_checks.CheckedDataset`.
        kept: `coco_images.PreparedImage`s that were written.
        shards: the manifest's "shards".
        skips: `SkipLog` of the conversion.
        options: `image_files.Options` of the conversion.
    """
    annotations = [a for item in kept for a in item.annotations]
    objects = collections.Counter(a["category_id"] for a in annotations if not a["iscrowd"])
    num_masks = sum(
        has and not annotation["iscrowd"]
        for item in kept
        for has, annotation in zip(item.has_mask, item.annotations, strict=True)
    )
    return {
        "version": store.MANIFEST_VERSION,
        "shards": shards,
        "num_images": len(kept),
        "num_objects": sum(objects.values()),
        "num_crowds": len(annotations) - sum(objects.values()),
        "num_difficult": sum(a.get("difficult") == 1 for a in annotations),
        "has_masks": num_masks > 0,
        "num_masks": num_masks,
        "keypoints": checked.keypoints and checked.keypoints.as_dict(),
        "num_keypoints": count_labelled(annotations, checked.keypoints),
        "categories": [
            {"id": c["id"], "name": c["name"], "num_objects": objects[c["id"]]}
            for c in checked.categories
        ],
        "num_clipped": sum(a["id"] in checked.clipped_ids for a in annotations),
        "images": _image_facts(kept, options),
        "skipped": skips.counts(),
        "skipped_entries": skips.entries,
        "noted": skips.note_counts(),
        "noted_entries": skips.notes,
    }


def make_ground_truth(checked, kept) -> dict:
    """Makes the ground truth, in COCO's form, of what was written; see `make_manifest`."""
    return {
        "info": {},
        **checked.info,
        "categories": checked.categories,
        "images": [item.image for item in kept],
        "annotations": [a for item in kept for a in item.annotations],
    }


def count_labelled(annotations: list[dict], layout: keypoints.KeypointLayout | None) -> int:
    """Counts the labelled keypoints of annotations; 0 for a data set without keypoints."""
    return keypoints.count_labelled(annotations) if layout else 0


def _image_facts(kept, options):
    """What the manifest says of how image files were read."""
    turned = collections.Counter(item.loaded.orientation for item in kept)
    ranges = [item.loaded.value_range for item in kept if item.loaded.value_range]
    return {
        "exif": options.exif,
        "num_by_orientation": {str(k): turned[k] for k in sorted(turned) if k != 1},
        "sixteen_bit": options.sixteen_bit,
        "num_sixteen_bit": len(ranges),
        "sixteen_bit_range": (
            [min(low for low, _ in ranges), max(high for _, high in ranges)] if ranges else None
        ),
    }


def summary_lines(output: str, manifest: dict):
    """Yields lines on what was written into the directory `output`."""
    labelled = f", {manifest['num_keypoints']} keypoints" if manifest["keypoints"] else ""
    masks = manifest["num_masks"], manifest["num_objects"]
    with_masks = f" ({masks[0]} with a mask)" if 0 < masks[0] < masks[1] else ""
    objects = f"{manifest['num_objects']} objects{with_masks}"
    yield (
        f"{output}: {manifest['num_images']} images, {objects}, {manifest['num_crowds']} crowds"
        f"{labelled} in {len(manifest['shards'])} shards; {manifest['num_clipped']} boxes clipped, "
        f"skipped: {manifest['skipped'] or 'nothing'}"
    )
    if manifest["noted"]:
        yield f"kept otherwise than stated: {manifest['noted']}"
    if manifest["keypoints"]:
        layout = manifest["keypoints"]
        yield keypoint_sides.summary_line(layout["names"], layout["flip_pairs"])
    images = manifest["images"]
    if images["num_by_orientation"]:
        done = "turned by" if images["exif"] == image_files.APPLY else "not turned by"
        number = sum(images["num_by_orientation"].values())
        yield f"{number} images {done} their EXIF orientation: {images['num_by_orientation']}"
    if images["num_sixteen_bit"]:
        low, high = images["sixteen_bit_range"]
        yield (
            f"{images['num_sixteen_bit']} images of 16 bits, values {low} to {high}, brought to 8 "
            f"bits by {images['sixteen_bit']}"
        )
