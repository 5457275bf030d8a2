"""What a run says of itself: a header before the first step, and a table at the end."""

import os

import tensorflow as tf
from absl import logging

import rethink_tf
from rethink_tf import console, curves, metrics_file
from rethink_tf.data.records.splits import category_names

# Columns of the table of evaluations, those of them that the metrics have; the AP of any other kind
# follows.
COLUMNS = "box/AP box/AP50 box/AP75 mask/AP mask/AP50 mask/AP75 voc/mAP".split()
MAX_NAMES = 12


def log_header(splits, pipeline, model, strategy, training_plan, model_dir):
    """Logs the header of a run.

    Args:
        splits: {what it is for: `records.splits.Split`, or None}; "training" among them.
        pipeline: `input.pipeline.Pipeline`.
        model: the detector, its variables made, with its `ExecutionPlan`.
        strategy: `tf.distribute.Strategy`.
        training_plan: the schedule, images a step, steps between evaluations (None for one at the
            end, 0 for none) and steps between checkpoints.
        model_dir: str.
    """
    splits = {use: split for use, split in splits.items() if split}
    names = category_names(next(iter(splits.values())))
    rows = [("", f"rethink_tf {rethink_tf.__version__}, TensorFlow {tf.__version__}")]
    rows += [("Data", f"{use} on {_describe_split(split)}") for use, split in splits.items()]
    rows += [("Categories", _list_names([names[each] for each in sorted(names)]))]
    rows += [("Model", _describe_model(model))]
    if "training" in splits:
        num_images = len(pipeline.training_index(splits["training"].index))
        rows += [("Plan", line) for line in describe_plan(*training_plan, num_images)]
    rows += [("Devices", _describe_devices(strategy, model.plan))]
    rows += [("Precision", model.plan.precision), ("Execution", model.plan.summary())]
    rows += [("Folder", model_dir)]
    logging.info("%s", _lay_out(rows), extra=console.KEPT)


def log_closing(model_dir, trainer, evaluator):
    """Logs the end of a run: the evaluations, the newest last, where things are, and times.

    Args:
        model_dir: str.
        trainer: `training.trainer.Trainer`, or None.
        evaluator: of the last evaluation, or None.
    """
    times = {"training": trainer, "evaluation": evaluator}
    times = {name: part.seconds for name, part in times.items() if part}
    times["all"] = console.seconds_of_process()
    times = ", ".join(f"{name} {console.duration(value)}" for name, value in times.items())
    rows = [
        ("Time", times),
        ("Weights", os.path.join(model_dir, "checkpoints")),
        ("Settings", os.path.join(model_dir, "config.gin")),
        ("Curves", f"tensorboard --logdir={curves.shown_folder(model_dir)}"),
    ]
    table = ""
    if evaluator and evaluator.metrics:
        table = _table_of_evaluations(model_dir) + "\n\n"
        rows[2:2] = [
            ("Best", os.path.join(model_dir, "best")),
            ("Metrics", metrics_file.path_in(model_dir)),
            ("Detections", f"{evaluator.results_path} (COCO's form)"),
            ("Picture", evaluator.pictures.newest),
            ("Errors", f"python -m rethink_tf.errors {model_dir}"),
        ]
    there = [(name, text) for name, text in rows if _is_there(name, text)]
    logging.info("%s", f"Done.\n{table}{_lay_out(there)}", extra=console.KEPT)


def describe_plan(schedule, batch_size, evaluate_every, checkpoint_every, num_images):
    """Returns the lines on a plan of training; arguments as of `log_header`."""
    steps = schedule.num_steps
    epochs = steps * batch_size / max(num_images, 1)
    rate = f"rate {schedule.peak_learning_rate:g} after {schedule.warmup_steps:,} steps of warm-up"
    if drops := getattr(schedule, "drop_steps", ()):
        at = " and ".join(f"{drop:,}" for drop in drops)
        rate += f", times {schedule.decay_factor:g} at {at}"
    evaluation = {None: "evaluation at the end", 0: "no evaluation"}.get(
        evaluate_every, f"evaluation every {evaluate_every or 0:,}"
    )
    return [
        f"{steps:,} steps of {batch_size} images ({epochs:.1f} epochs), {rate}",
        f"{evaluation}, checkpoint every {checkpoint_every:,}",
    ]


def _describe_split(split):
    index = split.index
    kind = "objects"
    if split.has_masks:
        kind += " with masks" if split.has_all_masks else ", some of them with masks"
    counts = f"{len(index):,} images, {int(index.num_objects.sum()):,} {kind}"
    empty = int((index.num_objects == 0).sum())
    return f"{split.directory}: {counts}" + (f", {empty:,} images without an object" * bool(empty))


def _list_names(names):
    shown = ", ".join(names[:MAX_NAMES])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > MAX_NAMES else "")


def _describe_model(model):
    parts = [model.backbone, model.fpn, model.rpn, model.box_head, *model.heads]
    names = ", ".join(type(part).__name__ for part in parts if part is not None)
    total, trained = _count(model.variables), _count(model.trainable_variables)
    return f"{names}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained"


def _count(variables):
    return sum(variable.shape.num_elements() for variable in variables)


def _describe_devices(strategy, plan):
    replicas = strategy.num_replicas_in_sync
    text = f"{replicas} replica{'s' if replicas > 1 else ''} on {plan.device}"
    return f"{text}, {plan.device_name}" if plan.device_name else text


def _table_of_evaluations(model_dir):
    lines = metrics_file.read_evaluations(model_dir)
    names = {name for line in lines for name in line}
    columns = [name for name in COLUMNS if name in names]
    columns += sorted(name for name in names - {*COLUMNS} if name.endswith("/AP"))
    table = [["step", *columns, "seconds"]]
    for line in lines:
        step = f"{line['step']}{' (test augmentation)' * line.get('test_augmentation', False)}"
        values = [f"{line[name]:.3f}" if line.get(name, -1) >= 0 else "-" for name in columns]
        table.append([step, *values, f"{line['seconds']:.1f}"])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    )


def _is_there(name, text):
    if name in ("Weights", "Best", "Settings"):
        return tf.io.gfile.exists(text)
    return text is not None


def _lay_out(rows):
    width = max(len(name) for name, _ in rows)
    previous, lines = None, []
    for name, text in rows:
        shown = "" if name == previous else name
        lines.append(f"{shown:<{width}}  {text}" if name else text)
        previous = name
    return "\n".join(lines)
