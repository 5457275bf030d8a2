"""Strategies by name."""

import pytest
import tensorflow as tf

from rethink_tf.training import checkpoints
from rethink_tf.training.distribution import make_strategy


def test_one_device_by_default():
    strategy = make_strategy()
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert checkpoints.is_chief(strategy)


def test_mirrored_on_logical_cpus(two_cpus):
    assert make_strategy("mirrored", num_cpus=len(two_cpus)).num_replicas_in_sync == 2


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="unknown name 'mirored'"):
        make_strategy("mirored")
    with pytest.raises(ValueError, match="64 GPUs asked for"):
        make_strategy("mirrored", num_gpus=64)
