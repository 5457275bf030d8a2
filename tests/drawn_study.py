"""A study as its runs leave it, with everything that a report reads; nothing is trained."""

import json
import os

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf import metrics_file
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation import matches as writing
from rethink_tf.report import pictures, run_data

NUM_IMAGES, SIDE = 24, 64
CATEGORIES = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}, {"id": 9, "name": "never"}]


def box_of(generator):
    return [*generator.integers(0, 40, 2).tolist(), *generator.integers(6, 24, 2).tolist()]


def rectangle(box):
    mask = np.zeros([SIDE, SIDE], np.uint8, order="F")
    x, y, w, h = (round(value) for value in box)
    mask[y : y + h, x : x + w] = 1
    return coco_mask.encode(mask)


def make_data(seed, blur=1.0):
    """A ground truth with crowds and empty images, and detections near it and elsewhere."""
    objects, generator = np.random.default_rng(1), np.random.default_rng(seed)
    images = [{"id": 10 + i, "height": SIDE, "width": SIDE} for i in range(NUM_IMAGES)]
    annotations, results = [], []
    for image in images[2:]:
        for _ in range(objects.integers(0, 5)):
            box, category = box_of(objects), int(objects.choice([3, 7]))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category,
                 "bbox": box, "area": box[2] * box[3], "segmentation": rectangle(box),
                 "iscrowd": int(objects.random() < 0.15)}
            )  # fmt: skip
            moved = np.maximum(np.add(box, np.round(generator.normal(0, blur, 4))), 1).tolist()
            found = category if generator.random() < 0.8 else 10 - category
            results.append((image["id"], found, moved))
        results.append((image["id"], 3, box_of(generator)))
    scores = generator.permutation(len(results)) / len(results)
    results = [
        {"image_id": i, "category_id": c, "bbox": box, "segmentation": rectangle(box), "score": s}
        for (i, c, box), s in zip(results, scores.tolist(), strict=True)
    ]
    truth = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return truth, results


def arrays_of(truth, results):
    return coco_metrics.CocoMetrics(truth, fields=["masks"]).matches(results)


# {subset: training images}, {schedule: steps}, {arm: (AP at the end of short and long, blur)}.
SUBSETS = {"small": 100, "all": 1000}
STEPS = {"short": 40, "long": 80}
ARMS = {"random": (0.20, 0.40, 2.0), "pretrained": (0.30, 0.38, 1.0)}
SEEDS = (1, 2)


def write_full_study(folder):
    """Writes the study, and returns its folder as text."""
    runs, times = [], []
    for subset, count in SUBSETS.items():
        for arm, (short, long, blur) in ARMS.items():
            for seed in SEEDS:
                for schedule, value in (("long", long), ("short", short)):
                    value = value * (1 if subset == "all" else 0.5) + 0.005 * seed
                    name = f"{arm}/{subset}/{schedule}/seed-{seed}"
                    model_dir = folder / "runs" / name
                    run = {"name": name, "arm": arm, "subset": subset, "schedule": schedule,
                           "seed": seed, "gin_files": [], "gin_params": [], "parent": None,
                           "model_dir": str(model_dir), "batch_size": 2, "start_step": 0,
                           "num_steps": STEPS[schedule]}  # fmt: skip
                    if schedule == "short":
                        run |= {"start_step": 30, "parent": f"{arm}/{subset}/long/seed-{seed}"}
                    runs.append(run)
                    times.append({"run": name, "images": 1, "seconds": 360.0})
                    write_run(run, value, seed + round(10 * blur), blur, count)
    weights = folder / "pretraining"
    weights.mkdir()
    numbers = {"images_seen": 5000, "objects_seen": 5000, "pixels_seen": 5e6, "seconds": 7200}
    (weights / "pretraining.json").write_text(json.dumps(numbers))
    checkpoint = str(weights / "checkpoints" / "step-9")
    plan = {"runs": runs, "references": {}, "init_checkpoints": {"pretrained": checkpoint}}
    (folder / "study.json").write_text(json.dumps(plan))
    (folder / "times.jsonl").write_text("".join(json.dumps(each) + "\n" for each in times))
    return str(folder)


def write_run(run, value, seed, blur, num_images):
    """Writes what one run leaves."""
    folder, last = run["model_dir"], run["num_steps"]
    for step in range(max(10, run["start_step"]), last + 1, 10):
        done = value * step / last
        metrics = {"AP": done, "AP50": 1.4 * done, "AP75": done, "APs": 0.5 * done, "APm": done}
        line = {
            f"{kind}/{name}": each for kind in ("box", "mask") for name, each in metrics.items()
        }
        metrics_file.append(folder, {"step": step} | line)
    bound = {"run.init_checkpoint": repr(run["arm"]), "FPN.channels": "64"}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"bindings": bound}, file)
    training = {"directory": "data/train", "num_images": num_images, "num_objects": 3 * num_images,
                "num_categories": 3, "pixels_per_image": 4096.0}  # fmt: skip
    run_data.write(folder, {"training": training})
    truth, results = make_data(seed, blur)
    path = metrics_file.matches_path(folder, last)
    writing.write(path, coco_metrics.CocoMetrics(truth, fields=["masks"]).matches(results))
    if run["schedule"] == "long":
        image = np.full([96, 128, 3], 90, np.uint8)
        truth = pictures.Objects(np.array([[10, 10, 60, 70]]), ["a"])
        found = pictures.Objects(np.array([[12, 12, 60, 75]]), ["b"], np.array([0.8]))
        path = os.path.join(folder, "pictures", f"step-{last}-image-5.png")
        pictures.save_png(path, pictures.side_by_side(image, truth, found))
        with tf.summary.create_file_writer(os.path.join(folder, "tensorboard")).as_default():
            for step in range(1, last + 1):
                tf.summary.scalar("train/total", 3 / step**0.5, step=step)
                tf.summary.scalar("train/learning_rate", 0.01 if step < 60 else 0.001, step=step)
