"""What the plan decides for each kind of device, and that every layer is given it."""

import dataclasses
import types

import pytest
import tensorflow as tf

from rethink_tf import execution
from rethink_tf.layers import conv, normalization
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.ops.cpu import CpuOperations


def strategy_on(kind, replicas=1):
    """What the plan reads of a strategy, for devices that this machine lacks."""
    devices = [f"/replica:0/task:0/device:{kind}:{index}" for index in range(replicas)]
    extended = types.SimpleNamespace(worker_devices=devices)
    return types.SimpleNamespace(extended=extended, num_replicas_in_sync=replicas)


def decisions(plan):
    return (
        plan.device,
        plan.convolution,
        plan.roi_align,
        plan.is_deterministic,
        plan.static_shapes,
        plan.recomputes,
    )


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("CPU", {}, ("CPU", "cpu", "crop_and_resize", True, False, True)),
        ("CPU", {"deterministic": False}, ("CPU", "cpu", "gather", False, False, True)),
        ("CPU", {"jit_compile": True}, ("CPU", "cpu", "gather", False, True, True)),
        ("GPU", {}, ("GPU", "tensorflow", "crop_and_resize", False, False, True)),
        ("GPU", {"deterministic": True}, ("GPU", "tensorflow", "gather", True, False, True)),
        ("GPU", {"jit_compile": True}, ("GPU", "tensorflow", "gather", False, True, False)),
        ("TPU", {}, ("TPU", "tensorflow", "gather", False, True, False)),
    ],
)
def test_what_suits_a_device(kind, options, expected):
    plan = execution.make_plan(strategy_on(kind), **options)
    assert decisions(plan) == expected
    assert isinstance(plan.operations, CpuOperations) == (kind == "CPU")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.device = "GPU"


def test_the_strategys_own_device_decides(two_replicas):
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.OneDeviceStrategy("CPU:0"),
        two_replicas,
    ):
        assert execution.make_plan(strategy).device == "CPU"
        with strategy.scope():
            assert execution.make_plan(strategy).device == "CPU"


def test_xla_compiles_the_step_of_one_device_or_of_a_tpu():
    with pytest.raises(ValueError, match="strategy has 2 replicas"):
        execution.make_plan(strategy_on("GPU", 2), jit_compile=True)
    assert execution.make_plan(strategy_on("TPU", 8), jit_compile=True).jit_compile


def test_every_layer_of_a_detector_is_given_the_plan():
    plan = execution.make_plan(tf.distribute.get_strategy())
    detector = MaskRCNN(2, keypoint_head=KeypointHead, num_keypoints=3, plan=plan)
    kinds = (conv.Conv2D, conv.Dense, normalization.GroupNormalization)
    layers = [each for each in detector.submodules if isinstance(each, kinds)]
    assert {type(each) for each in layers} == set(kinds) and len(layers) == 160
    assert all(each.operations is plan.operations for each in layers)
    # A layer of its own has TensorFlow's, and so has a detector that is given no plan.
    assert not isinstance(conv.Conv2D(8, 3).operations, CpuOperations)
    assert not isinstance(MaskRCNN(2).mask_head.operations, CpuOperations)


def test_a_card_is_named_and_checked():
    card = {"device_name": "NVIDIA H100", "compute_capability": (9, 0)}
    assert execution.describe_gpu(card) == "NVIDIA H100, compute capability 9.0"
    assert execution.check_gpu(card, True) == execution.check_gpu({}, True) == ""
    assert "half an hour" in execution.check_gpu(card | {"compute_capability": (12, 0)}, False)
    with pytest.raises(ValueError, match="12.0: the XLA of TensorFlow 2.20 does not know"):
        execution.check_gpu(card | {"compute_capability": (12, 0)}, True)
    with pytest.raises(ValueError, match="Tesla M40, compute capability 5.2: .* 6.0 on"):
        execution.check_gpu({"device_name": "Tesla M40", "compute_capability": (5, 2)}, False)


def test_a_precision_is_one_that_the_device_has():
    with pytest.raises(ValueError, match="TPUs compute in bfloat16"):
        execution.make_plan(strategy_on("TPU"), "mixed_float16")
    assert execution.make_plan(strategy_on("GPU"), "mixed_float16").precision == "mixed_float16"
