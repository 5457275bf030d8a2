"""Writes an experiment as a JobSet, for Kubernetes.

    python -m launch.jobset --name=r50 --image=… --gin_file=scratch_r50.gin --workers=4 --gpus=8 \
        --gin_param="MODEL_DIR='gs://bucket/runs/r50'" \
        --gin_param="DATA_DIR='gs://bucket/coco'" > job.yaml
    kubectl apply -f job.yaml

Its pods have names that their index tells, from which `rethink_tf.cluster` makes TF_CONFIG. A pod
that ends with 75 or is killed starts all of them again; one that is refused ends the JobSet.
Needs `pip install -e .[manifests]` here, and in the cluster JobSet 0.6 or newer (v1alpha2).
"""

import os
import re
import signal
import sys

from launch import commands, machines
from launch.machines import LaunchError
from rethink_tf import cluster, exit_codes

WORKER = "worker"
# Kubernetes reports 128 + n of a container that signal n killed.
_KILLED = sorted(
    128 + number
    for number in (
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGKILL,
        signal.SIGSEGV,
        signal.SIGTERM,
    )
)


def build_jobset(options):
    """Returns a JobSet as a dict.

    Args:
        options: the parsed flags.

    Raises:
        LaunchError: if the flags don't make one.
    """
    _check(options)
    tpu = machines.find_tpu(options.tpu) if options.tpu else None
    workers = tpu.hosts if tpu else options.workers
    annotations = {}
    if tpu and tpu.hosts > 1:
        # All hosts of one slice, which is one pool of nodes, and nobody else's.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name, "annotations": annotations},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": options.name},
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "rules": [
                    {
                        "name": "refused",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": WORKER,
                    "replicas": 1,
                    "template": {"spec": _job(options, workers, tpu)},
                }
            ],
        },
    }


def _job(options, workers, tpu):
    return {
        "completionMode": "Indexed",
        "completions": workers,
        "parallelism": workers,
        # A lost pod cannot come back alone: the JobSet starts all of them again.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": WORKER,
                        "operator": "NotIn",
                        "values": [exit_codes.AGAIN, *_KILLED],
                    },
                }
            ]
        },
        "template": {"spec": _pod(options, workers, tpu)},
    }


def _pod(options, workers, tpu):
    limits, selector = {}, {}
    if tpu:
        limits["google.com/tpu"] = tpu.host_chips
        selector["cloud.google.com/gke-tpu-accelerator"] = "tpu-v5-lite-podslice"
        selector["cloud.google.com/gke-tpu-topology"] = tpu.topology
    if options.gpus:
        limits["nvidia.com/gpu"] = options.gpus
    if options.gpu_type:
        selector["cloud.google.com/gke-accelerator"] = options.gpu_type
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    # Memory that NCCL and tf.data share; a container has 64 MiB by default.
    mounts, volumes = (
        [{"name": "shm", "mountPath": "/dev/shm"}],
        [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    )
    if options.claim:
        claim, folder = options.claim.split(":")
        mounts.append({"name": "runs", "mountPath": folder})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
    pod = {
        # The exit code decides over restarts, and only of a pod that ends.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "containers": [
            {
                "name": WORKER,
                "image": options.image,
                "command": ["python", "-m", "rethink_tf.train"],
                "args": commands.make_arguments(options, workers, bool(tpu)),
                "env": _environment(options.name, workers),
                "ports": [{"containerPort": cluster.PORT}],
                "resources": {"limits": limits},
                "volumeMounts": mounts,
            }
        ],
        "nodeSelector": selector,
        "volumes": volumes,
    }
    return pod | (
        {"serviceAccountName": options.service_account} if options.service_account else {}
    )


def _environment(name, workers):
    """Returns what `rethink_tf.cluster` reads; Kubernetes adds JOB_COMPLETION_INDEX."""
    values = {"JOBSET_NAME": name, "REPLICATED_JOB_NAME": WORKER, "JOBSET_WORKERS": str(workers)}
    return [{"name": key, "value": value} for key, value in values.items()]


def _check(options):
    commands.check_image(options.image)
    if options.tpu and (options.workers > 1 or options.gpus or options.gpu_type):
        raise LaunchError("--tpu chooses the workers: leave out --workers and --gpus.")
    if options.workers < 1 or options.gpus < 0 or options.restarts < 0:
        raise LaunchError("--workers is 1 or more, --gpus and --restarts are 0 or more.")
    # A pod's name is the JobSet's with its index, and DNS takes 63 letters.
    longest = 63 - len(f"-{WORKER}-0-{options.workers}")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", options.name) or len(options.name) > longest:
        raise LaunchError(
            f"--name={options.name!r} is not lower case letters, digits and - (first a letter, at "
            f"most {longest})."
        )
    if options.claim and not re.fullmatch(r"[a-z0-9.-]+:/[^:]+", options.claim):
        raise LaunchError(f"--claim={options.claim!r} is not CLAIM:/folder.")
    mounted = [options.claim.split(":")[1].rstrip("/") + "/"] if options.claim else []
    commands.check_model_dir(options.gin_param, mounted)


def make_parser():
    """Returns the `argparse` parser of the flags."""
    parser = commands.make_parser("jobset", __doc__)
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--image", default=os.environ.get("RETHINK_TF_IMAGE", ""), help="container image")
    add("--workers", type=int, default=1, help="pods (%(default)s)")
    add("--gpus", type=int, default=0, help="of each pod (%(default)s)")
    add("--gpu_type", default="", help="GKE's word for it, such as nvidia-l4; default: any")
    add("--tpu", default="", help="a v5e slice such as v5litepod-16, in place of workers and GPUs")
    add("--spot", action="store_true", help="on GKE's Spot nodes")
    add("--restarts", type=int, default=100, help="at most so many (%(default)s)")
    add("--grace", type=int, default=120, help="seconds to save after SIGTERM (%(default)s)")
    add("--claim", default="", help="CLAIM:/folder, a volume that all pods write to")
    add("--service_account", default="", help="of Kubernetes, that the pods run as")
    return parser


def main(arguments=None):
    """Prints the JobSet as YAML, and returns the exit code."""
    return commands.print_yaml(build_jobset, make_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
