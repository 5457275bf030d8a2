"""How a run executes, decided once: from the strategy and the machine, before anything is built.

The plan is passed down, and nothing else looks at the machine. It changes the time and the memory
of a run, and not what is computed.
"""

import dataclasses
import functools
import os
import pathlib

import tensorflow as tf
from absl import logging

from rethink_tf.ops import cpu, roi_align
from rethink_tf.ops.operations import Operations

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Compute capabilities for which the wheel of TensorFlow 2.20 has kernels: sm_60 to sm_90. For newer
# cards the driver compiles those of 9.0 at the first start; XLA fails on 12.
OLDEST_GPU, NEWEST_KERNELS, NO_XLA_FROM = (6, 0), (9, 0), (12, 0)
# Features of x86 and ARM processors on which oneDNN has kernels of bfloat16.
BFLOAT16_FEATURES = {"avx512bw", "bf16"}


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """How a run executes; the defaults are TensorFlow's own operations, which work everywhere.

    Attributes:
        device: "CPU", "GPU" or "TPU": the kind of the replicas' devices.
        device_name: str, what there is of it: the cores, the GPU's model and compute capability,
            or nothing.
        precision: str, name of the Keras policy.
        jit_compile: bool, whether XLA is asked to compile the step.
        static_shapes: bool, whether a compiler needs every shape: the heads of objects then run on
            a fixed number of RoIs, and else on those that need it. The numbers are the same.
        is_deterministic: bool, whether equal runs give equal numbers to the last bit.
        convolution: "tensorflow", or "cpu" for the ways of `ops.cpu`, for sums and products too.
        roi_align: one of the forms of `ops.roi_align`.
        recomputes: bool, whether activations that are cheap to compute again are not kept for the
            backward pass.
        is_ordered: bool, whether parts of the model run one after the other, to hold the buffers of
            one at a time.
        has_bfloat16_kernels: bool, for "cpu": whether oneDNN has kernels of bfloat16.
        has_grouped_gradients: bool, for "cpu": whether TensorFlow's gradients take groups.
    """

    device: str = "CPU"
    device_name: str = ""
    precision: str = "float32"
    jit_compile: bool = False
    static_shapes: bool = False
    is_deterministic: bool = False
    convolution: str = "tensorflow"
    roi_align: str = roi_align.GATHER
    recomputes: bool = False
    is_ordered: bool = False
    has_bfloat16_kernels: bool = True
    has_grouped_gradients: bool = True

    @property
    def is_fused(self):
        """Whether XLA compiles the step, which joins what is written one after the other."""
        return self.jit_compile or self.device == "TPU"

    @functools.cached_property
    def operations(self):
        """The `Operations` that layers compute with."""
        if self.convolution == "tensorflow":
            return Operations(self.recomputes, self.is_ordered, self.is_fused)
        return cpu.CpuOperations(
            self.recomputes,
            self.is_ordered,
            self.has_bfloat16_kernels,
            self.has_grouped_gradients,
        )

    def give_to(self, module):
        """Gives the operations to a `tf.Module` and to all within that compute by `operations`."""
        for part in (module, *module.submodules):
            if hasattr(part, "operations"):
                part.operations = self.operations

    def summary(self):
        """Returns the plan in one line."""
        texts = [
            "static shapes" if self.static_shapes else "dynamic shapes",
            "deterministic" if self.is_deterministic else "not deterministic",
            {"tensorflow": "TensorFlow's convolutions", "cpu": "convolutions for CPUs"}[
                self.convolution
            ],
            f"RoIAlign by {self.roi_align}",
            "activations computed again" if self.recomputes else "activations kept",
        ]
        return ", ".join(texts)


def make_plan(strategy, precision="float32", jit_compile=False, deterministic=None):
    """Decides how a run executes.

    Args:
        strategy: `tf.distribute.Strategy`.
        precision: str, name of the Keras policy.
        jit_compile: bool, whether XLA shall compile the step, also where it need not.
        deterministic: bool; None for yes on a CPU without jit_compile, where it costs nothing, and
            no elsewhere.

    Returns:
        `ExecutionPlan`.

    Raises:
        ValueError: if the device has no such precision, or XLA cannot compile the step.
    """
    device, replicas = _device_type(strategy), strategy.num_replicas_in_sync
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "mixed_float16" and device == "TPU":
        raise ValueError("TPUs compute in bfloat16, not in float16: take mixed_bfloat16.")
    if jit_compile and replicas > 1 and device != "TPU":
        raise ValueError(
            f"jit_compile compiles the step of one device, and the strategy has {replicas} "
            "replicas: take the one_device strategy, a TPU, or jit_compile = False."
        )
    gpu = _first_gpu(device)
    if warning := check_gpu(gpu, jit_compile):
        logging.warning(warning)
    return plan_for(device, _device_name(device, gpu), precision, jit_compile, deterministic)


