"""Causes of a low AP in how a run was trained: its rate, its length, its samples, its statistics.

Each function takes `run_files.RunFiles` and returns a `Finding`, or None.
"""

import numpy as np

from rethink_tf import metrics_file
from rethink_tf.diagnosis.finding import Finding
from rethink_tf.training.schedule_rules import IMAGES_PER_STEP, LEARNING_RATE

# The rate for 16 images, as a multiple of Detectron's, that is no choice of a schedule any more.
_FAR_TOO_HIGH, _FAR_TOO_LOW = 10.0, 0.02
# Below so many steps, or passes over the images, no detector from random weights finds anything.
_FEW_STEPS, _FEW_PASSES = 100, 1.0
_OF_BATCH_STATISTICS = ("syncbn", "batch_renorm")
_SLOWER = (
    "a tenth of the rate (of a StepwiseSchedule peak_learning_rate, of a PaperSchedule "
    "base_learning_rate) or a longer warmup_steps, in a new MODEL_DIR"
)


def not_finite(run):
    """Losses were NaN or infinite."""
    ends = [each for each in run.events if each["event"] == metrics_file.COLLAPSE]
    skips = [each for each in run.events if each["event"] == metrics_file.SKIP]
    # Going back once is what run.on_non_finite = "skip" is for.
    if not ends and len(skips) < 2:
        return None
    last = (ends or skips)[-1]
    terms = ", ".join(last.get("terms") or []) or "a loss"
    is_bfloat16 = "bfloat16" in run.plan.get("precision", "")
    precision = (
        " bfloat16 has 8 bits for a number: products of large activations and gradients overflow "
        "or vanish."
        if is_bfloat16
        else ""
    )
    remedy = f"bound the gradient with run.clip_norm = 10.0, or take {_SLOWER}"
    if is_bfloat16:
        remedy = f'train with run.precision = "float32" to see whether it is that; {remedy}'
    return Finding(
        95 if ends else 60,
        f"at step {last['step']:,} {terms} was not finite; so far {len(ends)} such ends and "
        f"{len(skips)} times that the run went back (metrics.jsonl; precision "
        f"{run.plan.get('precision', 'not recorded')})",
        "the weights grew until a sum overflowed: what was learnt before is lost or damaged."
        + precision,
        remedy,
    )


