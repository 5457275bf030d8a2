"""The settings of a run from the statistics of its data: arithmetic alone, nothing is read.

A setting that a gin file or the command line binds itself is left as it is; see `deriving`. What is
derived stands in the run's config.gin, the statistics too.
"""

import math

import gin

# "small" learns a few classes on a CPU in minutes: the detector of quickstart.gin. "r50" is that of
# the paper, for a GPU.
MODELS = {
    "small": {
        "ResNet.depth": 18,
        "FPN.channels": 64,
        "RPN.channels": 64,
        "RPN.num_samples": 64,
        "BoxHead.num_convs": 0,
        "BoxHead.num_fcs": 2,
        "BoxHead.fc_channels": 256,
        "BoxHead.num_samples": 64,
        "MaskHead.channels": 64,
        "MaskHead.num_convs": 2,
        "Pipeline.mask_size": 56,
    },
    "r50": {"ResNet.depth": 50, "BoxHead.num_convs": 4, "BoxHead.num_fcs": 1},
}
NORMALIZED = ("ResNet", "FPN", "BoxHead", "MaskHead")
# Longest shorter side of the resized images, pixels.
MAX_SIDE = {"small": 416, "r50": 800}
MIN_SIDE = 128  # smaller images are enlarged: an object needs some cells
# Pixels of the small objects (the first of the statistics' sizes) from which on larger images are
# not worth their time: quickstart.gin's objects have 18 to 58. The paper takes 800 for all.
ENOUGH_PIXELS = {"small": 24, "r50": None}
SIDE_MULTIPLE = 32
MAX_ASPECT_RATIO = 1333 / 800  # the paper's
# Rates for one image a step: quickstart.gin's 0.04 for 8, the paper's 0.02 for 16.
RATE = {"small": 0.04 / 8, "r50": 0.02 / 16}
# A run has so many passes over the images, or more where they are fewer steps than MIN_STEPS: from
# random weights, a small set takes as many steps as a larger one.
EPOCHS = {"small": 12, "r50": 72}
MIN_STEPS = {"small": 600, "r50": 9000}
DROP_FRACTIONS = {"small": (0.75, 0.92), "r50": (8 / 9, 26 / 27)}
NUM_EVALUATIONS, MIN_EVALUATION_STEPS = 6, 50
MAX_CHECKPOINT_STEPS = 1000
NUM_LEVELS = 5
MIN_ANCHOR = 8  # pixels; two cells of the finest level
# Objects of one size still vary: the anchors of neighbouring levels differ by this factor or more.
MIN_ANCHOR_RATIO = 1.25
MIN_OBJECTS, MAX_OBJECTS = 8, 300
# Proposals of an image, in training; as many are wanted for each of its objects.
PROPOSALS_AN_OBJECT = 10
MIN_PROPOSALS, MAX_PROPOSALS = 200, 2000
MAX_DETECTIONS = 100  # what COCO's AP counts


@gin.register
def own_data_settings(
    data_dir: str,
    statistics: dict,
    batch_size: int,
    epochs: float | None = None,
    steps: int | None = None,
    side: int | None = None,
    splits=None,
    model: str = "small",
    normalizer: str = "gn",
):
    """Returns the settings that the data ask for.

    Args:
        data_dir: the user's folder; `deriving` finds the records and the statistics from it.
        statistics: of `statistics.measure`.
        batch_size: images a step; the rate is in proportion.
        epochs: passes over the training images; None for the model's `EPOCHS` and `MIN_STEPS`.
        steps: length of the run in place of epochs.
        side: shorter side of the images after resizing, pixels; None for the median of the data,
            within `MIN_SIDE` and the model's `MAX_SIDE`, or less where `ENOUGH_PIXELS` allow it.
        splits: names of the splits; for `deriving`.
        model: "small" or "r50".
        normalizer: of all parts.

    Returns:
        {binding: value}.

    Raises:
        ValueError: if the model is unknown or a number is not above 0.
    """
    del data_dir, splits
    if model not in MODELS:
        raise ValueError(f"MODEL = {model!r}: choose one of {', '.join(map(repr, MODELS))}.")
    for name, value in (("EPOCHS", epochs), ("STEPS", steps), ("SIDE", side)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} = {value}: it must be above 0.")
    settings = MODELS[model] | {f"{part}.normalizer": normalizer for part in NORMALIZED}
    settings |= {"MaskRCNN.mask_head": "@MaskHead", "Pipeline.include_masks": True}
    if not statistics["has_masks"]:
        of_masks = ("MaskHead.", "Pipeline.mask_size")
        settings = {key: value for key, value in settings.items() if not key.startswith(of_masks)}
        settings |= {"MaskRCNN.mask_head": None, "Pipeline.include_masks": False}
    settings |= _sizes(statistics, side, model)
    settings |= _objects(statistics)
    settings |= {"RPN.anchor_sizes": anchor_sizes(statistics, settings["Pipeline.min_side"])}
    # Runs that began before ratios were fitted have none in their statistics.
    if ratios := statistics.get("aspect_ratios"):
        settings |= {"RPN.aspect_ratios": tuple(ratios)}
    if statistics["num_held_out"]:
        settings["Pipeline.held_out"] = statistics["held_out"]
    return settings | _schedule(statistics["num_images"], batch_size, epochs, steps, model)


