"""Who works with whom: TF_CONFIG, read and checked, or built from what the cluster sets.

Launchers differ in what they tell a worker. TF_CONFIG itself wins. Else it is made from, in this
order, Vertex AI's CLUSTER_SPEC, the index of a pod of a JobSet (`launch/jobset.py`), or the
variables of a Slurm step. Pure Python: it is checked before TensorFlow starts.

TF_CONFIG is {"cluster": {job: ["host:port", ...]}, "task": {"type": job, "index": int}}.
"""

import json
import re

PORT = 2222  # Of workers with a host of their own.
# Workers of a Slurm step may share hosts with other steps: their ports come from the job's number.
_SLURM_PORTS = range(20000, 30000)

EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)
# Vertex AI numbers its pools; TensorFlow names their work. The third is for parameter servers.
_POOLS = {"workerpool0": "chief", "workerpool1": "worker", "workerpool3": "evaluator"}
_JOBSET = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOBSET_WORKERS", "JOB_COMPLETION_INDEX")


class ClusterError(ValueError):
    """The workers cannot be told from the environment."""


def read_cluster(environ):
    """Returns the cluster that this process works in.

    Args:
        environ: dict of str, such as `os.environ`.

    Returns:
        dict as of TF_CONFIG, checked.

    Raises:
        ClusterError: if nothing in the environment names the workers, or what does is malformed;
            it names the variable and what it says.
    """
    if read := _find_reader(environ):
        return read(environ)
    raise ClusterError(
        "Nothing in the environment names the workers. Set TF_CONFIG on each of them, such as "
        f"{EXAMPLE}; or start them by launch/local_workers.sh, Vertex AI, a JobSet or Slurm's srun."
    )


def is_first(environ):
    """Returns whether this process is the chief, worker 0 of a cluster without one, or alone.

    Args:
        environ: as of `read_cluster`.

    Raises:
        ClusterError: if what names the workers is malformed.
    """
    if not _find_reader(environ):
        return True
    config = read_cluster(environ)
    task = config["task"]
    return task["index"] == 0 and (task["type"] == "chief" or "chief" not in config["cluster"])


def _find_reader(environ):
    """Returns the function that reads what names the workers, or None where nothing does."""
    readers = {
        ("TF_CONFIG",): _from_tf_config,
        ("CLUSTER_SPEC",): _from_vertex,
        ("JOBSET_NAME",): _from_jobset,
        ("SLURM_PROCID", "SLURM_STEP_NODELIST"): _from_slurm,
    }
    return next((read for names, read in readers.items() if all(map(environ.get, names))), None)


def check_cluster(config, source):
    """Checks a cluster.

    Args:
        config: dict as of TF_CONFIG.
        source: str, the variable it comes from.

    Returns:
        `config`.

    Raises:
        ClusterError: if jobs, addresses or the task don't make a cluster that trains together.
    """
    if not isinstance(config, dict) or not config.get("cluster") or not config.get("task"):
        raise ClusterError(
            f"{source} has no 'cluster' or no 'task': {_short(config)}. It looks like {EXAMPLE}."
        )
    cluster, task = config["cluster"], config["task"]
    if not isinstance(cluster, dict):
        raise ClusterError(f"{source}: 'cluster' is not an object of jobs: {_short(cluster)}.")
    _check_jobs(cluster, source)
    _check_task(cluster, task, source)
    return config


def _check_jobs(cluster, source):
    seen = {}
    for job, addresses in cluster.items():
        if job not in ("chief", "worker", "evaluator"):
            raise ClusterError(
                f"{source}: job {job!r} has no part in a training with mirrored workers; the jobs "
                "are chief (at most one) and worker."
            )
        if not isinstance(addresses, list) or not addresses:
            raise ClusterError(
                f"{source}: cluster[{job!r}] is no list of addresses: {_short(addresses)}."
            )
        for address in addresses:
            _check_address(address, f"{source}: cluster[{job!r}]")
            if address in seen:
                raise ClusterError(
                    f"{source}: {address} is there twice, as {seen[address]} and as {job}; each "
                    "worker needs an address of its own."
                )
            seen[address] = job
    if len(cluster.get("chief", [])) > 1:
        raise ClusterError(f"{source}: {len(cluster['chief'])} chiefs; there is one at most.")
    if "chief" not in cluster and "worker" not in cluster:
        raise ClusterError(f"{source}: the cluster has neither a chief nor workers.")


