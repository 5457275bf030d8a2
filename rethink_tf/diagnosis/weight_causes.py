"""Causes of a low AP in the weights: parts that do not train, and numbers that are not finite.

Each function takes `run_files.RunFiles` and returns a `Finding`, or None. The last two read
checkpoints, where they may: that takes TensorFlow, which is imported only then.
"""

import os
import re

import numpy as np

from rethink_tf import files
from rethink_tf.diagnosis.finding import Finding

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def frozen_random(run):
    """Layers keep the random weights that they were made with."""
    if run.value("run.init_checkpoint") or run.value("run.continue_from"):
        return None
    parts = [f"{name} = {value}" for name, value in run.values_of("freeze_at").items() if value]
    parts += [
        f'{name} = "frozen_bn"'
        for name, value in run.values_of("normalizer").items()
        if value == "frozen_bn"
    ]
    if not parts:
        return None
    return Finding(
        92,
        f"{', '.join(sorted(parts))}, and run.init_checkpoint is not given (config.gin)",
        "frozen layers keep random filters, and a frozen normalization without a classifier's "
        "statistics normalizes nothing",
        "from random weights --gin_param=FREEZE_AT=0 and --gin_param='NORMALIZER=\"gn\"'; or "
        "weights to start from: --gin_param='run.init_checkpoint=\"...\"' (python -m "
        "rethink_tf.convert makes them)",
    )


def part_without_gradient(run):
    """The gradient of a part of the detector is 0 at every step."""
    prefix = "train/gradient_norm/"
    idle = [
        name.removeprefix(prefix)
        for name, (_, values) in run.curves.items()
        if name.startswith(prefix) and len(values) > 1 and not np.any(values)
    ]
    if not idle:
        return None
    return Finding(
        90,
        f"the gradient of {', '.join(sorted(idle))} was 0 in all summaries "
        f"({run.path('tensorboard')}: {prefix}...)",
        "these weights stay as they began, from random weights at random",
        "a head without samples needs data that have them (masks, keypoints); a backbone of one's "
        "own must not stop the gradient; FREEZE_AT = 0 trains all of the shipped ones",
    )


def weights_not_finite(run):
    """Weights or moving statistics of the newest checkpoint are NaN or infinite."""
    weights = _weights(run, newest=True)
    bad = sorted(name for name, value in weights.items() if not np.isfinite(value).all())
    if not bad:
        return None
    return Finding(
        99,
        f"{len(bad)} of {len(weights)} arrays of the newest checkpoint are not finite, such as "
        f"{bad[0]} ({run.path('checkpoints')})",
        "whatever they touch is not finite either, and detections that are not are dropped",
        "start from an older checkpoint that is whole: run.init_checkpoint in a new MODEL_DIR, "
        "with a lower rate",
    )


def weights_unchanged(run):
    """Weights that train are the same in the oldest and the newest checkpoint of the run."""
    first, last = _weights(run, newest=False), _weights(run, newest=True)
    kernels = [name for name in last if name.endswith("kernel") and name in first]
    if not kernels or _steps(run)[0] == _steps(run)[-1]:
        return None
    same = sorted(name for name in kernels if np.array_equal(first[name], last[name]))
    frozen = any(run.values_of("freeze_at").values()) and run.value("run.init_checkpoint")
    if not same or frozen:
        return None
    return Finding(
        90 if len(same) > len(kernels) // 2 else 60,
        f"{len(same)} of {len(kernels)} kernels are equal in the checkpoints of steps "
        f"{_steps(run)[0]:,} and {_steps(run)[-1]:,}, such as {same[0]} "
        f"({run.path('checkpoints')})",
        "they do not train, and from random weights they stay random",
        "--gin_param=FREEZE_AT=0; a cascade's later stages begin with run.cascade_steps",
    )


def _steps(run):
    """Steps of the run's checkpoints, ascending."""
    names = files.list_folder(run.path("checkpoints"), ".index")
    return sorted(int(found[1]) for name in names if (found := re.match(r"step-(\d+)\.", name)))


def _weights(run, newest):
    """Returns {name: array} of the detector in a checkpoint; {} where they are not to be read."""
    steps = _steps(run) if run.reads_weights else []
    if not steps:
        return {}
    # Only now: files tell the rest without it.
    import tensorflow as tf

    path = os.path.join(run.path("checkpoints"), f"step-{steps[-1 if newest else 0]}")
    reader = tf.train.load_checkpoint(path)
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("model/")]
    # A slot of the optimizer has a weight's name before its own.
    return {
        name.removesuffix(_VALUE): reader.get_tensor(name)
        for name in names
        if name.endswith(_VALUE) and ".OPTIMIZER_SLOT" not in name
    }
