"""Tests of rethink_tf/training/checkpoint_shapes.py: weights of another detector, in one line."""

import functools
import subprocess
import sys

import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.models.box_head import BoxHead
from rethink_tf.training import checkpoint_shapes


def checkpoint_of(num_classes, channels=32):
    """A checkpoint of a box head and an optimizer, as a run has it."""
    build = functools.partial(BoxHead, num_convs=1, conv_channels=channels, fc_channels=8)
    head = build(num_classes=num_classes)
    head(tf.zeros([1, 1, head.roi_size, head.roi_size, channels]))
    optimizer = tf_keras.optimizers.SGD(momentum=0.9)
    optimizer.build(head.trainable_variables)
    return tf.train.Checkpoint(model=head, optimizer=optimizer)


def test_another_number_of_classes_is_one_line(tmp_path):
    path = checkpoint_of(3).write(str(tmp_path / "step-1"))
    checkpoint_shapes.check(checkpoint_of(3), path)
    with pytest.raises(ValueError, match="step-1 is of a detector of 3 classes.*data have 5") as e:
        checkpoint_shapes.check(checkpoint_of(5), path)
    assert "\n" not in str(e.value)


def test_other_shapes_are_named(tmp_path):
    path = checkpoint_of(3).write(str(tmp_path / "step-1"))
    with pytest.raises(ValueError, match=r"is of another detector: model/\S+ is \(.*and \d+ more"):
        checkpoint_shapes.check(checkpoint_of(3, channels=64), path)


def test_nothing_more_is_printed(tmp_path):
    """TensorFlow warns of every value it has not read when a checkpoint is forgotten."""
    script = f"""
import sys
sys.path[:0] = {sys.path[:2]!r}
import tensorflow as tf
from rethink_tf.training import checkpoint_shapes
stored = tf.train.Checkpoint(a=[tf.Variable([1.0, 2.0]) for _ in range(9)])
path = stored.write({str(tmp_path)!r} + "/c")
try:
    checkpoint_shapes.check(tf.train.Checkpoint(a=[tf.Variable([1.0]) for _ in range(9)]), path)
except ValueError as error:
    print("error:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and "a/0 is (2,) there and (1,) here" in done.stdout
    assert "unrestored" not in done.stderr and "Value in checkpoint" not in done.stderr
