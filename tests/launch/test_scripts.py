"""The scripts of launchers, run with stubs in place of the cloud's and the cluster's commands."""

import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from launch import skypilot
from rethink_tf import cluster

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "launch"
MODEL_DIR = "--gin_param=MODEL_DIR='gs://bucket/r50'"


def run(command, stubs, **environment):
    return subprocess.run(
        [str(each) for each in command],
        env=os.environ | {"PATH": f"{stubs}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def stub(folder, name, script):
    """Puts a command into a folder, which writes its arguments into `calls` and goes on as told."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {folder}/calls\n{script}\n')
    path.chmod(0o755)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("status", "restarts", "code", "requeued"),
    [
        (0, 0, 0, False),
        (1, 0, 1, False),
        (130, 0, 130, False),
        (75, 0, 0, True),
        (137, 3, 0, True),
        (75, 20, 75, False),
    ],
)
def test_a_slurm_job_is_queued_again_after_75_and_kills(tmp_path, status, restarts, code, requeued):
    stub(tmp_path, "srun", f"exit {status}")
    stub(tmp_path, "scontrol", "")
    done = run(
        ["bash", LAUNCH / "slurm.sbatch", "--gin_file=a.gin", "--gin_param=A='b c'"],
        tmp_path,
        SLURM_NTASKS="2",
        SLURM_JOB_ID="7",
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert done.returncode == code, done.stderr
    assert "--gin_param=A='b c' --gin_param=make_strategy.name='multi" in calls(tmp_path)[0]
    assert ("scontrol requeue 7" in calls(tmp_path)) == requeued


GCLOUD = """
case "$*" in
  *describe*) exit 1 ;;
  *" ssh "*)
    touch "$(dirname "$0")/started-$(ls "$(dirname "$0")" | grep -c started)"
    [ -e "$(dirname "$0")/started-1" ] && exit {last}
    exit {first} ;;
esac
"""


@pytest.mark.parametrize(
    ("first", "last", "code", "starts"), [(75, 0, 0, 2), (255, 1, 1, 2), (1, 0, 1, 1)]
)
def test_a_tpu_host_is_made_used_again_and_deleted(tmp_path, first, last, code, starts):
    stub(tmp_path, "gcloud", GCLOUD.format(first=first, last=last))
    where = {"PROJECT": "p", "ZONE": "z", "MACHINE": "ct6e-standard-4t", "IMAGE": "registry/image"}
    done = run(
        [LAUNCH / "tpu_vm.sh", "r50", "--", "--gin_file=a.gin", MODEL_DIR],
        tmp_path,
        BACKOFF="0",
        **where,
    )
    assert done.returncode == code, done.stderr
    made = [each for each in calls(tmp_path) if " ssh " in each]
    assert len(made) == starts
    assert "--project=p --zone=z" in made[0] and "registry/image" in made[0]
    # What ssh's shell makes of it are the words again.
    command = made[0].split("; done; ")[1]
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\n" {command}'], capture_output=True, text=True
    ).stdout.splitlines()
    assert words[-3:] == ["--gin_param=make_strategy.name='tpu'", "--gin_file=a.gin", MODEL_DIR]
    assert calls(tmp_path)[-1].startswith("gcloud compute instances delete r50")


def test_a_tpu_host_is_tried_dry(tmp_path):
    stub(tmp_path, "gcloud", "")
    where = {"PROJECT": "p", "ZONE": "z", "MACHINE": "ct6e-standard-4t", "IMAGE": "registry/image"}
    arguments = [LAUNCH / "tpu_vm.sh", "r50", "--", "--gin_file=a.gin", MODEL_DIR]
    done = run(arguments, tmp_path, DRY_RUN="1", **where)
    assert done.returncode == 0, done.stderr
    words = [line.split()[:4] for line in done.stdout.splitlines()]
    assert [each[2:] for each in words] == [
        ["instances", "create"],
        ["ssh", "r50"],
        ["instances", "delete"],
    ]
    assert not (tmp_path / "calls").exists()


def test_a_tpu_host_needs_to_be_told_where(tmp_path):
    stub(tmp_path, "gcloud", "")
    arguments = [LAUNCH / "tpu_vm.sh", "r50", "--", "--gin_file=a.gin"]
    done = run(arguments, tmp_path, PROJECT="p")
    assert (done.returncode, done.stderr) == (1, "error: set ZONE\n")
    done = run(arguments, tmp_path, PROJECT="p", ZONE="z", MACHINE="m", IMAGE="i")
    assert done.returncode == 1 and "MODEL_DIR must be on gs://" in done.stderr
    assert run([LAUNCH / "tpu_vm.sh"], tmp_path).stderr.startswith("Trains on a TPU host")
    assert not (tmp_path / "calls").exists()


def test_a_skypilot_task_knows_its_nodes(tmp_path, capsys):
    flags = ["--gin_file=a.gin", MODEL_DIR, "--accelerators=L4:8", "--nodes=2", "--spot"]
    assert skypilot.main(flags) == 0
    task = yaml.safe_load(capsys.readouterr().out)
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "L4:8" and task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75]}

    # The task's own script, with the training replaced by what it would see.
    python = shutil.which("python3")
    stub(
        tmp_path,
        "python3",
        f'[ "$1" = -m ] || exec {python} "$@"\nprintf "%s\\n" "$TF_CONFIG" "$@"',
    )
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    done = run(["bash", "-c", task["run"]], tmp_path, **nodes)
    config, *arguments = done.stdout.splitlines()
    assert cluster.read_cluster({"TF_CONFIG": config}) == {
        "cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
        "task": {"type": "worker", "index": 1},
    }
    assert arguments[:3] == ["-m", "rethink_tf.train", "--gin_file=a.gin"]
    assert MODEL_DIR in arguments
    assert "--gin_param=make_strategy.name='multi_worker_mirrored'" in arguments


def test_a_skypilot_task_that_cannot_be_is_one_line(capsys):
    assert skypilot.main(["--gin_file=a.gin"]) == 1
    assert "other folders are lost with the machine" in capsys.readouterr().err


def test_the_container_installs_what_setup_cfg_names():
    text = (REPOSITORY / "Dockerfile").read_text()
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    extras = re.findall(r"pip install -e '\.\[(\w+)\]'", text)
    assert extras == ["gpu", "tpu"]
    for extra in extras:
        assert "tensorflow" in setup["options.extras_require"][extra]
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for path in line.split()[:-1]:
            assert (REPOSITORY / path).exists()
    # All that is copied is sent to the builder.
    sent = (REPOSITORY / ".dockerignore").read_text()
    for path in ("setup.cfg", "pyproject.toml", "rethink_tf", "gin_configs", "launch"):
        assert f"!{path}\n" in sent


def test_json_of_the_documentation_is_read(tmp_path):
    """The sweep and the jobs of docs/launching.md."""
    from launch import vertex_submission, vertex_sweep

    blocks = re.findall(
        r"```json\n(.*?)```", (REPOSITORY / "docs" / "launching.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 2
    for block in blocks:
        path = tmp_path / "file.json"
        path.write_text(block)
        if isinstance(json.loads(block), list):
            assert [job["name"] for job in vertex_submission.read_jobs(str(path))]
        else:
            sweep = vertex_sweep.read_sweep(str(path))
            job = {"display_name": "x", "labels": {}, "job_spec": {"worker_pool_specs": []}}
            built = vertex_sweep.build_tuning(job, sweep)
            vertex_submission.check("HyperparameterTuningJob", built)