def loss_rises(run):
    """The loss ends above where it began."""
    losses = run.curve("total")
    if len(losses) < 5:
        return None
    share = max(len(losses) // 5, 1)
    first, last = float(np.mean(losses[:share])), float(np.median(losses[-share:]))
    if last <= 1.3 * first:
        return None
    norms = run.curve("gradient_norm")
    norm = f", the gradient's norm from {norms[0]:.3g} to {norms[-1]:.3g}" if norms else ""
    return Finding(
        90,
        f"the loss went from {first:.3g} to {last:.3g}{norm} ({run.path('tensorboard')}: "
        f"train/total), at a rate of {_relative_rate(run)}",
        "the training diverged: each step moves the weights away from what they knew",
        _SLOWER,
    )


def rate_too_high(run):
    """The rate is far above the rule's, which made detectors diverge or learn nothing."""
    multiple = _rate_multiple(run)
    if not run.is_low or multiple is None or multiple <= _FAR_TOO_HIGH:
        return None
    return Finding(
        60,
        f"a rate of {_relative_rate(run)} (config.json)",
        "steps that large undo each other, and the box head falls back to background everywhere",
        f"the linear rule: {_rule(run)}",
    )


def rate_too_low(run):
    """The rate is far below the rule's: nothing moves within the schedule."""
    multiple = _rate_multiple(run)
    if not run.is_low or multiple is None or multiple >= _FAR_TOO_LOW:
        return None
    return Finding(
        60,
        f"a rate of {_relative_rate(run)} (config.json)",
        "rates as of Adam (0.0001) hardly move weights with momentum SGD from random weights",
        f"the linear rule: {_rule(run)}",
    )


def warming_up(run):
    """The evaluation comes before the rate has risen."""
    warmup = run.schedule.get("warmup_steps") or 0
    if not run.is_low or not 0 < run.step <= warmup:
        return None
    return Finding(
        80,
        f"step {run.step:,} is within the {warmup:,} steps of warm-up; the rate is still below "
        f"{run.schedule['peak_learning_rate']:g} (config.json: schedule)",
        "the rate rises from a fraction of its peak: little is learnt until then",
        "evaluate later (run.evaluate_every), or shorten the schedule's warmup_steps if the run "
        "is that short",
    )


def too_early(run):
    """The run has seen too little to find anything, whatever is right or wrong."""
    num_images = run.data.get("training", {}).get("num_images")
    if not run.is_low or not run.step:
        return None
    passes = run.step * run.value("run.batch_size") / max(num_images or 1, 1)
    total = run.schedule.get("num_steps") or run.step
    is_short = run.step < _FEW_STEPS or (passes < _FEW_PASSES and run.step < total)
    if not is_short and run.step >= 0.02 * total:
        return None
    losses = run.curve("total")
    falls = f"; the loss fell from {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
    return Finding(
        50,
        f"{run.step:,} of {total:,} steps, {passes:.2g} passes over {num_images or 0:,} images"
        f"{falls} (metrics.jsonl, data.json)",
        "from random weights a detector finds nothing in the first hundred steps; on COCO in the "
        "first thousands",
        "go on: the same command continues. A run that ends here needs more STEPS (own_data.gin: "
        "EPOCHS) or weights to start from (pretrained_*.gin)",
    )


def few_positives(run):
    """Hardly any anchor or RoI of a step is an object."""
    found = {name: run.recent(f"{name}_positives") for name in ("rpn", "roi")}
    few = {name: mean for name, mean in found.items() if mean is not None and mean < 0.5}
    if not few:
        return None
    kinds = {"rpn": "positive anchors", "roi": "positive RoIs"}
    seen = " and ".join(f"{mean:.2g} {kinds[name]} an image" for name, mean in few.items())
    data = run.data.get("training", {})
    objects = data.get("num_objects", 0) / max(data.get("num_images", 1), 1)
    return Finding(
        85,
        f"{seen} in the last summaries ({run.path('tensorboard')}), where the data have "
        f"{objects:.1f} objects an image (data.json)",
        "without positives the losses teach background alone. Every object gives one at least, so "
        "the objects are lost on the way: cut away by a crop, or without an area",
        "look at the run's pictures/; without Pipeline.jitter and Pipeline.copy_paste all objects "
        "stay; RPN.anchor_sizes should span the objects' sizes",
    )


def statistics_of_one_image(run):
    """Batch normalization takes the statistics of one image, or of a few."""
    normalizers = run.values_of("normalizer")
    parts = sorted(name for name, value in normalizers.items() if value in _OF_BATCH_STATISTICS)
    batch, pieces = run.value("run.batch_size"), run.value("run.accumulate_steps", 1) or 1
    images = batch / pieces
    if not parts or images >= 4 or (images >= 2 and not run.is_low):
        return None
    return Finding(
        88 if images < 2 else 40,
        f'{", ".join(parts)} = "{normalizers[parts[0]]}" with run.batch_size = {batch} and '
        f"run.accumulate_steps = {pieces}: statistics of {images:g} image"
        f"{'s' if images > 1 else ''} (config.gin)",
        "they are taken over the images of a micro-batch, on all replicas. Of one image they say "
        "what is in it, and the moving averages of the evaluation fit none",
        "--gin_param='NORMALIZER=\"gn\"', which knows no batch; or 16 images and more a "
        "micro-batch, by more replicas or fewer accumulate_steps",
    )


def _rate_multiple(run):
    """The peak rate for 16 images over Detectron's; None of another optimizer than momentum SGD."""
    rate, optimizer = run.schedule.get("peak_learning_rate"), run.value("run.optimizer")
    if not rate or "MomentumSGD" not in str(getattr(optimizer, "name", optimizer)):
        return None
    return rate * IMAGES_PER_STEP / run.value("run.batch_size") / LEARNING_RATE


def _relative_rate(run):
    rate, multiple = run.schedule.get("peak_learning_rate", 0), _rate_multiple(run)
    images = run.value("run.batch_size")
    by_rule = f", {multiple:.3g} times the rule's" if multiple else ""
    return f"{rate:g} for {images} images a step{by_rule}"


def _rule(run):
    batch = run.value("run.batch_size")
    rate = LEARNING_RATE * batch / IMAGES_PER_STEP
    return (
        f"{LEARNING_RATE:g} for {IMAGES_PER_STEP} images, so {rate:g} for {batch} "
        "(peak_learning_rate of a StepwiseSchedule, base_learning_rate of the others is for "
        f"{IMAGES_PER_STEP}); up to eight times that held for small detectors with GN"
    )
