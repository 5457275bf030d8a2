"""Checks jobs with Vertex AI's own types, and submits them in order of what they wait for."""

import graphlib
import json
import time

from launch.machines import LaunchError

_POLL_SECONDS = 60.0


def check(kind, job):
    """Returns a job as the library's own message.

    Args:
        kind: "CustomJob" or "HyperparameterTuningJob".
        job: dict.

    Raises:
        LaunchError: if the library is not installed, or does not take the job.
    """
    try:
        from google.cloud.aiplatform_v1 import types
        from google.protobuf import json_format
    except ImportError as error:
        raise LaunchError(
            f"Vertex AI's library is missing ({error}): pip install -e '.[vertex]'"
        ) from error
    message = getattr(types, kind)()
    try:
        json_format.ParseDict(job, message._pb)
    except json_format.ParseError as error:
        raise LaunchError(
            f"Vertex AI's types refuse the job: {str(error).splitlines()[0]}"
        ) from error
    return message


def as_json(message):
    """Returns a message as the dict of its JSON."""
    from google.protobuf import json_format

    return json_format.MessageToDict(message._pb)


def read_jobs(path):
    """Returns a study's jobs, each after those that it waits for.

    Args:
        path: str, JSON: a list of {"name": str, "gin_files": [str], "gin_params": [str],
            "after": [names]}; all but the name may be missing.

    Returns:
        list of such dicts.

    Raises:
        LaunchError: if the file does not say that, or jobs wait for each other.
    """
    jobs = read_json(path)
    if not isinstance(jobs, list) or not jobs:
        raise LaunchError(f"{path}: not a list of jobs.")
    by_name = {}
    for job in jobs:
        job = job if isinstance(job, dict) else {}
        name = job.get("name")
        lists = {key: job.get(key, []) for key in ("gin_files", "gin_params", "after")}
        if not isinstance(name, str) or not name or not all(map(_are_texts, lists.values())):
            raise LaunchError(
                f'{path}: {json.dumps(job)[:80]} is no job such as {{"name": "scratch-2x", '
                '"gin_params": ["SCHEDULE=2"], "after": ["other"]}.'
            )
        if name in by_name:
            raise LaunchError(f"{path}: two jobs are named {name!r}.")
        by_name[name] = {"name": name} | lists
    for job in by_name.values():
        for name in job["after"]:
            if name not in by_name:
                raise LaunchError(f"{path}: {job['name']!r} waits for {name!r}, which is no job.")
    try:
        order = graphlib.TopologicalSorter({k: job["after"] for k, job in by_name.items()})
        return [by_name[name] for name in order.static_order()]
    except graphlib.CycleError as error:
        raise LaunchError(
            f"{path}: jobs wait for each other: {', '.join(error.args[1])}."
        ) from error


def read_json(path):
    """Returns what a JSON file says.

    Raises:
        LaunchError: if it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(f"{path} cannot be read as JSON: {error}") from error


def submit(kind, planned, project, region):
    """Submits jobs, each when those that it waits for have succeeded.

    Args:
        kind: as of `check`.
        planned: list of (dict with "name" and "after", message), in the order of `read_jobs`.
        project: str.
        region: str.

    Returns:
        int, an exit code: 1 if a job failed that others wait for.

    Raises:
        LaunchError: if project or region are not given, or Vertex AI refuses a job.
    """
    if not project or not region:
        raise LaunchError("Give --project and --region, or GOOGLE_CLOUD_PROJECT and _REGION.")
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import aiplatform_v1

    endpoint = {"api_endpoint": f"{region}-aiplatform.googleapis.com"}
    try:
        client = aiplatform_v1.JobServiceClient(client_options=endpoint)
        return run_in_order(
            Jobs(client, kind, f"projects/{project}/locations/{region}"), planned, time.sleep
        )
    except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
        raise LaunchError(f"Vertex AI: {str(error).splitlines()[0]}") from error


class Jobs:
    """The jobs of a project and region."""

    def __init__(self, client, kind, parent):
        """Takes a `JobServiceClient`, the kind of the jobs, and the parent's resource name."""
        self._client = client
        self._parent = parent
        self._is_custom = kind == "CustomJob"

    def create(self, message):
        """Submits a job, and returns its resource name."""
        if self._is_custom:
            return self._client.create_custom_job(parent=self._parent, custom_job=message).name
        return self._client.create_hyperparameter_tuning_job(
            parent=self._parent, hyperparameter_tuning_job=message
        ).name

    def state(self, name):
        """Returns a job's state, such as "SUCCEEDED"."""
        found = self._client.get_custom_job(name=name)
        return found.state.name.removeprefix("JOB_STATE_")


def run_in_order(jobs, planned, wait):
    """Submits all that nothing holds back, and waits while others have to.

    Args:
        jobs: `Jobs`.
        planned: as of `submit`.
        wait: callable taking seconds.

    Returns:
        int, an exit code.
    """
    submitted, done, left = {}, set(), list(planned)
    while left:
        for job, message in [each for each in left if set(each[0]["after"]) <= done]:
            submitted[job["name"]] = jobs.create(message)
            print(f"submitted {message.display_name}: {submitted[job['name']]}", flush=True)
        left = [each for each in left if each[0]["name"] not in submitted]
        if not left:
            return 0
        awaited = {name for job, _ in left for name in job["after"]} & set(submitted) - done
        for name in sorted(awaited):
            state = jobs.state(submitted[name])
            if state in ("FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED"):
                names = ", ".join(job["name"] for job, _ in left)
                print(f"error: {name} is {state}; not submitted: {names}", flush=True)
                return 1
            if state == "SUCCEEDED":
                done.add(name)
        if not awaited & done:
            wait(_POLL_SECONDS)
    return 0


def _are_texts(value):
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