def _check_address(address, where):
    found = isinstance(address, str) and re.fullmatch(
        r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):(\d+)", address
    )
    if not found or not 0 < int(found[2]) < 65536:
        raise ClusterError(f"{where}: {address!r} is no address such as host0:{PORT}.")


def _check_task(cluster, task, source):
    if not isinstance(task, dict) or not {"type", "index"} <= set(task):
        raise ClusterError(f"{source}: 'task' has no 'type' or no 'index': {_short(task)}.")
    job, index = task["type"], task["index"]
    if job not in ("chief", "worker"):
        raise ClusterError(
            f"{source}: a task of type {job!r} does not train; the types are chief and worker. A "
            "process that evaluates runs --mode=evaluate without a cluster."
        )
    if job not in cluster:
        raise ClusterError(f"{source}: the task is a {job}, and the cluster has no {job}.")
    if isinstance(index, bool) or not isinstance(index, int):
        raise ClusterError(f"{source}: the task's index {index!r} is not an integer.")
    if not 0 <= index < len(cluster[job]):
        raise ClusterError(
            f"{source}: the task is {job} {index}, and the cluster has {len(cluster[job])} "
            f"({job} 0 to {len(cluster[job]) - 1})."
        )


def _parse(source, text):
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ClusterError(f"{source} is not JSON ({error}): {_short(text)}.") from error
    except RecursionError as error:
        raise ClusterError(f"{source} is nested too deep: {_short(text)}.") from error
    if not isinstance(config, dict):
        raise ClusterError(f"{source} is not a JSON object: {_short(text)}.")
    return config


def _from_tf_config(environ):
    return check_cluster(_parse("TF_CONFIG", environ["TF_CONFIG"]), "TF_CONFIG")


def _from_vertex(environ):
    """Returns the cluster of Vertex AI's CLUSTER_SPEC, whose jobs are the job's worker pools."""
    source = "CLUSTER_SPEC"
    text = environ[source]
    spec = _parse(source, text)
    pools, task = spec.get("cluster"), spec.get("task")
    if not isinstance(pools, dict) or not isinstance(task, dict):
        raise ClusterError(f"{source} has no 'cluster' or no 'task': {_short(text)}.")
    unknown = sorted(set(pools) - set(_POOLS))
    if unknown:
        raise ClusterError(
            f"{source}: {', '.join(unknown)} has no part in a training with mirrored workers; the "
            f"pools are {', '.join(_POOLS)}."
        )
    kind = task.get("type")
    return check_cluster(
        {
            "cluster": {_POOLS[pool]: addresses for pool, addresses in pools.items()},
            "task": {
                "type": _POOLS.get(kind, kind) if isinstance(kind, str) else kind,
                "index": task.get("index"),
            },
        },
        source,
    )


def _from_jobset(environ):
    """Returns the cluster of a JobSet: its pods have names that their index tells.

    Source: the JobSet API, `network.enableDNSHostnames`:
    <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>, the subdomain being the JobSet's.
    """
    missing = [name for name in _JOBSET if not environ.get(name)]
    if missing:
        raise ClusterError(
            f"JOBSET_NAME is set and {', '.join(missing)} is not: launch/jobset.py writes all of "
            f"{', '.join(_JOBSET)} into the pods."
        )
    name, job = environ["JOBSET_NAME"], environ["REPLICATED_JOB_NAME"]
    workers = _integer(environ, "JOBSET_WORKERS", minimum=1)
    return check_cluster(
        {
            "cluster": {
                "worker": [f"{name}-{job}-0-{pod}.{name}:{PORT}" for pod in range(workers)],
            },
            "task": {"type": "worker", "index": _integer(environ, "JOB_COMPLETION_INDEX")},
        },
        "The JobSet's index",
    )


