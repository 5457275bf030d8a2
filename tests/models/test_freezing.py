"""The frozen parts of the backbones: what trains, what moves, and where the gradient ends."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.models.resnet import ResNet, _pool
from rethink_tf.models.vgg import VGG16
from rethink_tf.ops.operations import Operations

MAKE = {
    "resnet": functools.partial(ResNet, 18, blocks_per_stage=(1, 2, 1, 1)),
    "vgg": VGG16,
}
IMAGES = np.random.default_rng(1).normal(size=[2, 64, 64, 3]).astype(np.float32)


def make(kind, normalizer, freeze_at):
    """Returns a backbone of given weights, its statistics other than those of the images."""
    tf_keras.utils.set_random_seed(4)
    backbone = MAKE[kind](normalizer=normalizer, freeze_at=freeze_at)
    backbone(IMAGES)
    for variable in backbone.variables:
        if "moving" in variable.name:
            variable.assign(variable + 0.5)
    return backbone


def parts_of(backbone):
    stem = [[backbone.stem]] if isinstance(backbone, ResNet) else []
    return stem + backbone.stages


def run_by_hand(backbone, images, freeze_at):
    """The levels of a backbone of which nothing is frozen, its first parts run as at test."""
    outputs, features, resnet = images, {}, isinstance(backbone, ResNet)
    for number, layers in enumerate(parts_of(backbone), start=1):
        if not resnet and number > 1:
            outputs = tf.nn.max_pool2d(outputs, 2, 2, "VALID")
        for layer in layers:
            outputs = layer(outputs, training=number > freeze_at)
        if resnet and number == 1:
            outputs = _pool(Operations(), outputs, None)
        if number <= freeze_at:
            outputs = tf.stop_gradient(outputs)
        features[number] = outputs
    return {level: features[level] for level in ((2, 3, 4, 5) if resnet else (5,))}


def run(call):
    """Returns the features, the sum of their squares, the images it is of, and the tape."""
    images = tf.constant(IMAGES)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        features = call(images)
        value = tf.add_n([tf.reduce_sum(tf.square(feature)) for feature in features.values()])
    return list(features.values()), value, images, tape


@pytest.mark.parametrize(
    ("kind", "normalizer", "freeze_at"),
    [
        ("resnet", "syncbn", 0),
        ("resnet", "syncbn", 1),
        ("resnet", "syncbn", 2),
        ("resnet", "gn", 3),
        ("resnet", "gn", 5),
        ("vgg", "none", 2),
        ("vgg", "syncbn", 5),
    ],
)
def test_frozen_parts_run_as_at_test_and_end_the_gradient(kind, normalizer, freeze_at):
    backbone, twin = make(kind, normalizer, freeze_at), make(kind, normalizer, 0)
    split = [
        variable
        for part in parts_of(backbone)[:freeze_at]
        for layer in part
        for variable in layer.variables
    ]
    frozen = {variable.ref() for variable in split}
    free = [each for each in backbone.variables if each.ref() not in frozen]
    assert bool(frozen) == (freeze_at > 0)
    # All that train, and nothing that is frozen.
    expected = {each.ref() for each in free if "moving" not in each.name}
    assert {each.ref() for each in backbone.trainable_variables} == expected

    before = [variable.numpy() for variable in backbone.variables]
    features, value, images, tape = run(lambda images: backbone(images, training=True))
    for variable, old in zip(backbone.variables, before, strict=True):
        moved = np.any(variable.numpy() != old)
        assert moved == ("moving" in variable.name and variable.ref() not in frozen), variable.name
    others, other_value, _, other_tape = run(lambda images: run_by_hand(twin, images, freeze_at))
    for found, feature in zip(features, others, strict=True):
        np.testing.assert_allclose(found, feature, rtol=1e-4, atol=1e-4)

    # The gradient reaches neither the frozen weights nor what comes before them.
    assert all(each is None for each in tape.gradient(value, split))
    assert (tape.gradient(value, images) is None) == (freeze_at > 0)
    places = {variable.ref(): place for place, variable in enumerate(order(backbone))}
    targets = [order(twin)[places[each.ref()]] for each in backbone.trainable_variables]
    gradients = tape.gradient(value, backbone.trainable_variables)
    for found, expected in zip(gradients, other_tape.gradient(other_value, targets), strict=True):
        scale = np.max(np.abs(expected))
        assert scale > 0
        np.testing.assert_allclose(found, expected, atol=2e-3 * scale)


def order(backbone):
    """The variables in an order that does not depend on what is frozen."""
    return [each for part in parts_of(backbone) for layer in part for each in by_name(layer)]


def by_name(layer):
    return sorted(layer.variables, key=lambda variable: variable.name)


@pytest.mark.parametrize(("kind", "freeze_at"), [("resnet", 6), ("vgg", -1)])
def test_more_parts_than_there_are(kind, freeze_at):
    with pytest.raises(ValueError, match=rf"freeze_at = {freeze_at}: .* from 0 for none to 5"):
        MAKE[kind](freeze_at=freeze_at)
