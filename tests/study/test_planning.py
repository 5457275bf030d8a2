"""The plan of a study: what runs, from where, and how much it is."""

import json
import pathlib
import subprocess
import sys

import gin
import pytest
from experiment_runs import REPOSITORY

from benchmarks import experiments
from launch import vertex_submission
from rethink_tf import branching, config, exit_codes, experiment
from rethink_tf.metrics_file import OPEN
from rethink_tf.study import planning, texts
from rethink_tf.study.settings import Study

RANDOM, TRAINED = ("scratch_r50.gin",), ("pretrained_r50.gin",)


def schedules(*multiples):
    return {f"{multiple}x": (f"SCHEDULE={multiple}",) for multiple in multiples}


def plan_of(**settings):
    given = {"study_dir": "/study", "arms": {"random": RANDOM}, "data_dir": "/data"} | settings
    return planning.make_plan(Study(**given))


def test_the_papers_schedules_cost_their_tails_beside_the_longest():
    arms = {"random": RANDOM, "trained": TRAINED}
    weights = {"trained": "/weights/r50"}
    runs = plan_of(arms=arms, schedules=schedules(2, 3, 4, 5, 6), init_checkpoints=weights)
    for run in runs:
        assert "DATA_DIR='/data'" in run.gin_params
        assert ("INIT_CHECKPOINT='/weights/r50'" in run.gin_params) == (run.arm == "trained")
    # He et al. 2018: 60,000 steps of lowered rates, whatever the length.
    for arm in (runs[:5], runs[5:]):
        assert sum(run.steps for run in arm) == 540_000 + 4 * 60_000  # 8.67 * 90,000
        assert [run.start_step for run in arm] == [0, 390_000, 300_000, 210_000, 120_000]
        assert [run.parent for run in arm] == [None] + [arm[0].name] * 4
        assert "run.branch_steps=[120000, 210000, 300000, 390000]" in arm[0].gin_params
    folder = "/study/runs/random/all"
    assert runs[0].model_dir == f"{folder}/6x/seed-1"
    assert f"run.continue_from='{folder}/6x/seed-1'" in runs[4].gin_params
    assert sum(run.num_steps for run in runs) == 2 * 20 * 90_000
    assert runs[0].images == 540_000 * 16

    text = texts.plan_table(runs, [OPEN] * 10, rate=100.0, devices=8, price=2.0)
    # 2 * 780,000 * 16 images at 100 a second, on 8 devices.
    assert "1,560,000 steps, 24,960,000 images" in text and "3,600,000 steps" in text
    assert "554.67 device-hours" in text and "1,109.33 at 2 an hour" in text


def test_another_batch_and_the_cascade_move_the_branches():
    (run,) = (
        run for run in plan_of(schedules=schedules(2, 6), overlays=("BATCH_SIZE=64",)) if run.parent
    )
    assert (run.num_steps, run.start_step, run.images) == (45_000, 30_000, 15_000 * 64)

    # The last 270,000 steps train the cascade, and begin before the first drop.
    cascade = {"cascade": ("scratch_r101_cascade.gin",)}
    runs = plan_of(arms=cascade, schedules=schedules(6, 9))
    assert [run.start_step for run in runs] == [0, 270_000]
    assert "run.branch_steps=[270000]" in runs[0].gin_params


def test_schedules_that_do_not_begin_alike_are_run_from_the_start():
    quick = {"quick": ("quickstart.gin",)}
    lengths = {"1x": ("STEPS=100",), "2x": ("STEPS=200",)}
    steps = ("StepwiseSchedule.warmup_steps=10",)
    runs = plan_of(arms=quick, schedules=lengths, overlays=steps)
    assert [run.parent for run in runs] == [None, "quick/all/2x/seed-1"]
    # By default a tenth of each.
    runs = plan_of(arms=quick, schedules=lengths)
    assert [run.parent for run in runs] == [None, None]
    assert "share no start" in texts.plan_table(runs, ["open"] * 2, None)
    runs = plan_of(arms=quick, schedules=lengths, overlays=steps, branching=False)
    assert [run.start_step for run in runs] == [0, 0]


def test_a_schedule_that_comes_after_the_longest_runs_end_begins_at_the_start(tmp_path):
    settings = {"study_dir": str(tmp_path), "schedules": schedules(2, 6)}
    long, short = plan_of(**settings)
    assert short.parent == long.name
    branches = pathlib.Path(long.model_dir, "branches")
    branches.mkdir(parents=True)
    pathlib.Path(long.model_dir, "metrics.jsonl").write_text('{"step": 540000}\n')
    assert [run.parent for run in plan_of(**settings)] == [None, None]
    (branches / "step-120000.index").touch()
    assert [run.parent for run in plan_of(**settings)] == [None, long.name]


