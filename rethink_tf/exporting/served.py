"""Exports a program of images of any size, as a SavedModel."""

import json

from rethink_tf.exporting import comparing, conversion, programs, saved_model


def write(trained, config, command, rule, staging):
    """Writes the SavedModel.

    Args:
        trained: as of `exporter.export`.
        config: str, the run's settings as gin text.
        command: dict: whole_masks.
        rule: `SizeRule`.
        staging: str, an empty folder.

    Returns:
        `conversion.Written`.

    Raises:
        ValueError: if whole masks are asked for, and the detector has no masks.
    """
    detector, fields = trained.detector, {head.field for head in trained.detector.heads}
    if command["whole_masks"]:
        if "masks" not in fields:
            raise ValueError("--whole_masks: the detector has no masks.")
        fields.add("whole_masks")
    program = programs.ServedProgram(detector, trained.categories, rule, command["whole_masks"])
    assets = {
        "categories.json": json.dumps(trained.categories, indent=1) + "\n",
        "config.gin": config,
    }
    saved_model.write(program, assets, staging)
    load = saved_model.Runner(staging)

    def run(encoded, batch):
        del batch
        found, seconds = comparing.timed(load, encoded)
        return {key: found[key] for key in found.keys() - {"whole_masks", "labels"}}, seconds

    return conversion.Written(run, programs.DETECTIONS, fields, [])
