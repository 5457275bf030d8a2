"""Starts an experiment as a job on Google Cloud's Vertex AI.

    python -m launch.vertex --gin_file=scratch_r50.gin --machine=a2-highgpu-8g --workers=2 \
        --gin_param="MODEL_DIR='gs://bucket/runs/r50'" --gin_param="DATA_DIR='gs://bucket/coco'" \
        --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/rethink_tf --dry_run

`--dry_run` prints the exact job as JSON, which the library's own types have checked, and needs no
credentials. Project, region and image come from flags or from GOOGLE_CLOUD_PROJECT,
GOOGLE_CLOUD_REGION and RETHINK_TF_IMAGE. Needs `pip install -e .[vertex]`.
"""

import argparse
import json
import os
import re
import sys

from launch import commands, machines, vertex_submission, vertex_sweep
from launch.machines import LaunchError
from rethink_tf import exit_codes

# Vertex AI ends a job whose container ends with a code: what is to start again does so inside it.
SUPERVISED = ("python", "-m", "launch.local_workers", "--keep_cluster", "1", "--")
FLEX_START_HOURS = 7 * 24  # A longer job is refused by the Dynamic Workload Scheduler.


def build_job(options, name=None, params=(), gin_files=()):
    """Returns a CustomJob as a dict.

    Args:
        options: the parsed flags.
        name: str, display name in place of the flag's.
        params: list of str, gin bindings of this job beside those of the flags.
        gin_files: list of str, the same of its gin files.

    Raises:
        LaunchError: if the flags don't make a job.
    """
    options = argparse.Namespace(**vars(options))
    options.gin_param = [*options.gin_param, *params]
    options.gin_file = [*options.gin_file, *gin_files]
    model_dir = commands.check_model_dir(options.gin_param)
    commands.check_image(options.image)
    spec = {
        "worker_pool_specs": _worker_pools(options),
        "scheduling": _scheduling(options),
        # With a TensorBoard instance, Vertex AI watches the folder logs/ in it.
        "base_output_directory": {"output_uri_prefix": _as_uri(model_dir)},
    }
    for key in ("service_account", "tensorboard", "experiment", "network"):
        if getattr(options, key):
            spec[key] = getattr(options, key)
    _check_tensorboard(options)
    return {
        "display_name": name or options.name or _default_name(options),
        "job_spec": spec,
        "labels": _labels(options.label),
    }


