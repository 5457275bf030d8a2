"""What a first run prints, in real processes without the settings of the tests."""

import collections
import os
import re
import subprocess
import sys

import pytest
from experiment_runs import REPOSITORY, tiny


def train(folder, *flags):
    """Runs the tiny quickstart for boxes alone as a user does, and returns what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "MPL"))}
    files = ("quickstart.gin", "overlays/tiny.gin", "overlays/boxes_only.gin")
    command = [sys.executable, "-m", "rethink_tf.train", *(f"--gin_file={f}" for f in files)]
    params = tiny(folder / "run", folder / "data", "STEPS=6", "run.evaluate_every=3")
    command += [f"--gin_param={param}" for param in params]
    done = subprocess.run(
        [*command, *flags],
        cwd=REPOSITORY,
        # No font cache yet, as on the first start of all.
        env=environment | {"MPLCONFIGDIR": str(folder / "fonts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder and the output of a first run."""
    folder = tmp_path_factory.mktemp("output")
    return folder, train(folder, "--log_every=2")


def test_every_line_once_and_none_of_other_programs(first):
    _, output = first
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in output.split("\n")]
    # Of tables alone, a line may come again: two evaluations with equal numbers.
    tables = r"|\s+AP .*|(box|AP by class|circle|rectangle) .*"
    counts = collections.Counter(line for line in lines if not re.fullmatch(tables, line))
    assert [line for line, count in counts.items() if count > 1] == []
    noise = "PredictCost cuInit Sharding font absl:: output: oneDNN cpu_feature steps/sec I0000"
    assert [word for word in noise.split() if word in output] == []
    assert "Traceback" not in output


def test_header_progress_and_end(first):
    folder, output = first
    header = re.search(r"rethink_tf \S+, TensorFlow \S+\n((?:\S.*\n|  .*\n)+)", output)[0]
    for line in (
        rf"Data +training on {folder}/data/train: 16 images, \d+ objects with masks",
        rf" +evaluation on {folder}/data/val: 4 images, \d+ objects with masks",
        "Categories +4: circle, rectangle, triangle, star",
        r"Model +ResNet, FPN, RPN, BoxHead: 5\.\d\d M parameters, 5\.\d\d M of them trained",
        r"Plan +6 steps of 2 images \(0\.8 epochs\), rate 0\.04 after 0 steps of warm-up, times "
        r"0\.1 at 4 and 6",
        " +evaluation every 3, checkpoint every 2",
        r"Devices +1 replica on CPU, \d+ cores",
        "Precision +float32",
        "Execution +dynamic shapes, deterministic, convolutions for CPUs, RoIAlign by "
        "crop_and_resize, activations computed again",
        rf"Folder +{folder}/run",
    ):
        assert re.search(f"^{line}$", header, re.MULTILINE), line
    # Progress before and after the first evaluation, and its end.
    clock = r"\d\d:\d\d:\d\d"
    progress = rf"^{clock} step (\d)/6 \| total .* images/s.*\| (.*left)$"
    steps = re.findall(progress, output, re.MULTILINE)
    patterns = [rf"{clock} and 2 evaluations left"] * 2
    patterns += [rf"with 1 evaluation {clock} left"] * 2
    assert [int(step) for step, _ in steps] == [2, 3, 4, 6]
    for (_, left), pattern in zip(steps, patterns, strict=True):
        assert re.fullmatch(pattern, left)
    end = output[output.index("Done.\n") :]
    assert re.search(r"step +box/AP .*\n +3 +\S+ .*\n +6 +\S+ ", end)
    assert re.search(rf"Time +training {clock}, evaluation {clock}, all {clock}", end)
    for name in ("Weights", "Best", "Metrics", "Detections", "Picture", "Settings"):
        path = re.search(rf"^{name} +(\S+)", end, re.MULTILINE)[1]
        assert os.path.exists(path), path
    # Next to nothing is found in six steps: the usual causes are said once.
    said = re.search(r"^box/AP \S+ at step 3: below 0\.01\. Usual causes: ", output, re.MULTILINE)
    end_of_it = f"What to do: python -m rethink_tf.doctor {folder}/run\n"
    paragraph = output[said.start() : output.index(end_of_it)]
    assert "too early: 3 of 6 steps" in " ".join(paragraph.split())
    assert re.search(r"^box/AP \S+ at step 6: below 0\.01", output, re.MULTILINE)
    assert output.count("Usual causes") == 1
    # What the overlay left without a part is one line.
    (line,) = re.findall(r"warning: overlays/boxes_only.gin leaves out .*", output)
    assert line.endswith("MaskHead.channels, MaskHead.normalizer, MaskHead.num_convs.")


def test_quiet_evaluation_is_header_numbers_and_end(first):
    output = train(first[0], "--mode=evaluate", "--quiet")
    lines = output.split("\n")
    assert lines[1].startswith("rethink_tf ") and "warning: overlays" in lines[0]
    assert "Plan" not in output and "training" not in output
    assert output.count("Evaluated 4 images at step 6") == 1 and "AP by class" in output
    assert not re.search(r"Evaluating|Continuing|step \d/6", output)
    assert re.search(r"Time +evaluation \S+, all \S+\n", output)
