"""The settings that own_data.gin would take for the data of an experiment, as a gin file.

The values are those of `own_data.settings`; here is what of them fits another experiment, and the
reason of each in words.
"""

import dataclasses
import pprint

import gin
import numpy as np

from rethink_tf import config
from rethink_tf.looking import anchors
from rethink_tf.own_data import preparing, settings, statistics
from rethink_tf.training.schedules import StepwiseSchedule

_SIZES = ("Pipeline.min_side", "Pipeline.max_side")
_ANCHORS = ("RPN.anchor_sizes", "RPN.aspect_ratios")
_PROPOSALS = tuple(
    f"RPN.{use}_{what}" for use in ("train", "test") for what in ("pre_nms", "proposals")
)
_SCHEDULE = tuple(
    f"StepwiseSchedule.{name}"
    for name in ("num_steps", "peak_learning_rate", "warmup_steps", "drop_steps")
)
_INTERVALS = ("run.evaluate_every", "run.checkpoint_every")
_REACHED = 0.5  # IoU by which the reach of two choices of anchors is compared
_DEEPEST_SMALL = 34  # of ResNets: `own_data.settings.MODELS` has 18 and 50


@dataclasses.dataclass(frozen=True)
class Suggested:
    """One binding of the overlay.

    Attributes:
        name: of the binding; a macro where the experiment sets the value by one.
        value: the value, or a text that begins with "@", which stands for a part.
        now: what the experiment has, as a text.
        reason: why.
    """

    name: str
    value: object
    now: str
    reason: str

    @property
    def text(self):
        """The value in gin's syntax."""
        return _text(self.value)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What the data ask for.

    Attributes:
        bindings: list of `Suggested`.
        left_out: texts, of what is not suggested, and why.
        grid: `anchors.AnchorGrid` as suggested, or None where anchors stay.
        sides: (shorter side, longest side) of the images as suggested, or None where they stay.
    """

    bindings: list
    left_out: list
    grid: anchors.AnchorGrid | None
    sides: tuple | None


def suggest(opened, table):
    """Derives the settings that the data of an experiment ask for.

    Args:
        opened: `opening.Opened`; its gin files are parsed.
        table: `objects.ObjectTable` of the images that are trained on.

    Returns:
        `Suggestion`.

    Raises:
        ValueError: if there are too few images or objects.
    """
    found = _measured(opened)
    derived = _derived(opened, found)
    values, left_out = _fitting(opened, derived)
    sides = tuple(values[key] for key in _SIZES) if _SIZES[0] in values else None
    grid = _choose_anchors(opened, table, values, sides, left_out)
    if not found.get("aspect_ratios"):
        left_out.append(
            "RPN.aspect_ratios: the usual 0.5, 1 and 2 reach nearly as many objects as fitted ones"
        )
    reasons = _reasons(opened, found, values)
    bindings = [
        Suggested(_written_as(key), value, _now(opened, key), reasons[key])
        for key, value in values.items()
    ]
    return Suggestion(_extras(opened, values) + bindings, left_out, grid, sides)


def overlay_text(suggestion, command_flags):
    """Returns the suggestion as a gin file.

    Args:
        suggestion: of `suggest`.
        command_flags: the flags of `rethink_tf.train` that it goes after, a text each.
    """
    lines = ["# What the data ask for, by the rules of own_data.gin (rethink_tf/own_data).", "#"]
    lines += ["#   python -m rethink_tf.train \\"]
    lines += [f"#     {flag} \\" for flag in command_flags]
    lines += ["#     --gin_file=THIS_FILE"]
    for each in suggestion.left_out:
        lines += ["#", f"# Left as it is: {each}."]
    for each in suggestion.bindings:
        lines += ["", f"# {each.reason}", f"# Now: {each.now}.", f"{each.name} = {each.text}"]
    return "\n".join(lines) + "\n"


def _measured(opened):
    """The statistics: those of own_data.gin where the experiment says so."""
    if bound := config.value_of("own_data_settings.statistics"):
        return bound
    run = opened.settings
    evaluated = run.evaluation_split if run.evaluation_split != run.train_split else None
    found = statistics.measure(preparing.Prepared(run.data_dir, run.train_split, evaluated))
    has_masks = opened.model.mask_head is not None
    # The experiment says which images it trains on, and of what.
    return found | {"num_images": len(opened.train_index), "has_masks": has_masks}


def _derived(opened, found):
    """All that own_data.gin would derive."""
    if of_run := config.value_of("run.settings"):
        return of_run()
    depth = config.value_of("ResNet.depth")
    is_small = opened.model.backbone.name.startswith("res") and (depth or 50) <= _DEEPEST_SMALL
    return settings.own_data_settings(
        data_dir=opened.settings.data_dir,
        statistics=found | {"num_held_out": 0},
        batch_size=opened.settings.batch_size,
        model="small" if is_small else "r50",
    )


def _fitting(opened, derived):
    """What of the derived settings fits the experiment, and texts of what does not."""
    keys = [*_SIZES, "Pipeline.max_objects", "Pipeline.held_out", *_ANCHORS, *_PROPOSALS]
    left_out, rpn = [], opened.model.rpn
    values = {key: derived[key] for key in keys if key in derived}
    if opened.pipeline.jitter:
        values = {key: each for key, each in values.items() if key not in (*_SIZES, *_ANCHORS)}
        left_out.append("sizes and anchors: LargeScaleJitter draws the sizes of training")
    elif "RPN.anchor_sizes" in values:
        flat = [size for sizes in values["RPN.anchor_sizes"] for size in sizes]
        if len(flat) == sum(map(len, rpn.anchor_sizes)):
            rows = np.reshape(flat, [len(rpn.anchor_sizes), -1]).tolist()
            values["RPN.anchor_sizes"] = tuple(map(tuple, rows))
        else:
            del values["RPN.anchor_sizes"]
            left_out.append(f"RPN.anchor_sizes: the rule gives {len(flat)} sizes, the RPN has more")
    if opened.settings.cascade_steps is not None:
        left_out.append("the schedule: run.cascade_steps counts its last steps")
        return values, left_out
    return values | {key: derived[key] for key in (*_SCHEDULE, *_INTERVALS)}, left_out


def _choose_anchors(opened, table, values, sides, left_out):
    """Leaves the experiment its sizes of anchors where they reach more objects than the derived.

    Returns:
        `anchors.AnchorGrid` as suggested, or None where nothing of it changes.
    """
    now = anchors.AnchorGrid.of(opened.model)
    ratios = values.get("RPN.aspect_ratios", now.ratios)
    own = dataclasses.replace(now, ratios=ratios)
    derived = dataclasses.replace(own, sizes=values.get("RPN.anchor_sizes", now.sizes))
    if sides and derived != own and not config.value_of("run.settings"):
        boxes, content, _ = anchors.objects_at_side(table, *sides)
        shares = [
            float((anchors.best_ious(boxes, content, grid) >= _REACHED).mean())
            for grid in (own, derived)
        ]
        if shares[1] < shares[0]:
            del values["RPN.anchor_sizes"]
            left_out.append(
                f"RPN.anchor_sizes: in images of side {sides[0]} they reach {shares[0]:.1%} of the "
                f"objects at IoU {_REACHED}, those of own_data.gin, {_text(derived.sizes)}, "
                f"{shares[1]:.1%}"
            )
            derived = own
    return None if derived == now and not sides else derived


def _extras(opened, values):
    """Bindings without which the others would not fit the experiment."""
    extras, pipeline = [], opened.pipeline
    if pipeline.buckets and "Pipeline.min_side" in values:
        reason = "Shapes of batches then follow from the sizes."
        extras.append(Suggested("Pipeline.buckets", None, str(tuple(pipeline.buckets)), reason))
    side = config.value_of("Pipeline.evaluation_min_side")
    if side and "Pipeline.min_side" in values:
        reason = "Evaluates at the side of training."
        extras.append(Suggested("Pipeline.evaluation_min_side", None, str(side), reason))
    scale = config.value_of("RPN.anchor_scale")
    if scale not in (None, 1.0) and "RPN.anchor_sizes" in values:
        reason = "The sizes below are in pixels."
        extras.append(Suggested("RPN.anchor_scale", 1.0, str(scale), reason))
    kind = type(opened.settings.schedule)
    if _SCHEDULE[0] in values and kind is not StepwiseSchedule:
        reason = "A schedule in steps, which the lines below set."
        extras.append(Suggested("run.schedule", "@StepwiseSchedule()", kind.__name__, reason))
    return extras


def _written_as(key):
    """Returns the macro by which the experiment sets a value, else the binding's own name."""
    try:
        bound = gin.query_parameter(key)
    except ValueError:
        return key
    scope, selector = getattr(bound, "config_key", ("", ""))
    return scope if selector == config.MACRO else key


