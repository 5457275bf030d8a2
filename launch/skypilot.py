"""Writes an experiment as a SkyPilot task.

    python -m launch.skypilot --gin_file=scratch_r50.gin --accelerators=L4:8 --nodes=2 \
        --gin_param="MODEL_DIR='gs://bucket/runs/r50'" \
        --gin_param="DATA_DIR='gs://bucket/coco'" > skypilot.yaml
    sky jobs launch skypilot.yaml

SkyPilot is not imported: the task is a file. Its managed jobs start again what was preempted, and
what ends with 75. Needs `pip install -e .[manifests]` here.
"""

import shlex
import sys

from launch import commands
from launch.machines import LaunchError
from rethink_tf import cluster, exit_codes

# SkyPilot names the nodes' addresses in lines, and says which one this is.
_TF_CONFIG = f"""\
TF_CONFIG=$(python3 -c '
import json, os
nodes = os.environ["SKYPILOT_NODE_IPS"].split()
task = {{"type": "worker", "index": int(os.environ["SKYPILOT_NODE_RANK"])}}
workers = [f"{{node}}:{cluster.PORT}" for node in nodes]
print(json.dumps({{"cluster": {{"worker": workers}}, "task": task}}))')
export TF_CONFIG
"""


def build_task(options):
    """Returns a SkyPilot task as a dict.

    Args:
        options: the parsed flags.

    Raises:
        LaunchError: if the flags don't make one.
    """
    commands.check_model_dir(options.gin_param)
    if options.nodes < 1:
        raise LaunchError("--nodes is 1 or more.")
    arguments = commands.make_arguments(options, options.nodes, is_tpu=False)
    quoted = " \\\n  ".join(shlex.quote(each) for each in arguments)
    resources = {"use_spot": options.spot}
    resources |= {"accelerators": options.accelerators} if options.accelerators else {}
    # Restarts "on errors" would repeat what was refused as well.
    resources["job_recovery"] = {"recover_on_exit_codes": [exit_codes.AGAIN]}
    return {
        "name": options.name,
        "num_nodes": options.nodes,
        "workdir": ".",
        "resources": resources,
        "setup": "pip install -e '.[gpu]'\n",
        "run": (_TF_CONFIG if options.nodes > 1 else "")
        + f"exec python3 -m rethink_tf.train \\\n  {quoted}\n",
    }


def main(arguments=None):
    """Prints the task as YAML, and returns the exit code."""
    parser = commands.make_parser("skypilot", __doc__)
    add = parser.add_argument
    add("--name", default="rethink-tf", help="of the task (%(default)s)")
    add("--accelerators", default="", help="SkyPilot's words, such as L4:8")
    add("--nodes", type=int, default=1, help="workers (%(default)s)")
    add("--spot", action="store_true", help="Spot machines")
    return commands.print_yaml(build_task, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
