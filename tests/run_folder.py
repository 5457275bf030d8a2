"""A folder as a healthy run leaves it, written without training, for causes to be planted in."""

import dataclasses
import json
import struct

import numpy as np

CONFIG = """
BATCH_SIZE = 16
NORMALIZER = 'gn'
FREEZE_AT = 0
BoxHead.normalizer = %NORMALIZER
BoxHead.score_threshold = 0.05
MomentumSGD.momentum = 0.9
Pipeline.min_side = 100
Pipeline.max_side = 200
ResNet.freeze_at = %FREEZE_AT
ResNet.normalizer = %NORMALIZER
RPN.anchor_scale = 1.0
RPN.anchor_sizes = ((16,), (32,), (64,))
run.accumulate_steps = 1
run.batch_size = %BATCH_SIZE
run.init_checkpoint = None
run.continue_from = None
run.optimizer = @MomentumSGD
"""
NAMES = {1: "cat", 5: "dog", 7: "bird"}
# Image: (height, width). Objects are [x, y, width, height]; no two are of one shape.
SIZE, NUM_IMAGES = (100, 160), 12
PLACES = ([30, 12, 40, 18], [70, 30, 25, 50], [110, 5, 44, 21])


def run_lengths(size, box):
    """The filled box as an uncompressed RLE, down the columns."""
    x, y, width, height = box
    mask = np.zeros(size, np.uint8)
    mask[y : y + height, x : x + width] = 1
    flat = mask.reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(size), "counts": runs if not flat[0] else [0, *runs]}


def make_truth():
    """Ground truth in COCO's form: three objects an image, one of each class."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for i in range(1, NUM_IMAGES + 1)
    ]
    annotations = [
        {"id": 10 * image["id"] + row, "image_id": image["id"], "category_id": category,
         "bbox": list(map(float, place)), "area": 1.0, "iscrowd": 0,
         "segmentation": run_lengths(SIZE, place)}
        for image in images
        for row, (category, place) in enumerate(zip(NAMES, PLACES, strict=True))
    ]  # fmt: skip
    entries = [{"id": key, "name": name} for key, name in NAMES.items()]
    return {"images": images, "annotations": annotations, "categories": entries}


def make_manifest():
    """The manifest of either split."""
    each = NUM_IMAGES
    return {
        "version": 1, "num_images": each, "num_objects": 3 * each, "num_crowds": 0,
        "num_clipped": 1, "has_masks": True, "num_masks": 3 * each, "skipped": {},
        "categories": [{"id": i, "name": n, "num_objects": each} for i, n in NAMES.items()],
    }  # fmt: skip


def make_curves():
    """The training's summaries, a value a log line."""
    falls = [3.0 - 0.1 * step for step in range(20)]
    return {
        "train/total": falls,
        "train/gradient_norm": [1.5] * 20,
        "train/gradient_norm/backbone": [1.0] * 20,
        "train/gradient_norm/rpn": [0.5] * 20,
        "train/rpn_positives": [9.0] * 20,
        "train/roi_positives": [12.0] * 20,
    }