def _from_slurm(environ):
    """Returns the cluster of a Slurm step, one worker a task, in blocks (srun's default).

    TensorFlow's `SlurmClusterResolver` sorts hosts as texts: n10 of n[1-10] comes second, and
    ranks are mixed up. It fails on hosts without a GPU too. Here hosts keep Slurm's order.
    """
    hosts = expand_hosts(environ["SLURM_STEP_NODELIST"])
    tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(tasks) != len(hosts):
        raise ClusterError(
            f"SLURM_STEP_TASKS_PER_NODE speaks of {len(tasks)} hosts, SLURM_STEP_NODELIST of "
            f"{len(hosts)}: start the workers by srun."
        )
    if max(tasks) > 64:
        raise ClusterError(f"SLURM_STEP_TASKS_PER_NODE: {max(tasks)} workers on one host.")
    job = _integer(environ, "SLURM_JOB_ID")
    # 64 ports a job, so that jobs that share a host rarely meet.
    first = _SLURM_PORTS.start + (job * 64) % (len(_SLURM_PORTS) - 64)
    placed = [
        (host, first + k) for host, count in zip(hosts, tasks, strict=True) for k in range(count)
    ]
    rank = _integer(environ, "SLURM_PROCID")
    here = environ.get("SLURMD_NODENAME")
    if here and rank < len(placed) and placed[rank][0] != here:
        raise ClusterError(
            f"Slurm runs task {rank} on {here}, and in blocks it would be on {placed[rank][0]}: "
            "start the workers by srun --distribution=block."
        )
    return check_cluster(
        {
            "cluster": {"worker": [f"{host}:{port}" for host, port in placed]},
            "task": {"type": "worker", "index": rank},
        },
        "Slurm's step",
    )


def expand_hosts(text):
    """Returns the hosts of a Slurm list, in its order.

    Args:
        text: str such as "n[1-2,7],m5".

    Returns:
        list of str, such as ["n1", "n2", "n7", "m5"].

    Raises:
        ClusterError: if it is malformed.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not parts or ",".join(parts) != text:
        raise ClusterError(f"SLURM_STEP_NODELIST = {text!r} is no list such as n[1-2,7],m5.")
    hosts = []
    for part in parts:
        found = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]*)\]([^\[\]]*))?", part)
        if not found:
            raise ClusterError(f"SLURM_STEP_NODELIST: {part!r} has more than one range.")
        prefix, ranges, suffix = found.groups()
        numbers = [""] if ranges is None else _expand_ranges(ranges, part)
        hosts += [f"{prefix}{number}{suffix or ''}" for number in numbers]
    return hosts


def _expand_ranges(text, part):
    numbers = []
    for each in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", each)
        first, last = (found[1], found[2] or found[1]) if found else ("1", "0")
        if not 0 <= int(last) - int(first) < 10000:
            raise ClusterError(f"SLURM_STEP_NODELIST: {part!r} has no range such as [1-2,7].")
        numbers += [str(k).zfill(len(first)) for k in range(int(first), int(last) + 1)]
    return numbers


def _tasks_per_node(text):
    """Returns the tasks of each host of a Slurm list: "3(x2),1" is [3, 3, 1]."""
    tasks = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:\(x(\d{1,4})\))?", part)
        if not found:
            raise ClusterError(f"SLURM_STEP_TASKS_PER_NODE = {text!r} is no list such as 2(x3),1.")
        tasks += [int(found[1])] * int(found[2] or 1)
    return tasks


def _integer(environ, name, minimum=0):
    text = environ.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < minimum:
        raise ClusterError(f"{name} = {text!r} is not an integer of {minimum} or more.")
    return int(text)


def _short(value):
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:80] + "…"
