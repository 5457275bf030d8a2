"""Jobs on Vertex AI, as far as its own types check them; nothing is submitted."""

import json
import os

import pytest

from launch import vertex, vertex_submission, vertex_sweep, vertex_trial

types = pytest.importorskip("google.cloud.aiplatform_v1.types")

BASE = ["--gin_file=scratch_r50.gin", "--image=registry/image", "--region=europe-west4"]
MODEL_DIR = "--gin_param=MODEL_DIR='gs://bucket/r50'"
GPU = [*BASE, MODEL_DIR, "--machine=g2-standard-24"]


def dry_run(capsys, *arguments, kind="CustomJob"):
    """Returns the printed job, read back by the library's type."""
    code = vertex.main([*arguments, "--dry_run"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return getattr(types, kind).from_json(printed.out)


def test_a_job_of_two_workers(capsys):
    job = dry_run(capsys, *GPU, "--workers=3", "--spot", "--label=study=scratch")
    assert job.display_name == "scratch_r50" and job.labels["study"] == "scratch"
    chief, others = job.job_spec.worker_pool_specs
    assert (chief.replica_count, others.replica_count) == (1, 2)
    for pool in (chief, others):
        assert pool.machine_spec.accelerator_type == types.AcceleratorType.NVIDIA_L4
        assert pool.machine_spec.accelerator_count == 2
        assert pool.container_spec.image_uri == "registry/image"
        assert "--gin_param=make_strategy.name='multi_worker_mirrored'" in pool.container_spec.args
        assert pool.container_spec.args[0] == "--gin_file=scratch_r50.gin"
    scheduling = job.job_spec.scheduling
    assert scheduling.strategy == types.Scheduling.Strategy.SPOT
    assert scheduling.restart_job_on_worker_restart and not scheduling.disable_retries
    assert scheduling.timeout.total_seconds() == 7 * 24 * 3600
    assert job.job_spec.base_output_directory.output_uri_prefix == "gs://bucket/r50/"


def test_a_job_of_one_worker_has_one_pool_and_no_cluster(capsys):
    arguments = [*BASE, MODEL_DIR, "--machine=n1-standard-8", "--accelerators=NVIDIA_TESLA_T4:1"]
    (pool,) = dry_run(capsys, *arguments).job_spec.worker_pool_specs
    assert pool.machine_spec.accelerator_type == types.AcceleratorType.NVIDIA_TESLA_T4
    assert not any("make_strategy" in each for each in pool.container_spec.args)


@pytest.mark.parametrize(
    ("name", "machine", "topology", "hosts"),
    [
        ("v5litepod-8", "ct5lp-hightpu-8t", "2x4", 1),
        ("v5litepod-16", "ct5lp-hightpu-4t", "4x4", 4),
        ("v5litepod-256", "ct5lp-hightpu-4t", "16x16", 64),
    ],
)
def test_tpu_slices(capsys, name, machine, topology, hosts):
    job = dry_run(capsys, *BASE, MODEL_DIR, f"--tpu={name}", "--flex_start", "--wait_hours=2")
    (pool,) = job.job_spec.worker_pool_specs
    assert pool.machine_spec.machine_type == machine
    assert pool.machine_spec.tpu_topology == topology
    assert pool.replica_count == hosts
    assert "--gin_param=make_strategy.name='tpu'" in pool.container_spec.args
    assert job.job_spec.scheduling.strategy == types.Scheduling.Strategy.FLEX_START
    assert job.job_spec.scheduling.max_wait_duration.total_seconds() == 7200


def test_tensorboard_is_wired(capsys):
    instance = "projects/p/locations/europe-west4/tensorboards/1"
    spec = dry_run(
        capsys, *GPU, f"--tensorboard={instance}", "--service_account=runs@p.iam"
    ).job_spec
    assert (spec.tensorboard, spec.service_account) == (instance, "runs@p.iam")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GPU, "--disable_retries"], "--disable_retries overrides the restart"),
        (
            [*GPU, "--experiment=e", "--tensorboard=t", "--service_account=s"],
            "--experiment excludes --tensorboard",
        ),
        ([*GPU, "--tensorboard=t"], "--tensorboard needs --service_account"),
        ([*GPU, "--tensorboard=t", "--service_account=s"], "is not projects/PROJECT"),
        (
            [*GPU, "--tensorboard=projects/p/locations/us/tensorboards/1", "--service_account=s"],
            "--tensorboard is in us and the job in europe-west4",
        ),
        ([*GPU, "--accelerators=NVIDIA_TESLA_T4:1"], "comes with --accelerators=NVIDIA_L4:2"),
        ([*GPU, "--accelerators=T4"], "not a type and a count"),
        ([*GPU, "--spot", "--flex_start"], "exclude each other"),
        ([*GPU, "--flex_start", "--timeout_hours=200"], "run 168 h at most"),
        ([*GPU, "--timeout_hours=0"], "--timeout_hours=0 is not in"),
        ([*GPU, "--workers=0"], "--workers=0: at least 1"),
        ([*GPU, "--tpu=v5litepod-4"], "--tpu chooses machines and workers"),
        ([*GPU, "--label=Study=x"], "is not key=value in lower case"),
        ([*GPU, "--workers=2", "--gin_param=make_strategy.name='mirrored'"], "does not fit"),
        ([*BASE, MODEL_DIR], "Give --machine"),
        ([*BASE, MODEL_DIR, "--tpu=v6e-8"], "v5e slices here"),
        ([*BASE, MODEL_DIR, "--tpu=v5litepod-12"], "slices have 1, 4, 8, 16"),
        ([*BASE, MODEL_DIR, "--machine=e2-standard-8", "--flex_start"], "has none"),
        (
            [*BASE, MODEL_DIR, "--machine=e2-standard-8", "--accelerators=NVIDIA_L4:1"],
            "takes no --accelerators",
        ),
        (
            [*BASE, MODEL_DIR, "--machine=n1-standard-8", "--accelerators=NVIDIA_L4:1"],
            "it comes with g2-standard-4",
        ),
        (
            [*BASE, MODEL_DIR, "--machine=n1-standard-8", "--accelerators=NVIDIA_TESLA_T4:3"],
            "comes in 1, 2, 4 a machine",
        ),
        ([*BASE, MODEL_DIR, "--machine=a3-highgpu-3g"], "near it: a3-highgpu-1g"),
        ([*BASE, MODEL_DIR, "--machine=ct5lp-hightpu-4t"], "give --tpu=v5litepod-N alone"),
        ([*BASE, "--machine=g2-standard-4"], "other folders are lost with the machine"),
        ([*BASE, "--machine=g2-standard-4", "--gin_param=MODEL_DIR='/runs'"], "are lost"),
        (["--image=i", MODEL_DIR, "--machine=g2-standard-4"], "at least one --gin_file"),
        ([*GPU, "--image="], "Give --image, or RETHINK_TF_IMAGE"),
        ([*GPU, "--sweep=none.json"], "none.json cannot be read as JSON"),
    ],
)
def test_traps_are_one_line_before_anything_is_submitted(capsys, arguments, message):
    assert vertex.main([*arguments, "--dry_run"]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_submitting_needs_a_project(capsys, monkeypatch):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert vertex.main(GPU) == 1
    assert "Give --project and --region" in capsys.readouterr().err


SWEEP = {
    "metric": "box_AP",
    "goal": "MAXIMIZE",
    "max_trials": 6,
    "parallel_trials": 2,
    "parameters": {
        "RATE": {"min": 0.005, "max": 0.04, "scale": "log"},
        "DEPTH": {"values": [50, 101]},
        "SEED": {"integers": [0, 9]},
        "NORM": {"categories": ["'gn'", "'bn'"]},
    },
}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_a_sweep(tmp_path, capsys):
    path = write(tmp_path / "sweep.json", SWEEP)
    job = dry_run(capsys, *GPU, f"--sweep={path}", kind="HyperparameterTuningJob")
    assert (job.max_trial_count, job.parallel_trial_count) == (6, 2)
    (metric,) = job.study_spec.metrics
    assert metric.metric_id == "box_AP"
    assert metric.goal == types.StudySpec.MetricSpec.GoalType.MAXIMIZE
    rate, depth, seed, norm = job.study_spec.parameters
    assert (rate.double_value_spec.min_value, rate.double_value_spec.max_value) == (0.005, 0.04)
    assert rate.scale_type == types.StudySpec.ParameterSpec.ScaleType.UNIT_LOG_SCALE
    assert list(depth.discrete_value_spec.values) == [50, 101]
    assert seed.integer_value_spec.max_value == 9
    assert list(norm.categorical_value_spec.values) == ["'gn'", "'bn'"]
    container = job.trial_job_spec.worker_pool_specs[0].container_spec
    assert list(container.command)[-3:] == ["-m", "launch.vertex_trial", "--sweep_metric=box_AP"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": ""}, "lacks metric"),
        ({"goal": "MAX"}, "goal: MAXIMIZE or MINIMIZE"),
        ({"max_trials": 1.5}, "max_trials is not an integer"),
        ({"seed": 1}, "seed"),
        ({"parameters": {"RATE": {"min": "low", "max": 1}}}, "RATE is none of"),
        ({"parameters": {"RATE": {"values": []}}}, "RATE is none of"),
        ({"parameters": {"RATE": {"min": 1, "max": 2, "scale": "cubic"}}}, "scale is one of"),
    ],
)
def test_malformed_sweeps_are_one_line(tmp_path, capsys, change, message):
    path = write(tmp_path / "sweep.json", SWEEP | change)
    assert vertex.main([*GPU, f"--sweep={path}", "--dry_run"]) == 1
    assert message in capsys.readouterr().err


