"""JobSets, checked against the published schema."""

import jsonschema
import pytest
import yaml

from launch import jobset
from rethink_tf import cluster

# What of the API jobset.x-k8s.io/v1alpha2 and of batch/v1 a JobSet here may use, by field and type:
# kubernetes-sigs/jobset, config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml (Apache-2.0), and
# Kubernetes' rules on pod failure policies. Fields that it does not name are refused.
TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def record(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items):
    return {"type": "array", "items": items}


CONTAINER = record(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(record(["name"], name=TEXT, value=TEXT)),
    ports=listed(record(["containerPort"], containerPort=WHOLE)),
    resources=record(limits={"type": "object", "additionalProperties": WHOLE}),
    volumeMounts=listed(record(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
POD = record(
    ["containers"],
    restartPolicy={"enum": ["Never"]},  # A pod failure policy asks for it.
    terminationGracePeriodSeconds=WHOLE,
    containers=listed(CONTAINER),
    nodeSelector=TEXTS,
    serviceAccountName=TEXT,
    volumes=listed(
        record(
            ["name"],
            name=TEXT,
            emptyDir=record(medium=TEXT),
            persistentVolumeClaim=record(["claimName"], claimName=TEXT),
        )
    ),
)
EXIT_CODES = record(
    ["operator", "values"],
    containerName=TEXT,
    operator={"enum": ["In", "NotIn"]},
    values={"type": "array", "items": WHOLE, "minItems": 1, "maxItems": 255, "uniqueItems": True},
)
JOB = record(
    ["template"],
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    completions=WHOLE,
    parallelism=WHOLE,
    backoffLimit=WHOLE,
    podFailurePolicy=record(
        ["rules"],
        rules=listed(
            record(
                ["action"],
                action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
                onExitCodes=EXIT_CODES,
            )
        ),
    ),
    template=record(spec=POD),
)
FAILURE_RULE = record(
    ["action", "name"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=listed(
        {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]}
    ),
)
JOBSET = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=record(["name"], name=TEXT, annotations=TEXTS),
    spec=record(
        network=record(enableDNSHostnames={"type": "boolean"}, subdomain=TEXT),
        failurePolicy=record(maxRestarts=WHOLE, rules=listed(FAILURE_RULE)),
        replicatedJobs=listed(
            record(
                ["name", "template"], name=TEXT, replicas=WHOLE, template=record(["spec"], spec=JOB)
            )
        ),
    ),
)
BASE = ["--name=r50", "--image=registry/image", "--gin_file=scratch_r50.gin"]
MODEL_DIR = "--gin_param=MODEL_DIR='gs://bucket/r50'"


def build(capsys, *arguments):
    assert jobset.main([*BASE, *arguments]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    jsonschema.validate(job, JOBSET)
    return job


def pods(job):
    (replicated,) = job["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_gpu_workers_find_each_other_by_their_index(capsys):
    job = build(capsys, MODEL_DIR, "--workers=2", "--gpus=8", "--gpu_type=nvidia-l4", "--spot")
    spec = pods(job)
    assert spec["completions"] == spec["parallelism"] == 2
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert "--gin_param=make_strategy.name='multi_worker_mirrored'" in container["args"]

    environ = {each["name"]: each["value"] for each in container["env"]}
    assert "TF_CONFIG" not in environ
    # Kubernetes adds the index, and names pods <jobset>-<replicated job>-<job>-<pod>.<subdomain>.
    (port,) = container["ports"]
    name, worker = job["metadata"]["name"], job["spec"]["replicatedJobs"][0]["name"]
    subdomain = job["spec"]["network"]["subdomain"]
    for index in range(2):
        assert cluster.read_cluster(environ | {"JOB_COMPLETION_INDEX": str(index)}) == {
            "cluster": {
                "worker": [
                    f"{name}-{worker}-0-{pod}.{subdomain}:{port['containerPort']}"
                    for pod in range(2)
                ]
            },
            "task": {"type": "worker", "index": index},
        }


@pytest.mark.parametrize(
    ("code", "starts_again"),
    [(75, True), (137, True), (143, True), (139, True), (1, False), (2, False), (130, False)],
)
def test_exit_codes_and_restarts_fit_together(capsys, code, starts_again):
    """By Kubernetes' rules: a matching rule fails the Job for PodFailurePolicy, else the limit."""
    job = build(capsys, MODEL_DIR, "--restarts=7")
    (rule,) = pods(job)["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert codes["values"] == sorted(codes["values"])
    assert codes["containerName"] == pods(job)["template"]["spec"]["containers"][0]["name"]
    matched = codes["operator"] == "NotIn" and code not in codes["values"]
    assert pods(job)["backoffLimit"] == 0
    reason = "PodFailurePolicy" if matched else "BackoffLimitExceeded"
    (refused,) = job["spec"]["failurePolicy"]["rules"]
    fails = reason in refused["onJobFailureReasons"] and refused["action"] == "FailJobSet"
    assert fails != starts_again
    assert job["spec"]["failurePolicy"]["maxRestarts"] == 7


def test_a_tpu_slice_is_one_pool_of_nodes(capsys):
    job = build(capsys, MODEL_DIR, "--tpu=v5litepod-16")
    spec = pods(job)
    assert spec["completions"] == 4
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert job["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


def test_a_claim_is_mounted_where_the_run_writes(capsys):
    job = build(
        capsys, "--claim=nfs:/runs", "--gin_param=MODEL_DIR='/runs/r50'", "--service_account=sa"
    )
    pod = pods(job)["template"]["spec"]
    assert {"name": "runs", "mountPath": "/runs"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": "nfs"}} in pod["volumes"]
    assert pod["serviceAccountName"] == "sa"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "other folders are lost with the machine"),
        (["--claim=nfs:/runs", "--gin_param=MODEL_DIR='/other'"], "MODEL_DIR='/runs/…'"),
        ([MODEL_DIR, "--claim=nfs"], "is not CLAIM:/folder"),
        ([MODEL_DIR, "--name=R50"], "is not lower case letters"),
        ([MODEL_DIR, f"--name={'r' * 60}"], "at most 52"),
        ([MODEL_DIR, "--workers=0"], "--workers is 1 or more"),
        ([MODEL_DIR, "--tpu=v5litepod-4", "--gpus=1"], "--tpu chooses the workers"),
        ([MODEL_DIR, "--image="], "Give --image"),
    ],
)
def test_what_makes_no_jobset_is_one_line(capsys, arguments, message):
    assert jobset.main([*BASE, *arguments]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
