"""Causes of a low AP that checkpoints alone show."""

import numpy as np
import pytest
import tensorflow as tf
from run_folder import RunFolder

from rethink_tf.diagnosis import run_files, table


class Detector(tf.Module):
    """Two layers with kernels, and a moving statistic."""

    def __init__(self):
        self.first = tf.Module()
        self.first.kernel = tf.Variable(tf.ones([2, 2]))
        self.second = tf.Module()
        self.second.kernel = tf.Variable(tf.ones([3]))
        self.moving_variance = tf.Variable(tf.ones([3]), trainable=False)


@pytest.fixture
def saved(tmp_path):
    """A healthy run's folder with two checkpoints, between which both kernels change."""

    def save(change=lambda detector: None):
        model_dir = RunFolder().write(tmp_path)
        detector = Detector()
        checkpoint = tf.train.Checkpoint(model=detector, optimizer=tf.Variable(np.nan))
        checkpoint.write(str(model_dir / "checkpoints" / "step-1000"))
        detector.first.kernel.assign_add(tf.ones([2, 2]))
        detector.second.kernel.assign_add(tf.ones([3]))
        change(detector)
        checkpoint.write(str(model_dir / "checkpoints" / "step-2000"))
        return model_dir

    return save


def causes(model_dir, reads_weights=True):
    return table.diagnose(run_files.RunFiles(model_dir, reads_weights))


def test_weights_that_train_are_no_finding(saved):
    assert causes(saved()) == []


def test_a_statistic_that_is_not_finite(saved):
    """The losses of training do not see it: health checks those alone."""
    model_dir = saved(lambda detector: detector.moving_variance.assign([1.0, np.inf, 1.0]))
    (finding,) = causes(model_dir)
    assert finding.cause == "weights_not_finite"
    assert "1 of 3 arrays" in finding.seen and "model/moving_variance" in finding.seen
    assert causes(model_dir, reads_weights=False) == []


def test_a_kernel_that_stays_as_it_was(saved):
    (finding,) = causes(saved(lambda detector: detector.second.kernel.assign(tf.ones([3]))))
    assert finding.cause == "weights_unchanged"
    assert "1 of 2 kernels" in finding.seen and "model/second/kernel" in finding.seen
    assert "steps 1,000 and 2,000" in finding.seen