def test_subsets_and_seeds_are_shared_by_the_arms():
    runs = plan_of(
        arms={"random": RANDOM, "trained": TRAINED},
        schedules=schedules(2, 3),
        subsets={"all": (), "1k": ("Pipeline.num_images=1000", "PaperSchedule.tails=(6000, 2000)")},
        subset_schedules={"1k": {"22k": ("SCHEDULE=0.24444444444444444",)}},
        seeds=(5, 6),
    )
    assert len(runs) == 2 * 2 * (2 + 1)
    pairs = {}
    for run in runs:
        pairs.setdefault((run.subset, run.schedule, run.seed), []).append(run)
    for (subset, _, seed), (one, other) in pairs.items():
        assert (one.arm, other.arm) == ("random", "trained")
        assert f"SEED={seed}" in one.gin_params and f"SEED={seed}" in other.gin_params
        assert ("Pipeline.num_images=1000" in one.gin_params) == (subset == "1k")
        assert one.num_steps == other.num_steps
    assert {run.num_steps for run in runs if run.subset == "1k"} == {22_000}


@pytest.mark.parametrize("name", config.shipped_experiments())
def test_a_plan_has_the_numbers_that_the_run_computes(name):
    params = experiments.parameters_for(name)
    if name == "own_data.gin":
        with pytest.raises(config.ConfigError, match="does not follow"):
            planning.read_schedule([name], params)
        return
    planned = planning.read_schedule([name], params)
    config.parse([name], params)
    bound = gin.get_bindings(experiment.Settings)
    schedule, cascade_steps = bound["schedule"], bound.get("cascade_steps")
    cascade_from = schedule.start_of_last(cascade_steps) if cascade_steps else 0
    described = branching.describe(schedule, cascade_from)
    assert planned.num_steps == schedule.num_steps
    assert planned.branch_step == branching.branch_step(described)
    assert planned.rise[:2] == (schedule.peak_learning_rate, schedule.warmup_steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": {}}, "Study.arms is empty"),
        ({"arms": {"a/b": ()}}, "'a/b' is part of a folder's name"),
        ({"arms": {"a": "scratch_r50.gin"}}, "must be a list of gin files"),
        ({"seeds": (1, 1)}, "each counts once"),
        ({"subset_schedules": {"1k": {}}}, "names 1k, which Study.subsets does not"),
        ({"references": {"paper": {"9x": 40.0}}}, "'paper' names 9x, which Study.schedules does"),
        ({"init_checkpoints": {"other": "/w"}}, "names other, which Study.arms does not"),
        ({"arms": {"a": ("scratch_r5.gin",)}}, "did you mean scratch_r50.gin"),
        ({"schedules": {"bad": ("SCHEDULE=0.1",)}}, "9,000 steps, no more than the 60,000"),
        ({"common": ("run.schedule=None",), "arms": {"a": ("A=1",)}}, "run.schedule is None"),
    ],
)
def test_what_makes_no_plan_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**{"schedules": schedules(2)} | settings)


def test_jobs_and_plan_come_without_tensorflow(tmp_path):
    jobs = tmp_path / "jobs.json"
    arguments = ["study", "--gin_file=study_quickstart.gin", "--plan", f"--jobs={jobs}"]
    arguments += ["--gin_param=Study.seeds=(1,)", "--gin_param=STUDY_DIR='/study'"]
    code = f"import runpy, sys; sys.argv = {arguments!r}\n"
    code += "try: runpy.run_module('rethink_tf.study', run_name='__main__', alter_sys=True)\n"
    code += "finally: assert 'tensorflow' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert "gn/all/2x/seed-1 at 150" in done.stdout
    read = vertex_submission.read_jobs(str(jobs))
    assert len(read) == 8 and all(job["gin_files"] == ["quickstart.gin"] for job in read)
    waits = {job["name"]: job["after"] for job in read}
    assert waits["gn/all/1x/seed-1"] == ["gn/all/2x/seed-1"] and waits["gn/all/2x/seed-1"] == []
    command = json.loads(jobs.read_text())[0]["command"]
    assert command[:3] == ["python", "-m", "rethink_tf.train"]
    assert "--gin_param=MODEL_DIR='/study/runs/gn/all/2x/seed-1'" in command


def test_a_study_given_to_another_command_is_said():
    done = subprocess.run(
        [sys.executable, "-m", "rethink_tf.train", "--gin_file=study_quickstart.gin"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == exit_codes.REFUSED
    last = done.stderr.splitlines()[-1]
    assert "No configurable matching 'Study': it is of python -m rethink_tf.study" in last


def test_what_weights_have_seen_is_checked():
    given = {"study_dir": "s", "arms": {"a": ()}, "schedules": {"1x": ()}}
    numbers = {"images": 1, "objects": 1, "pixels": 2}
    Study(**given, pretraining={"a": numbers | {"seconds": 3}})
    with pytest.raises(ValueError, match=r"Study.pretraining names b, which Study.arms does not"):
        Study(**given, pretraining={"b": numbers})
    for wrong in ({"images": 1}, numbers | {"image": 1}, numbers | {"pixels": -1}):
        with pytest.raises(ValueError, match=r"Study.pretraining of 'a' is .* must have numbers"):
            Study(**given, pretraining={"a": wrong})
