"""Sizes of the shipped experiments: parameters and arithmetic of their detectors, at full size.

    python -m benchmarks.experiments

prints a row of markdown for every gin file, the columns "parameters" and "GFLOPs" of
docs/experiments.md. Parameters are those that train. GFLOPs are multiplications and additions of
convolutions, matrix products and biases, in 1e9, of one image at test: the trunk on the size of the
experiment (800 x 1216 pixels for all of the paper), all stages of the box head on all its
proposals, the mask and keypoint heads on as many boxes as are reported.
"""

import argparse
from typing import NamedTuple

import gin

from benchmarks import harness
from rethink_tf import config

COCO_CLASSES = 80
# Longer over shorter side, of most of COCO's images about: 1216 / 800.
ASPECT = 1.52
# Sides are multiples of the coarsest backbone stride.
STRIDE = 32


class Size(NamedTuple):
    """Trainable parameters and operations of one image at test."""

    parameters: int
    operations: int


def measure(name, num_classes):
    """Measures a shipped experiment.

    Args:
        name: str, such as "scratch_r50.gin".
        num_classes: int, object classes of its data.

    Returns:
        `Size`.
    """
    # Late: --help answers without waiting for TensorFlow.
    from benchmarks import flops
    from rethink_tf import experiment

    config.parse([name], parameters_for(name))
    detector = experiment.detector_builder()(num_classes=num_classes)
    pipeline = gin.get_bindings("experiment.run")["pipeline"]()
    detector.create_variables()
    height = pipeline.evaluation_min_side
    width = min(round(ASPECT * height / STRIDE) * STRIDE, pipeline.max_side)
    found = flops.forward(detector, 1, height, width)
    proposals = detector.rpn.num_proposals[False]
    detections = detector.box_head.stages[-1].max_detections
    return Size(
        sum(variable.shape.num_elements() for variable in detector.trainable_variables),
        found.trunk + proposals * found.roi + detections * (found.mask + found.keypoints),
    )


def of_one_size():
    """Returns the names of the shipped experiments whose detector does not depend on the data."""
    return [name for name in config.shipped_experiments() if name != "own_data.gin"]


def parameters_for(name):
    """Returns bindings of what an experiment wants to be given, for one that is not run."""
    places = ["MODEL_DIR='/nowhere'", "DATA_DIR='/nowhere'"]
    return places + ["INIT_CHECKPOINT='/nowhere'"] * name.startswith("pretrained_")


def num_classes_of(name):
    """Returns the number of object classes of an experiment's data."""
    from rethink_tf.data.sources import shapes, voc

    if "voc" in name:
        return len(voc.CLASSES)
    if "keypoints" in name:
        return 1  # persons
    return len(shapes.CATEGORIES) if name == "quickstart.gin" else COCO_CLASSES


def main():
    """Measures all experiments and prints their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    parser.add_argument("experiments", nargs="*", default=of_one_size(), help="their files' names")
    print("| gin file | parameters | GFLOPs |\n| --- | --- | --- |")
    for name in parser.parse_args().experiments:
        size = measure(name, num_classes_of(name))
        millions, billions = size.parameters / 1e6, size.operations / 1e9
        print(f"| `{name}` | {millions:.2f} M | {billions:.0f} |", flush=True)


if __name__ == "__main__":
    main()