def _worker_pools(options):
    """Returns one pool of the chief, and one of the other workers; or one of a TPU's hosts."""
    if options.tpu:
        if options.machine or options.accelerators or options.workers > 1:
            raise LaunchError("--tpu chooses machines and workers: leave out the flags for them.")
        tpu = machines.find_tpu(options.tpu)
        machine = {"machine_type": tpu.machine, "tpu_topology": tpu.topology}
        counts = [tpu.hosts]
    else:
        if not options.machine:
            raise LaunchError("Give --machine, such as g2-standard-12, or --tpu=v5litepod-N.")
        kind, count = machines.find_accelerators(options.machine, options.accelerators)
        machine = {"machine_type": options.machine}
        if kind:
            machine |= {"accelerator_type": kind, "accelerator_count": count}
        if options.workers < 1:
            raise LaunchError(f"--workers={options.workers}: at least 1.")
        counts = [1, options.workers - 1] if options.workers > 1 else [1]
    container = {
        "image_uri": options.image,
        "command": [*SUPERVISED, "python", "-m", "rethink_tf.train"],
        "args": commands.make_arguments(options, options.workers, bool(options.tpu)),
    }
    return [
        {
            "machine_spec": machine,
            "replica_count": count,
            "disk_spec": {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": options.disk_gb},
            "container_spec": container,
        }
        for count in counts
    ]


def _scheduling(options):
    if options.spot and options.flex_start:
        raise LaunchError("--spot and --flex_start exclude each other.")
    if options.disable_retries and options.restart:
        raise LaunchError(
            "--disable_retries overrides the restart of lost workers: a job whose worker is lost "
            "would end. Leave it out, or add --norestart."
        )
    if not 0 < options.timeout_hours <= 28 * 24:
        raise LaunchError(f"--timeout_hours={options.timeout_hours:g} is not in (0, 672].")
    strategy = "SPOT" if options.spot else "FLEX_START" if options.flex_start else "STANDARD"
    scheduling = {
        "timeout": f"{round(options.timeout_hours * 3600)}s",
        "strategy": strategy,
        "restart_job_on_worker_restart": options.restart,
        "disable_retries": options.disable_retries,
    }
    if options.flex_start:
        accelerated = (
            options.tpu or machines.find_accelerators(options.machine, options.accelerators)[1]
        )
        if not accelerated:
            raise LaunchError(f"--flex_start waits for accelerators; {options.machine} has none.")
        if options.timeout_hours > FLEX_START_HOURS:
            raise LaunchError(
                f"--flex_start jobs run {FLEX_START_HOURS} h at most: give "
                f"--timeout_hours={FLEX_START_HOURS}; the same command goes on after it."
            )
        scheduling["max_wait_duration"] = f"{round(options.wait_hours * 3600)}s"
    return scheduling


def _check_tensorboard(options):
    if not options.tensorboard:
        return
    if options.experiment:
        raise LaunchError(
            "--experiment excludes --tensorboard: an experiment has its own instance."
        )
    if not options.service_account:
        raise LaunchError("--tensorboard needs --service_account, which may write to it.")
    found = re.fullmatch(
        r"projects/[^/]+/locations/([^/]+)/tensorboards/[^/]+", options.tensorboard
    )
    if not found:
        raise LaunchError(
            f"--tensorboard={options.tensorboard!r} is not "
            "projects/PROJECT/locations/REGION/tensorboards/ID."
        )
    if options.region and found[1] != options.region:
        raise LaunchError(
            f"--tensorboard is in {found[1]} and the job in {options.region}: they share a region."
        )


def _labels(texts):
    labels = {}
    for text in texts:
        found = re.fullmatch(r"([a-z][a-z0-9_-]{0,62})=([a-z0-9_-]{0,63})", text)
        if not found:
            raise LaunchError(
                f"--label={text!r} is not key=value in lower case letters, digits, _ and -, at "
                "most 63 each."
            )
        labels[found[1]] = found[2]
    return labels


def _as_uri(folder):
    return "gs://" + folder.removeprefix("gs://").removeprefix("/gcs/").rstrip("/") + "/"


def _default_name(options):
    names = [os.path.splitext(os.path.basename(each))[0] for each in options.gin_file]
    return "-".join(names)[:128] or "rethink_tf"


def _check_folders(planned):
    """Checks that a study's jobs have folders of their own: else one goes on in another's."""
    taken = {}
    for each, job in planned:
        folder = job["job_spec"]["base_output_directory"]["output_uri_prefix"]
        if folder in taken:
            raise LaunchError(
                f"--jobs: {taken[folder]} and {each['name']} share MODEL_DIR {folder}: bind one in "
                "the gin_params of each."
            )
        taken[folder] = each["name"]


def make_parser():
    """Returns the `argparse` parser of the flags."""
    parser = commands.make_parser("vertex", __doc__)
    add = parser.add_argument
    add("--machine", default="", help="type of the machines, such as g2-standard-12")
    add("--accelerators", default="", help="such as NVIDIA_TESLA_T4:2, where not built in")
    add("--workers", type=int, default=1, help="machines, the chief included (%(default)s)")
    add("--tpu", default="", help="a v5e slice such as v5litepod-16, in place of machines")
    add("--spot", action="store_true", help="Spot machines: cheaper, and taken away at any time")
    add("--flex_start", action="store_true", help="wait until the accelerators are free")
    add("--wait_hours", type=float, default=24, help="at most, with --flex_start (%(default)s)")
    add("--timeout_hours", type=float, default=7 * 24, help="of the job (%(default)s)")
    add(
        "--norestart",
        dest="restart",
        action="store_false",
        help="end the job when a worker is lost, in place of starting all again",
    )
    add("--disable_retries", action="store_true", help="none after internal errors either")
    add("--disk_gb", type=int, default=200, help="of each machine (%(default)s)")
    add("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT", ""))
    add("--region", default=os.environ.get("GOOGLE_CLOUD_REGION", ""))
    add("--image", default=os.environ.get("RETHINK_TF_IMAGE", ""), help="container image")
    add("--service_account", default="", help="that the job runs as")
    add("--network", default="", help="to peer with")
    add("--tensorboard", default="", help="projects/…/locations/…/tensorboards/…")
    add("--experiment", default="", help="of Vertex AI, in place of --tensorboard")
    add("--name", default="", help="display name; default: that of the gin files")
    add("--label", action="append", default=[], help="key=value; may be given several times")
    add("--sweep", default="", help="JSON file of a sweep; see docs/launching.md")
    add("--jobs", default="", help="JSON file of a study's jobs; see docs/launching.md")
    add("--dry_run", action="store_true", help="print the job as JSON, and start nothing")
    return parser


def _plan(options):
    """Returns the kind of the jobs, and (what it is and waits for, dict) of each in order."""
    if options.sweep and options.jobs:
        raise LaunchError("--sweep and --jobs exclude each other.")
    if options.jobs:
        jobs = vertex_submission.read_jobs(options.jobs)
        planned = [
            (job, build_job(options, job["name"], job["gin_params"], job["gin_files"]))
            for job in jobs
        ]
        _check_folders(planned)
        return "CustomJob", planned
    job = build_job(options)
    if options.sweep:
        sweep = vertex_sweep.read_sweep(options.sweep)
        job = vertex_sweep.build_tuning(job, sweep)
        return "HyperparameterTuningJob", [({"name": "", "after": []}, job)]
    return "CustomJob", [({"name": "", "after": []}, job)]


def main(arguments=None):
    """Runs the command line, and returns its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        kind, planned = _plan(options)
        checked = [(each, vertex_submission.check(kind, job)) for each, job in planned]
        if options.dry_run:
            printed = [vertex_submission.as_json(job) for _, job in checked]
            print(json.dumps(printed if options.jobs else printed[0], indent=2))
            return exit_codes.DONE
        return vertex_submission.submit(kind, checked, options.project, options.region)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.REFUSED


if __name__ == "__main__":
    sys.exit(main())