@dataclasses.dataclass
class RunFolder:
    """What a run is to leave; a test changes it, and `write` writes it.

    Attributes:
        config: str, text of `config.gin`.
        plan: dict.
        schedule: dict.
        lines: list of dict, of `metrics.jsonl`.
        data: dict by use, without the directories, which `write` adds.
        manifests: dict by use.
        num_objects: dict by use, a number a record.
        truth: dict by use.
        detections: list of dict.
        curves: {tag: values}, of which the last is of the run's last step.
    """

    config: str = CONFIG
    plan: dict = dataclasses.field(default_factory=lambda: {"precision": "float32"})
    schedule: dict = dataclasses.field(
        default_factory=lambda: {
            "num_steps": 2000, "peak_learning_rate": 0.02, "warmup_steps": 100,
            "warmup_factor": 0.33, "drop_steps": [1800], "cascade_from": 0,
        }
    )  # fmt: skip
    lines: list = dataclasses.field(
        default_factory=lambda: [
            {"step": 2000, "box/AP": 0.55, "mask/AP": 0.5, "detections": 36,
             "images_with_detections": 12, "highest_score": 0.99}
        ]
    )  # fmt: skip
    data: dict = dataclasses.field(
        default_factory=lambda: {
            use: {"num_images": 12, "num_objects": 36, "num_categories": 3}
            for use in ("training", "evaluation")
        }
    )
    manifests: dict = dataclasses.field(
        default_factory=lambda: {use: make_manifest() for use in ("training", "evaluation")}
    )
    num_objects: dict = dataclasses.field(
        default_factory=lambda: {use: [3] * NUM_IMAGES for use in ("training", "evaluation")}
    )
    truth: dict = dataclasses.field(
        default_factory=lambda: {use: make_truth() for use in ("training", "evaluation")}
    )
    detections: list = dataclasses.field(
        default_factory=lambda: [
            {"image_id": each["image_id"], "category_id": each["category_id"], "score": 0.9,
             "bbox": [value + 1 for value in each["bbox"]], "segmentation": each["segmentation"]}
            for each in make_truth()["annotations"]
        ]
    )  # fmt: skip
    curves: dict = dataclasses.field(default_factory=make_curves)

    def bind(self, **changes):
        """Replaces values of `config.gin`, the dot of a name written as two underscores."""
        for name, value in changes.items():
            name = name.replace("__", ".")
            lines = [line for line in self.config.splitlines() if not line.startswith(f"{name} =")]
            self.config = "\n".join([*lines, f"{name} = {value!r}"])

    def low(self, **changes):
        """Has the last evaluation find nothing, and changes others of its numbers."""
        self.lines[-1] |= {"box/AP": 0.001, "mask/AP": 0.0} | changes

    def write(self, folder):
        """Writes all of it; returns MODEL_DIR."""
        model_dir = folder / "run"
        (model_dir / "results").mkdir(parents=True)
        (model_dir / "tensorboard").mkdir()
        for use, described in self.data.items():
            directory = folder / "records" / use
            directory.mkdir(parents=True)
            described["directory"] = str(directory)
            (directory / "manifest.json").write_text(json.dumps(self.manifests[use]))
            (directory / "ground_truth.json").write_text(json.dumps(self.truth[use]))
            np.savez(directory / "index.npz", num_objects=np.int32(self.num_objects[use]))
        record = {"bindings": {}, "plan": self.plan, "schedule": self.schedule}
        entries = [{"id": key, "name": name} for key, name in NAMES.items()]
        step = max([line["step"] for line in self.lines], default=0)
        written = {
            "config.json": record,
            "data.json": self.data,
            "categories.json": {"version": 1, "categories": entries},
            f"results/detections-{step}.json": self.detections,
        }
        for name, content in written.items():
            (model_dir / name).write_text(json.dumps(content))
        (model_dir / "config.gin").write_text(self.config)
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        (model_dir / "metrics.jsonl").write_text(lines)
        write_scalars(model_dir / "tensorboard", self.curves, step)
        return model_dir


def write_scalars(folder, curves, last_step):
    """Writes TensorBoard's file of scalars as TensorFlow does, but for the checksums."""
    from tensorboard.compat.proto import event_pb2

    with (folder / "events.out.tfevents.1.v2").open("wb") as file:
        for tag, values in curves.items():
            for row, number in enumerate(values, start=1):
                event = event_pb2.Event(step=round(last_step * row / len(values)))
                value = event.summary.value.add(tag=tag)
                value.metadata.plugin_data.plugin_name = "scalars"
                value.tensor.float_val.append(number)
                payload = event.SerializeToString()
                file.write(struct.pack("<QI", len(payload), 0) + payload + bytes(4))
