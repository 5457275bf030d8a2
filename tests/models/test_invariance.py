"""What surrounds an image changes nothing: another shape of the batch, another image beside it.

Each normalizer is tried in all parts of a small detector, in training and at test, in the form of
dynamic and of static shapes.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import machine_plan, run_step, with_plan

from rethink_tf.layers.normalization import NORMALIZERS
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN

# Of batch statistics: an image beside another one is normalized with it.
BATCH_WISE = ("syncbn", "batch_renorm")
STATIC = ("gn", *BATCH_WISE)
# No side is a multiple of 32. The first image fills 160 x 128 and the second 128 x 160.
SIZES = ((134, 101), (114, 148))
KEYPOINTS = 3


def make_detector(normalizer):
    """Returns a small detector with all heads, whose RPN has two convolutions."""
    partial, counts = functools.partial, dict(train_pre_nms=40, train_proposals=40)
    tf_keras.utils.set_random_seed(1)
    detector = MaskRCNN(
        3,
        partial(ResNet, 50, normalizer, blocks_per_stage=(1, 1, 1, 1)),
        partial(FPN, 32, normalizer),
        partial(RPN, 32, num_samples=32, num_convs=2, test_pre_nms=40, test_proposals=40, **counts),
        partial(
            BoxHead,
            num_convs=1,
            conv_channels=32,
            fc_channels=32,
            normalizer=normalizer,
            num_samples=24,
            score_threshold=0.0,
            max_detections=12,
        ),
        partial(MaskHead, num_convs=1, channels=32, normalizer=normalizer),
        partial(KeypointHead, num_convs=1, channels=32, normalizer=normalizer),
        KEYPOINTS,
        plan=machine_plan(),
    )
    detector.create_variables()
    generator = np.random.default_rng(2)
    # Far from the initial values, so that a shift or a bias beyond the content would be seen.
    for variable in detector.variables:
        name = variable.name.split("/")[-1].split(":")[0]
        if name in ("bias", "beta", "moving_mean"):
            variable.assign(generator.normal(0, 0.3, variable.shape))
        elif name in ("moving_variance", "moving_deviation"):
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        elif name == "num_updates":
            variable.assign(15_000)  # r and d of batch renormalization are in use
    for layer in (detector.box_head.class_logits, detector.rpn.objectness):
        layer.kernel.assign(layer.kernel * 30)
    return detector


def make_batch(shape, images=(0, 1), garbage=True, seed=0):
    """Returns some of two images of SIZES in a shape, with objects, masks and keypoints."""
    generator = np.random.default_rng(seed)
    pixels = [generator.integers(0, 256, (*size, 3)) for size in SIZES]
    boxes = [[[8, 5, 100, 90], [60, 40, 134, 101]], [[2, 70, 90, 148], [20, 24, 80, 88]]]
    keypoints = np.zeros([2, 2, KEYPOINTS, 3], np.float32)
    for place, box in enumerate(np.reshape(boxes, [-1, 4])):
        inside = box[:2] + generator.uniform(0.2, 0.8, [KEYPOINTS, 2]) * (box[2:] - box[:2])
        keypoints.reshape(-1, KEYPOINTS, 3)[place] = np.column_stack([inside, [2, 1, 2]])
    # Discs: the targets of noise would change with the last digit of a proposal.
    rows, columns = np.mgrid[-1:1:28j, -1:1:28j]
    masks = np.broadcast_to(255 * (rows**2 + columns**2 < 0.7), (2, 2, 28, 28))
    batch = {
        "image_size": np.int32(SIZES),
        "image_id": np.int64([139, 285]),
        "boxes": np.float32(boxes),
        "classes": np.int32([[1, 3], [2, 1]]),
        "masks": masks.astype(np.uint8),
        "keypoints": keypoints,
    }
    batch = {key: value[list(images)] for key, value in batch.items()}
    canvas = generator.integers(0, 256, (len(images), *shape, 3)) * garbage
    for place, image in enumerate(images):
        height, width = SIZES[image]
        canvas[place, :height, :width] = pixels[image]
    batch["image"] = canvas.astype(np.uint8)
    return {key: tf.constant(value) for key, value in batch.items()}


def training_step(detector, batch, padded=True):
    """Returns losses and gradients by name, and the statistics moved; those are put back."""
    before = [variable.numpy() for variable in detector.non_trainable_variables]
    _, losses, gradients = run_step(detector, batch, padded=padded)
    moved = {v.name: v.numpy() for v in detector.non_trainable_variables}
    for variable, value in zip(detector.non_trainable_variables, before, strict=True):
        variable.assign(value)
    names = [variable.name for variable in detector.trainable_variables]
    gradients = [
        np.zeros(variable.shape) if each is None else tf.convert_to_tensor(each).numpy()
        for variable, each in zip(detector.trainable_variables, gradients, strict=True)
    ]
    losses = {name: float(value) for name, value in losses.items()}
    return losses, dict(zip(names, gradients, strict=True)) | moved


def assert_same_losses(found, expected):
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-4, err_msg=name)


def errors_of(found, expected):
    """Returns the relative errors of the gradients and the statistics, by name."""
    return {
        name: np.linalg.norm(found[1][name] - value) / (np.linalg.norm(value) + 0.05)
        for name, value in expected[1].items()
    }


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_step_is_the_same_in_every_shape(normalizer):
    detector = make_detector(normalizer)
    errors, full = [], {"shape": (160, 128), "images": [0], "garbage": False}
    for seed, shape in enumerate([(160, 256), (224, 160), (192, 320)]):
        expected = training_step(detector, make_batch((160, 160), garbage=False, seed=seed))
        assert all(value > 0 for value in expected[0].values()) and len(expected[0]) == 6
        found = training_step(detector, make_batch(shape, seed=seed))
        assert_same_losses(found, expected)
        errors.append(errors_of(found, expected))
    # An image that fills its shape, with masks of ones and without.
    found, expected = (
        training_step(detector, make_batch(**full), padded) for padded in (True, False)
    )
    assert_same_losses(found, expected)
    errors.append(errors_of(found, expected))
    # The form of static shapes, in which the heads run on empty rows as well.
    if normalizer in STATIC:
        with with_plan(detector, static_shapes=True):
            found = training_step(detector, make_batch(**full), False)
        assert_same_losses(found, expected)
        errors.append(errors_of(found, expected))
    if normalizer not in BATCH_WISE:
        # Beside another image: the losses of the RPN are means over the images.
        pair, *alone = (
            training_step(detector, make_batch((192, 192), images))[0]
            for images in ([0, 1], [0], [1])
        )
        for name in ("rpn_objectness", "rpn_box"):
            mean = np.mean([losses[name] for losses in alone])
            np.testing.assert_allclose(mean, pair[name], rtol=1e-4)
        np.testing.assert_allclose(alone[0]["mask"], expected[0]["mask"], rtol=1e-4)
    for name in errors[0]:
        each = sorted(case[name] for case in errors)
        # The last digit may turn one of the few active units on or off, which changes gradients
        # that pass it, but not in every case.
        exact = "moving" in name or "num_updates" in name
        assert each[-1 if exact else 1] < 1e-4, f"{name}: {each}"


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_detections_are_the_same_in_every_shape(normalizer):
    detector = make_detector(normalizer)
    expected = {}
    for image, shape in enumerate([(160, 128), (128, 160)]):
        found = detector(make_batch(shape, [image], garbage=False), padded=False)
        for key, value in found.items():
            expected.setdefault(key, []).append(value[0].numpy())
    assert np.sum(np.stack(expected["classes"]) > 0) > 10
    for shape in ((160, 160), (288, 192)):
        found = detector(make_batch(shape))
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], np.stack(values), rtol=1e-4, atol=2e-4)