def _sizes(statistics, side, model):
    """The images' shorter side, and the longer one that 95 of 100 images have at most.

    By default the shorter side is the median of the data, or as little as shows the small objects.
    """
    if side is None:
        shorter = min(statistics["height"], statistics["width"])
        side = min(max(shorter, MIN_SIDE), MAX_SIDE[model])
        if enough := ENOUGH_PIXELS[model]:
            needed = math.ceil(enough / statistics["object_sizes"][0] / SIDE_MULTIPLE)
            side = min(side, max(needed * SIDE_MULTIPLE, MIN_SIDE))
    aspect = min(statistics["aspect_ratio"], MAX_ASPECT_RATIO)
    return {"Pipeline.min_side": int(side), "Pipeline.max_side": round(side * aspect)}


def _objects(statistics):
    """Room for the image of the most objects, and proposals in proportion to them."""
    most = statistics["max_objects"]
    proposals = min(max(PROPOSALS_AN_OBJECT * most, MIN_PROPOSALS), MAX_PROPOSALS)
    return {
        "Pipeline.max_objects": min(max(most, MIN_OBJECTS), MAX_OBJECTS),
        "RPN.train_pre_nms": proposals,
        "RPN.train_proposals": proposals,
        "RPN.test_pre_nms": proposals,
        "RPN.test_proposals": proposals // 2,
        "BoxHead.max_detections": MAX_DETECTIONS,
    }


def anchor_sizes(statistics, side):
    """Returns a size of anchor a level: in equal ratios from the small objects to the large ones.

    Args:
        statistics: of `statistics.measure`.
        side: int, shorter side of the resized images, pixels.

    Returns:
        `NUM_LEVELS` tuples of one size in pixels, ascending.
    """
    smallest, _, largest = (size * side for size in statistics["object_sizes"])
    smallest = max(smallest, MIN_ANCHOR)
    ratio = (max(largest, smallest) / smallest) ** (1 / (NUM_LEVELS - 1))
    if ratio < MIN_ANCHOR_RATIO:
        # Around the middle of the two.
        ratio = MIN_ANCHOR_RATIO
        middle = (smallest * max(largest, smallest)) ** 0.5
        smallest = max(middle / ratio ** ((NUM_LEVELS - 1) / 2), MIN_ANCHOR)
    return tuple((round(smallest * ratio**level),) for level in range(NUM_LEVELS))


def _schedule(num_images, batch_size, epochs, steps, model):
    """Steps, rate and drops, and how often is evaluated, saved and said how it goes."""
    if steps is None:
        least = 1 if epochs is not None else MIN_STEPS[model]
        epochs = EPOCHS[model] if epochs is None else epochs
        steps = max(round(epochs * num_images / batch_size), least)
    # Evaluations at equal distances, the last one at the end.
    interval = max(-(-steps // NUM_EVALUATIONS), min(steps, MIN_EVALUATION_STEPS))
    return {
        "StepwiseSchedule.num_steps": steps,
        "StepwiseSchedule.peak_learning_rate": RATE[model] * batch_size,
        "StepwiseSchedule.warmup_steps": min(500, steps // 10),
        "StepwiseSchedule.drop_steps": tuple(
            round(fraction * steps) for fraction in DROP_FRACTIONS[model]
        ),
        "run.evaluate_every": interval,
        "run.checkpoint_every": min(interval, MAX_CHECKPOINT_STEPS),
    }