def test_a_trial_binds_its_values_and_reports_its_evaluations(tmp_path):
    arguments = ["--sweep_metric=box_AP", "--gin_file=a.gin", MODEL_DIR, "--mode=train"]
    metric, folder, train = vertex_trial.split_arguments(
        [*arguments, "--RATE=0.01", "--DEPTH=50.0"], "4"
    )
    assert (metric, folder) == ("box_AP", "gs://bucket/r50/trial-4")
    assert train[:2] == ["--gin_file=a.gin", "--mode=train"]
    assert train[-3:] == [
        "--gin_param=RATE=0.01",
        "--gin_param=DEPTH=50",
        f"--gin_param=MODEL_DIR={folder!r}",
    ]

    lines = [
        '{"step": 10, "box_AP": 0.25, "time": 5.0}',
        '{"step": 20, "box_',
        '{"step": 20, "box_AP": 0.5, "time": 6.0}',
        '{"step": 20, "box_AP": 0.6, "test_augmentation": true}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    output = tmp_path / "hypertune" / "output.metrics"
    assert vertex_trial.report("box_AP", str(tmp_path), "4", str(output)) == 2
    reported = [json.loads(line) for line in output.open()]
    assert [(each["global_step"], each["box_AP"]) for each in reported] == [
        ("10", "0.25"),
        ("20", "0.5"),
    ]
    assert {each["trial"] for each in reported} == {"4"}
    with pytest.raises(ValueError, match="has no 'mask_AP'; it has box_AP, step"):
        vertex_trial.report("mask_AP", str(tmp_path), "4", os.devnull)


STUDY = [
    {"name": "longer", "gin_params": ["SCHEDULE=3", "MODEL_DIR='gs://b/3x'"], "after": ["base"]},
    {"name": "base", "gin_params": ["SCHEDULE=2", "MODEL_DIR='gs://b/2x'"]},
    {"name": "table", "after": ["longer", "base"]},
]


def test_jobs_of_a_study_come_after_those_they_wait_for(tmp_path, capsys):
    path = write(tmp_path / "jobs.json", STUDY)
    assert vertex.main([*GPU, f"--jobs={path}", "--dry_run"]) == 0
    jobs = [types.CustomJob.from_json(json.dumps(x)) for x in json.loads(capsys.readouterr().out)]
    assert [job.display_name for job in jobs] == ["base", "longer", "table"]
    args = jobs[1].job_spec.worker_pool_specs[0].container_spec.args
    assert "--gin_param=SCHEDULE=3" in args


class Recorded:
    """In place of the cloud: jobs that end as told, after having been asked once."""

    def __init__(self, ends):
        self.ends = ends
        self.calls = []

    def create(self, message):
        self.calls.append(message.display_name)
        return message.display_name

    def state(self, name):
        self.calls.append(f"{name}?")
        return self.ends[name].pop(0)


def plan(tmp_path):
    jobs = vertex_submission.read_jobs(str(write(tmp_path / "jobs.json", STUDY)))
    return [(job, types.CustomJob(display_name=job["name"])) for job in jobs]


def test_a_job_is_submitted_when_those_before_it_have_succeeded(tmp_path, capsys):
    ends = {"base": ["RUNNING", "SUCCEEDED"], "longer": ["SUCCEEDED"]}
    jobs, waits = Recorded(ends), []
    assert vertex_submission.run_in_order(jobs, plan(tmp_path), waits.append) == 0
    assert jobs.calls == ["base", "base?", "base?", "longer", "longer?", "table"]
    assert len(waits) == 1


def test_a_job_that_failed_holds_back_those_after_it(tmp_path, capsys):
    jobs = Recorded({"base": ["FAILED"]})
    assert vertex_submission.run_in_order(jobs, plan(tmp_path), None) == 1
    assert "base is FAILED; not submitted: longer, table" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ({}, "not a list of jobs"),
        ([{"name": "a", "after": ["b"]}], "'a' waits for 'b', which is no job"),
        ([{"name": "a"}, {"name": "a"}], "two jobs are named 'a'"),
        ([{"name": "a", "after": "b"}], "is no job such as"),
        ([{"name": "a"}, {"name": "b"}], "a and b share MODEL_DIR gs://bucket/r50/"),
        ([{"name": "a", "after": ["b"]}, {"name": "b", "after": ["a"]}], "wait for each other"),
    ],
)
def test_malformed_jobs_are_one_line(tmp_path, capsys, jobs, message):
    path = write(tmp_path / "jobs.json", jobs)
    assert vertex.main([*GPU, f"--jobs={path}", "--dry_run"]) == 1
    assert message in capsys.readouterr().err


def test_what_the_library_does_not_know_is_refused():
    with pytest.raises(vertex.LaunchError, match='no field named "displayNam"'):
        vertex_submission.check("CustomJob", {"displayNam": "x"})


def test_metrics_have_names_that_vertex_takes():
    assert vertex_sweep.metric_id("box/AP 50") == "box_AP_50"