def plan_for(device, device_name, precision, jit_compile, deterministic=None):
    """Returns the `ExecutionPlan` of a kind of device, which need not be there.

    Args:
        device: "CPU", "GPU" or "TPU".
        device_name: str, what there is of it.
        precision: str, as of `make_plan`.
        jit_compile: bool, as of `make_plan`.
        deterministic: bool or None, as of `make_plan`.
    """
    static_shapes, on_cpu = jit_compile or device == "TPU", device == "CPU"
    if deterministic is None:
        deterministic = on_cpu and not jit_compile
    has_bfloat16_kernels = not on_cpu or _has_bfloat16_kernels()
    in_bfloat16 = precision == "mixed_bfloat16" and has_bfloat16_kernels
    gradient_dtype = "bfloat16" if in_bfloat16 else "float32"
    # XLA orders the program itself, and joins what is computed again with what was: its programs
    # for an H100 take the same bytes with recomputation and without (docs/performance.md).
    bounds_memory = on_cpu or not static_shapes
    return ExecutionPlan(
        device=device,
        device_name=device_name,
        precision=precision,
        jit_compile=jit_compile,
        static_shapes=static_shapes,
        is_deterministic=deterministic,
        convolution="cpu" if on_cpu else "tensorflow",
        roi_align=roi_align.choose_form(device, static_shapes, deterministic),
        recomputes=bounds_memory,
        is_ordered=bounds_memory,
        has_bfloat16_kernels=has_bfloat16_kernels,
        has_grouped_gradients=not on_cpu or _has_grouped_gradients(gradient_dtype),
    )


def _device_type(strategy):
    """Returns "CPU", "GPU" or "TPU": a strategy may run on the CPU of a host that has GPUs."""
    if strategy is not tf.distribute.get_strategy() or tf.distribute.has_strategy():
        return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    # The default strategy's is where TensorFlow places operations.
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return next(kind for kind in ("TPU", "GPU", "CPU") if kind in kinds)


def check_gpu(details, jit_compile):
    """Checks that a GPU runs the kernels that TensorFlow brings.

    Args:
        details: dict of `tf.config.experimental.get_device_details`; {} passes.
        jit_compile: bool, whether XLA compiles the step.

    Returns:
        str, what is worth a warning, or "".

    Raises:
        ValueError: if it does not.
    """
    capability = tuple(details.get("compute_capability", ()))
    name = describe_gpu(details)
    if capability and capability < OLDEST_GPU:
        raise ValueError(
            f"{name}: TensorFlow 2.20 has kernels from compute capability 6.0 on. Hide the card "
            "with CUDA_VISIBLE_DEVICES= to run on the CPU."
        )
    if capability >= NO_XLA_FROM and jit_compile:
        raise ValueError(
            f"{name}: the XLA of TensorFlow 2.20 does not know compute capability 12. Take "
            "run.jit_compile = False."
        )
    if capability > NEWEST_KERNELS:
        return (
            f"{name}: TensorFlow 2.20 has no kernels of its own for it. The driver compiles those "
            "of 9.0 at the first start, which may take half an hour; CUDA_CACHE_MAXSIZE=4294967296 "
            "keeps them for later ones."
        )
    return ""


def describe_gpu(details):
    """Returns model and compute capability of a GPU; details as of `check_gpu`."""
    capability = ".".join(map(str, details.get("compute_capability", ())))
    texts = [details.get("device_name"), capability and f"compute capability {capability}"]
    return ", ".join(text for text in texts if text)


def _first_gpu(device):
    """Returns the details of the first GPU, {} where the device is none."""
    gpus = tf.config.list_physical_devices("GPU") if device == "GPU" else []
    return tf.config.experimental.get_device_details(gpus[0]) if gpus else {}


def _device_name(device, gpu):
    """Returns the cores that this process may use, or what the GPU is."""
    if device == "CPU":
        return f"{len(os.sched_getaffinity(0))} cores"
    return describe_gpu(gpu)


def _has_bfloat16_kernels():
    """Tells whether oneDNN computes bfloat16 here by more than its reference."""
    try:
        described = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # Not Linux.
        return False
    return not BFLOAT16_FEATURES.isdisjoint(described.split())


@functools.cache
def _has_grouped_gradients(dtype):
    """Tells whether TensorFlow's gradients of a convolution take groups on this CPU."""
    with tf.init_scope(), tf.device("CPU"):
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 3, 3, 2],
                filter=tf.ones([3, 3, 1, 2], dtype),
                out_backprop=tf.ones([1, 3, 3, 2], dtype),
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
