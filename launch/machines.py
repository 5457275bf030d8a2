"""Machines of Google Cloud, and the accelerators that they come with.

Sources: Vertex AI's page on compute resources for training, and GKE's on TPU topologies.
"""

import dataclasses
import re

# Machine types whose GPUs are built in: {machine: (accelerator, count)}.
_BUILT_IN = (
    {f"a2-highgpu-{n}g": ("NVIDIA_TESLA_A100", n) for n in (1, 2, 4, 8)}
    | {"a2-megagpu-16g": ("NVIDIA_TESLA_A100", 16)}
    | {f"a2-ultragpu-{n}g": ("NVIDIA_A100_80GB", n) for n in (1, 2, 4, 8)}
    | {f"a3-highgpu-{n}g": ("NVIDIA_H100_80GB", n) for n in (1, 2, 4, 8)}
    | {"a3-megagpu-8g": ("NVIDIA_H100_MEGA_80GB", 8), "a3-ultragpu-8g": ("NVIDIA_H200_141GB", 8)}
    | {"a4-highgpu-8g": ("NVIDIA_B200", 8)}
    | {f"g2-standard-{n}": ("NVIDIA_L4", 1) for n in (4, 8, 12, 16, 32)}
    | {f"g2-standard-{n}": ("NVIDIA_L4", n // 12) for n in (24, 48, 96)}
)
# GPUs that are attached to machines of type n1: {accelerator: counts}.
_ATTACHED = {
    "NVIDIA_TESLA_T4": (1, 2, 4),
    "NVIDIA_TESLA_P4": (1, 2, 4),
    "NVIDIA_TESLA_P100": (1, 2, 4),
    "NVIDIA_TESLA_V100": (1, 2, 4, 8),
}
# v5e slices: {chips: (machine, chips of a host, topology)}.
_V5E = {
    1: ("ct5lp-hightpu-1t", 1, "1x1"),
    4: ("ct5lp-hightpu-4t", 4, "2x2"),
    8: ("ct5lp-hightpu-8t", 8, "2x4"),
    16: ("ct5lp-hightpu-4t", 4, "4x4"),
    32: ("ct5lp-hightpu-4t", 4, "4x8"),
    64: ("ct5lp-hightpu-4t", 4, "8x8"),
    128: ("ct5lp-hightpu-4t", 4, "8x16"),
    256: ("ct5lp-hightpu-4t", 4, "16x16"),
}


class LaunchError(ValueError):
    """A job that cannot be: the message says what to change."""


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A TPU slice.

    Attributes:
        machine: str, the type of its hosts.
        hosts: int.
        host_chips: int, chips of a host.
        topology: str, such as "4x4".
    """

    machine: str
    hosts: int
    host_chips: int
    topology: str


def find_tpu(name):
    """Returns the `TpuSlice` of a name such as "v5litepod-16".

    Raises:
        LaunchError: if TensorFlow is not served on it, or there is no slice of that size.
    """
    found = re.fullmatch(r"v5litepod-(\d{1,4})", name)
    if not found:
        raise LaunchError(
            f"--tpu={name}: TensorFlow runs on v5e slices here, such as v5litepod-16; Vertex AI "
            "serves newer TPUs to JAX and PyTorch alone."
        )
    chips = int(found[1])
    if chips not in _V5E:
        sizes = ", ".join(str(each) for each in _V5E)
        raise LaunchError(f"--tpu={name}: v5e slices have {sizes} chips.")
    machine, host_chips, topology = _V5E[chips]
    return TpuSlice(machine, chips // host_chips, host_chips, topology)


def find_accelerators(machine, accelerators):
    """Returns the GPUs of a machine.

    Args:
        machine: str, the type, such as "g2-standard-12".
        accelerators: str, such as "NVIDIA_TESLA_T4:2"; "" for those that the machine comes with.

    Returns:
        (str, int), the accelerator ("" for none) and how many.

    Raises:
        LaunchError: if they don't go together.
    """
    kind, count = _parse(accelerators)
    if machine in _BUILT_IN:
        if accelerators and (kind, count) != _BUILT_IN[machine]:
            name, built_in = _BUILT_IN[machine]
            raise LaunchError(
                f"--machine={machine} comes with --accelerators={name}:{built_in}, and not with "
                f"{accelerators}; leave the flag out."
            )
        return _BUILT_IN[machine]
    if re.match(r"(a\d|g\d)", machine):
        near = [each for each in _BUILT_IN if each[:2] == machine[:2]]
        raise LaunchError(f"--machine={machine} is unknown; near it: {', '.join(near) or 'none'}.")
    if machine.startswith("ct"):
        raise LaunchError(f"--machine={machine} is a TPU's host: give --tpu=v5litepod-N alone.")
    if not accelerators:
        return "", 0
    if not machine.startswith("n1-"):
        raise LaunchError(
            f"--machine={machine} takes no --accelerators; an n1 machine takes "
            f"{', '.join(_ATTACHED)}, and machines of a2, a3, a4 and g2 come with theirs."
        )
    if kind not in _ATTACHED:
        homes = [each for each, (name, _) in _BUILT_IN.items() if name == kind]
        where = f"it comes with {', '.join(homes)}" if homes else "there is no such accelerator"
        raise LaunchError(f"--machine={machine} does not take {kind}: {where}.")
    if count not in _ATTACHED[kind]:
        counts = ", ".join(str(each) for each in _ATTACHED[kind])
        raise LaunchError(f"--accelerators={accelerators}: {kind} comes in {counts} a machine.")
    return kind, count


def _parse(accelerators):
    found = re.fullmatch(r"([A-Z0-9_]+):(\d{1,2})", accelerators)
    if accelerators and not found:
        raise LaunchError(
            f"--accelerators={accelerators!r} is not a type and a count such as NVIDIA_TESLA_T4:2."
        )
    return (found[1], int(found[2])) if found else ("", 0)