def _now(opened, key):
    part, _, name = key.partition(".")
    rpn = opened.model.rpn
    if part == "RPN":
        use, _, what = name.partition("_")
        known = {"pre_nms": rpn.pre_nms, "proposals": rpn.num_proposals}
        value = known[what][use == "train"] if what in known else getattr(rpn, name)
    else:
        owner = {"Pipeline": opened.pipeline, "run": opened.settings}.get(part)
        value = getattr(owner or opened.settings.schedule, name, None)
    return _text(value)


def _text(value):
    """Returns a value in gin's syntax, whole floats of lists as integers."""
    if isinstance(value, (list, tuple)):
        return pprint.pformat(_whole(value), width=10_000)
    return value if isinstance(value, str) and value.startswith("@") else repr(value)


def _whole(value):
    if isinstance(value, (list, tuple)):
        return tuple(map(_whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _reasons(opened, found, values):
    """Says why of each value; sizes of the statistics are parts of the shorter side."""
    shorter, images = min(found["height"], found["width"]), found["num_images"]
    low, _, high = found["object_sizes"]
    side = values.get("Pipeline.min_side", shorter)
    batch = opened.settings.batch_size
    pixels = f"{low * side:.0f} to {high * side:.0f} pixels at {side}"
    steps = values.get("StepwiseSchedule.num_steps")
    epochs = f"{steps * batch / images:.1f} passes over {images} images" if steps else ""
    proposals = (
        f"{settings.PROPOSALS_AN_OBJECT} for each of up to {found['max_objects']} objects, within "
        f"{settings.MIN_PROPOSALS} and {settings.MAX_PROPOSALS}."
    )
    reasons = {
        "Pipeline.min_side": f"The images' median shorter side is {shorter} pixels; the model "
        f"takes as much of it as shows the small objects ({low:.3f} of it, the 5% quantile).",
        "Pipeline.max_side": f"95 of 100 images are at most {found['aspect_ratio']} times as long "
        "as wide.",
        "Pipeline.max_objects": f"The fullest image has {found['max_objects']} objects.",
        "Pipeline.held_out": f"There is one split: {found['num_held_out']} images are held out.",
        "RPN.anchor_sizes": f"From the 5% to the 95% quantile of the objects' sizes, {pixels}, in "
        "equal ratios.",
        "RPN.aspect_ratios": "k-means on IoU of the boxes' ratios: with 0.5, 1 and 2 at least "
        "a tenth of the objects more would be out of reach of IoU 0.7 for every anchor.",
        "StepwiseSchedule.num_steps": f"{epochs} of {batch} a step: random weights take long.",
        "StepwiseSchedule.peak_learning_rate": f"In proportion to {batch} images a step.",
        "StepwiseSchedule.warmup_steps": "500, or a tenth of the steps where that is less.",
        "StepwiseSchedule.drop_steps": "The model's fractions of the steps.",
        "run.evaluate_every": f"{settings.NUM_EVALUATIONS} evaluations in a run, where it is long.",
        "run.checkpoint_every": "As often, but for long runs.",
    }
    return reasons | dict.fromkeys(_PROPOSALS, proposals)
