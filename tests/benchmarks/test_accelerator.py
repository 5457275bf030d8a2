"""What programs cost on accelerators: a hand-made one, and a tiny detector by real compilers."""

import json
import subprocess
import sys

import pytest
from experiment_runs import REPOSITORY

from benchmarks import chips

PROGRAM = """HloModule step

%fused (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %inside = f32[8,4]{1,0} add(%p, %p), metadata={op_name="never/counted/inside"}
}

ENTRY %main (a: f32[8,4], b: bf16[4,2]) -> (f32[8,4], f32[8,2]) {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[4,2]{1,0} parameter(1)
  %sum = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="a/b/c/d/add"}
  %call = (f32[8,2]{1,0}, s8[16]{0}) custom-call(%sum, %b), metadata={op_name="a/b/c/d/dot"}
  %product = f32[8,2]{1,0} get-tuple-element(%call), index=0
  %copy = f32[8,2]{1,0} copy(%product)
  ROOT %all = (f32[8,4]{1,0}, f32[8,2]{1,0}) tuple(%sum, %copy)
}
"""


def test_bytes_are_those_that_instructions_read_and_write():
    places, kernels = chips.traffic(PROGRAM)

    # 128 bytes of `a` and of `sum`; of the call 64 + 16, its arguments 128 + 16; the copy twice 64.
    assert places == {"a/b/c/d": (128 + 128) + (80 + 144), "(copy)": 128}
    assert kernels == 2


@pytest.mark.parametrize(("target", "work"), [("h100", "step"), ("v5e:2x2", "prediction")])
def test_a_tiny_detector_compiles(target, work, tmp_path):
    pytest.importorskip("jax", reason="the extra `accelerator` is not installed")
    command = [
        sys.executable,
        "-m",
        "benchmarks.accelerator",
        f"--target={target}",
        f"--work={work}",
    ]
    command += ["--gin_file", "quickstart.gin", "overlays/boxes_only.gin", "overlays/tiny.gin"]
    command += [f"--output={tmp_path}/a.json"]
    command += ["--size", "128", "128", "--images=1", "--objects=3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads((tmp_path / "a.json").read_text())["results"].values()
    assert found["kernels"] > 100 and 0 < found["temporary"] < 1e9
    assert 25 == len(found["places"]) and target in done.stdout
