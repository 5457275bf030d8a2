"""Compiles programs for TPUs and GPUs that are not there, and tells what they cost.

The compilers are the accelerators' own: libtpu, and XLA for CUDA; both come with the extra
`accelerator`. They cannot say how long a step takes. Bytes over the chip's bandwidth is a lower
bound, and the ratio of two programs for the same work is fair.
"""

import collections
import math
import os
import pathlib
import re
import time
from typing import NamedTuple


class Chip(NamedTuple):
    """What a target is.

    Attributes:
        platform: "tpu" or "cuda".
        memory: bytes of a chip, of which a program gets a little less.
        bandwidth: bytes a second.
    """

    platform: str
    memory: float
    bandwidth: float


GIB = 2.0**30
# A topology that libtpu knows, or a card described by a file beside this one. Published figures.
CHIPS = {
    "v5e:2x2": Chip("tpu", 16 * GIB, 819e9),
    "v6e:2x2": Chip("tpu", 32 * GIB, 1640e9),
    "h100": Chip("cuda", 80e9, 3350e9),
}
_DESCRIPTIONS = {"h100": "h100_sxm.txtpb"}
_BYTES = {
    "f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2,
    "u16": 2, "u8": 1, "s8": 1, "pred": 1,
}  # fmt: skip
_NOT_RUN = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}
_KERNELS = {"fusion", "custom-call", "convolution", "scatter", "gather", "sort", "while"}
# name = shape operation(arguments), as XLA prints an instruction.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_NAME = re.compile(r'op_name="([^"]*)"')


def prepare():
    """Sets what jax and libtpu read when they are loaded: call it before TensorFlow is imported."""
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        JAX_PLATFORMS="cpu",
    )
    # There is no GPU to time candidates on.
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")


def compile_for(target, serialized):
    """Compiles a program.

    Args:
        target: str, one of `CHIPS`.
        serialized: bytes, a serialized HLO module, as `experimental_get_compiler_ir` gives it.

    Returns:
        dict of the seconds of compiling, bytes (`temporary`, `arguments`, `program`, `traffic`),
        the number of `kernels`, `places`, which is a list of (name in the model, bytes), largest
        first, and of a TPU `compilers_bytes` and `operations`.

    Raises:
        ModuleNotFoundError: if the extra `accelerator` is not installed.
    """
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, xla_client
    from jax._src.lib.mlir import ir

    device = _device(target)
    computation = xla_client.XlaComputation(_without_copies(serialized))
    text = _jax.mlir.xla_computation_to_mlir_module(computation)
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    start = time.perf_counter()
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        executable = device.client.compile(module, _jax.DeviceList((device,)), options)
    seconds, memory = time.perf_counter() - start, executable.get_compiled_memory_stats()
    places, kernels = traffic("\n".join(each.to_string() for each in executable.hlo_modules()))
    found = {
        "compile_seconds": seconds,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "traffic": sum(places.values()),
        "kernels": kernels,
        "places": places.most_common(),
    }
    if CHIPS[target].platform == "tpu":  # XLA for CUDA has no such analysis without a GPU
        cost = executable.cost_analysis()
        found |= {"compilers_bytes": cost["bytes accessed"], "operations": cost["flops"]}
    return found


def traffic(text):
    """Returns what the instructions of an optimized program read and write, a loop's once.

    Args:
        text: str, of the modules. Only their entry computations count: what is inside of a fusion
            stays on the chip.

    Returns:
        `collections.Counter` of bytes by the first parts of the operation's name in the model, and
        the number of kernels.
    """
    lines, is_inside = [], False
    for line in text.splitlines():
        if line.startswith("ENTRY"):
            is_inside = True
        elif line.startswith("}"):
            is_inside = False
        elif is_inside:
            lines.append(line)
    found = [(match, line) for line in lines if (match := _INSTRUCTION.match(line))]
    sizes = {match[1]: _count_bytes(match[2]) for match, _ in found}
    places, kernels = collections.Counter(), 0
    for match, line in found:
        name, _, operation, rest = match.groups()
        if operation in _NOT_RUN:
            continue
        arguments = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
        where = _NAME.search(line)
        place = "/".join(where[1].split("/")[:4]) if where else f"({operation})"
        places[place] += sizes[name] + sum(sizes.get(each, 0) for each in arguments)
        kernels += operation in _KERNELS
    return places, kernels


def _count_bytes(shape):
    """Returns the bytes of a shape as XLA prints it, also of a tuple of them."""
    return sum(
        _BYTES.get(kind, 0) * math.prod(int(side) for side in sides.split(",") if side)
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def _device(target):
    from jax.experimental import topologies

    if CHIPS[target].platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=target).devices[0]
    description = pathlib.Path(__file__).with_name(_DESCRIPTIONS[target]).read_text()
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=description
    ).devices[0]


def _without_copies(serialized):
    """Turns copies into reshapes to the same shape: jax does not take a copy of an argument."""
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto.FromString(serialized)
    for computation in module.computations:
        for each in computation.instructions:
            if each.opcode == "copy":
                each.opcode = "reshape"
    return module.SerializeToString()
