"""Chooses what a page shows of a study: its figures, its samples and its first lines."""

import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from rethink_tf.metrics_file import COLLAPSED, DONE
from rethink_tf.report import (
    collecting,
    costs,
    event_files,
    figures,
    further_tables,
    matches,
    pictures,
)
from rethink_tf.report.collecting import StudyRun
from rethink_tf.report.costs import Seen
from rethink_tf.report.study_tables import of_shared_length, unique

MAX_CATEGORIES = 30  # of a confusion matrix that can be read
_MAX_SIDE = 480  # pixels of a sample
_CURVES = {"train/total": "loss", "train/learning_rate": "learning rate"}


def all_figures(
    runs: Sequence[StudyRun], published: Mapping, pretraining: Mapping[str, Seen]
) -> list[tuple[str, str, str]]:
    """Returns (name of the file, caption, SVG) of each figure.

    Args:
        runs: of the study.
        published: {name: {schedule: box AP in percent}}.
        pretraining: {arm: what its weights have seen}.
    """
    found = []
    for metric in collecting.metrics_of(runs):
        found += _of_metric(runs, metric, published)
    found += _of_samples(runs, pretraining)
    shown = further_tables.shown_runs(runs)
    return found + _of_matches(shown) + _of_training(shown)


def _of_metric(runs, metric, published):
    found = []
    for subset in unique(run.subset for run in runs):
        name, where = f"{metric.replace('/', '_')}-{subset}", f"{metric} on {subset} data"
        # Published are box AP, of all data.
        references = published if (metric, subset) == ("box/AP", "all") else {}
        caption = (
            f"{where} over iterations. Thin lines are runs, points the means of the last "
            "checkpoints, crosses runs that collapsed."
        )
        found.append((f"over_steps-{name}", caption, figures.over_steps(runs, metric, subset)))
        if len({run.num_steps for run in runs if run.subset == subset}) == 1:
            continue  # one length: the figure would be a point an arm
        caption = (
            f"{where} at the end of each schedule; bars are the standard deviation over seeds"
            f"{', dotted lines what was published' if references else ''}."
        )
        svg = figures.by_schedule(runs, metric, subset, references)
        found.append((f"by_schedule-{name}", caption, svg))
    points = further_tables.subset_points(runs, metric)
    if len({count for own in points.values() for count, _ in own}) > 1:
        lengths = unique(f"{run.num_steps:,}" for run in of_shared_length(runs))
        caption = (
            f"{metric} over the number of training images, after {' or '.join(lengths)} iterations."
        )
        name = f"over_images-{metric.replace('/', '_')}"
        found.append((name, caption, figures.over_images(points, metric)))
    return found


def _of_samples(runs, pretraining):
    totals = further_tables.totals(runs, pretraining)
    subset = totals[-1][0]
    totals = [each for each in totals if each[0] == subset]
    names = [f"{arm} {schedule}" for _, schedule, arm, _, _ in totals]
    counts = {
        kind: [(getattr(before, kind), getattr(own, kind)) for *_, before, own in totals]
        for kind in costs.COUNTS
    }
    known = {
        kind: pairs for kind, pairs in counts.items() if not np.isnan([p[1] for p in pairs]).any()
    }
    caption = f"Samples seen on {subset} data, each time counted."
    if np.isnan([pair for pairs in known.values() for pair in pairs]).any():
        caption += " What some weights have seen before is not known, and not drawn."
    return [("samples_seen", caption, figures.samples_seen(names, known))]


def _of_matches(shown):
    loaded = {run.arm: (run, matches.read(run)) for run in shown}
    held = {arm: pair for arm, pair in loaded.items() if pair[1] is not None}
    found = []
    for kind in unique(kind for _, arrays in held.values() for kind in matches.kinds(arrays)):
        curves = {}
        for arm, (_, arrays) in held.items():
            if kind in matches.kinds(arrays):
                precision = matches.Matches(arrays, kind).precision()
                precision = precision[:, ~np.isnan(precision[0, :, 0])].mean(1)
                curves[arm] = {
                    "IoU 0.5": precision[0],
                    "0.75": precision[5],
                    "0.5 to 0.95": precision.mean(0),
                }
        names = ", ".join(held[arm][0].name for arm in curves)
        caption = f"Precision over recall ({kind}), means over categories, of {names}."
        found.append((f"precision_recall-{kind}", caption,
                      figures.precision_recall(curves, kind)))  # fmt: skip
    for arm, (run, arrays) in held.items():
        names = arrays["category_names"].tolist()
        if len(names) <= MAX_CATEGORIES:
            caption = f"Which objects {run.name} takes for which: shade by share of the row."
            svg = figures.confusion(arrays["confusion"], names)
            found.append((f"confusion-{_file_part(arm)}", caption, svg))
    return found


def _of_training(shown):
    scalars = {run.arm: event_files.read_scalars(run.model_dir, tuple(_CURVES)) for run in shown}
    found = []
    for tag, quantity in _CURVES.items():
        curves = {arm: each[tag] for arm, each in scalars.items() if tag in each}
        if curves:
            caption = f"The {quantity} of the longest run of each arm, its first seed."
            name = f"training-{quantity.replace(' ', '_')}"
            found.append((name, caption, figures.training_curves(curves, quantity)))
    return found


def samples(runs: Sequence[StudyRun]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns (caption, [(title, data URI)]): the ground truth, then each arm, image by image.

    They are the images that the last evaluations have drawn, those that all arms have.

    Args:
        runs: of the study.
    """
    shown = further_tables.shown_runs(runs)
    drawn = [_pictures_of(run) for run in shown]
    found = []
    for image_id in sorted(set.intersection(*map(set, drawn))) if drawn else []:
        row = []
        for run, paths in zip(shown, drawn, strict=True):
            with Image.open(paths[image_id]) as file:
                truth, detections = pictures.sides(np.asarray(file.convert("RGB")))
            row = row or [("ground truth", pictures.jpeg_uri(truth, _MAX_SIDE))]
            row.append((run.arm, pictures.jpeg_uri(detections, _MAX_SIDE)))
        found.append((f"Image {image_id}: detections that score 0.5 or more.", row))
    return found


def _pictures_of(run):
    """Returns {image id: path} of the pictures of a run's last evaluation."""
    folder = os.path.join(run.model_dir, "pictures")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matched = (re.fullmatch(rf"step-{run.num_steps}-image-(\d+)\.png", name) for name in names)
    return {int(each[1]): os.path.join(folder, each[0]) for each in matched if each}


def summary(runs: Sequence[StudyRun]) -> list[str]:
    """Returns the paragraphs at the top: the runs, and what may be said of them.

    Args:
        runs: of the study.
    """
    arms = ", ".join(unique(run.arm for run in runs))
    counts = [
        f"{sum(run.state == state for run in runs)} {name}"
        for state, name in ((DONE, "done"), (COLLAPSED, "collapsed"))
    ]
    hours = sum(run.seconds for run in runs) / 3600
    return [
        f"{len(runs)} runs of the arms {arms}: {', '.join(counts)}; {hours:.2f} hours of their "
        "processes. The last checkpoint of each run is compared, never the best; runs that "
        "collapsed are kept and shown.",
        "Training again with another seed moves AP by 0.1 to 0.3 points on COCO, as published, and "
        "by 2 and more on small data sets. With one seed, nothing is said here of less than 0.3 "
        "points. Two intervals are kept apart: over seeds (training again) and over draws of the "
        "test images.",
    ]


def _file_part(text):
    return re.sub(r"[^\w.+-]", "_", text)
