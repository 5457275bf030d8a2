"""TF_CONFIG: read, checked, and built from what launchers set. No TensorFlow."""

import json
import subprocess
import sys

import pytest

from rethink_tf import cluster

TWO = {"worker": ["a:2222", "b:2222"]}


def config(jobs=TWO, **task):
    return json.dumps({"cluster": jobs, "task": {"type": "worker", "index": 0} | task})


def test_tf_config_is_kept_whole():
    text = '{"cluster": {"chief": ["[::1]:1"], "worker": ["b:65535"]}, "environment": "cloud", '
    text += '"task": {"type": "chief", "index": 0, "trial": "3"}}'
    assert cluster.read_cluster({"TF_CONFIG": text}) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'cluster'", "is not JSON"),
        ("[1]", r"is not a JSON object: \[1\]"),
        ("[" * 100_000, "TF_CONFIG is n"),
        ('{"cluster": {}}', "has no 'cluster' or no 'task'"),
        ('{"cluster": {}, "task": {"type": "worker"}}', "has no 'cluster' or no 'task'"),
        ('{"cluster": ["a:1"], "task": {"type": "w"}}', "'cluster' is not an object of jobs"),
        (config({"worker": "a:2222"}), "is no list of addresses: a:2222"),
        (config({"worker": []}), "is no list of addresses"),
        (config({"worker": ["a"]}), "'a' is no address such as host0:2222"),
        (config({"worker": ["a:0"]}), "'a:0' is no address"),
        (config({"worker": ["a:65536"]}), "'a:65536' is no address"),
        (config({"worker": ["http://a:1"]}), "is no address"),
        (config({"worker": [3]}), "3 is no address"),
        (config({"worker": ["a:1", "a:1"]}), "a:1 is there twice"),
        (config({"chief": ["a:1"], "worker": ["a:1"]}), "twice, as chief and as worker"),
        (config({"chief": ["a:1", "b:1"]}, type="chief"), "2 chiefs"),
        (config({"ps": ["a:1"], "worker": ["b:1"]}), "job 'ps' has no part"),
        (config({"evaluator": ["a:1"]}), "neither a chief nor workers"),
        (config(type="chief"), "the task is a chief, and the cluster has no chief"),
        (config(type="evaluator"), "a task of type 'evaluator' does not train"),
        (config(type=["worker"]), "does not train"),
        (config(index="0"), "index '0' is not an integer"),
        (config(index=True), "index True is not an integer"),
        (config(index=2), r"the task is worker 2, and the cluster has 2 \(worker 0 to 1\)"),
        (config(index=-1), "the task is worker -1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": [0]}', "'task' has no 'type' or no 'index'"),
    ],
)
def test_malformed_tf_configs_end_in_one_line(text, message):
    with pytest.raises(cluster.ClusterError, match=message) as caught:
        cluster.read_cluster({"TF_CONFIG": text})
    assert "TF_CONFIG" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_vertex_pools_are_chief_and_workers():
    spec = {
        "cluster": {"workerpool0": ["p0:2222"], "workerpool1": ["p1-0:2222", "p1-1:2222"]},
        "environment": "cloud",
        "task": {"type": "workerpool1", "index": 1, "trial": ""},
        "job": "{}",
    }
    assert cluster.read_cluster({"CLUSTER_SPEC": json.dumps(spec), "TF_CONFIG": ""}) == {
        "cluster": {"chief": ["p0:2222"], "worker": ["p1-0:2222", "p1-1:2222"]},
        "task": {"type": "worker", "index": 1},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "CLUSTER_SPEC is not JSON"),
        ('{"cluster": {"workerpool0": ["a:1"]}}', "has no 'cluster' or no 'task'"),
        ('{"cluster": {"workerpool2": ["a:1"]}, "task": {"type": 1}}', "workerpool2 has no part"),
        (
            '{"cluster": {"workerpool0": ["a:1"]}, "task": {"type": "workerpool3", "index": 0}}',
            "'evaluator' does not train",
        ),
        ('{"cluster": {"workerpool0": ["a:1"]}, "task": {"type": [], "index": 0}}', "not train"),
    ],
)
def test_malformed_cluster_specs_end_in_one_line(text, message):
    with pytest.raises(cluster.ClusterError, match=message) as caught:
        cluster.read_cluster({"CLUSTER_SPEC": text})
    assert "\n" not in str(caught.value)


JOBSET = {
    "JOBSET_NAME": "r50",
    "REPLICATED_JOB_NAME": "worker",
    "JOBSET_WORKERS": "2",
    "JOB_COMPLETION_INDEX": "1",
}


def test_pods_of_a_jobset_find_each_other_by_their_index():
    assert cluster.read_cluster(JOBSET) == {
        "cluster": {"worker": ["r50-worker-0-0.r50:2222", "r50-worker-0-1.r50:2222"]},
        "task": {"type": "worker", "index": 1},
    }


SLURM = {
    "SLURM_JOB_ID": "3",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "n[9-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURMD_NODENAME": "n10",
}


def test_hosts_of_a_slurm_step_keep_their_order():
    """As texts, n10 sorts before n9, which is what TensorFlow's resolver does."""
    assert cluster.read_cluster(SLURM) == {
        "cluster": {"worker": ["n9:20192", "n9:20193", "n10:20192", "n10:20193"]},
        "task": {"type": "worker", "index": 3},
    }
    assert cluster.expand_hosts("a,n[08-10,2]x,m-1") == ["a", "n08x", "n09x", "n10x", "n2x", "m-1"]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "Nothing in the environment names the workers. Set TF_CONFIG"),
        (JOBSET | {"JOBSET_WORKERS": ""}, "JOBSET_NAME is set and JOBSET_WORKERS is not"),
        (JOBSET | {"JOBSET_WORKERS": "0"}, "JOBSET_WORKERS = '0' is not an integer of 1 or more"),
        (JOBSET | {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX = 'x' is not an integer"),
        (JOBSET | {"JOB_COMPLETION_INDEX": "2"}, "the task is worker 2, and the cluster has 2"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1-"}, r"'n\[1-' is no list such as"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[2-1]"}, "has no range such as"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1]m[2]"}, "more than one range"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1-999999999]"}, "has no range such as"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "'two' is no list such as"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": ""}, "'' is no list such as"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2"}, "of 1 hosts, SLURM_STEP_NODELIST of 2"),
        (SLURM | {"SLURM_PROCID": "4"}, "the task is worker 4, and the cluster has 4"),
        (SLURM | {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID = '' is not an integer"),
        (SLURM | {"SLURM_PROCID": "1"}, "Slurm runs task 1 on n10, .* on n9"),
    ],
)
def test_workers_that_cannot_be_told_are_one_line(environ, message):
    with pytest.raises(cluster.ClusterError, match=message) as caught:
        cluster.read_cluster(environ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "is_first"),
    [
        ({}, True),
        ({"TF_CONFIG": config()}, True),
        ({"TF_CONFIG": config(index=1)}, False),
        ({"TF_CONFIG": config(TWO | {"chief": ["c:1"]})}, False),
        ({"TF_CONFIG": config(TWO | {"chief": ["c:1"]}, type="chief")}, True),
        (SLURM, False),
    ],
)
def test_the_first_worker_is_the_chief_or_worker_0(environ, is_first):
    assert cluster.is_first(environ) == is_first


def test_it_needs_no_tensorflow():
    code = "import sys, rethink_tf.cluster; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
