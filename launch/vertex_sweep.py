"""Sweeps: Vertex AI tries values of gin bindings, and each trial reports a metric.

The sweep is a JSON file:
    {"metric": "box_AP", "goal": "MAXIMIZE", "max_trials": 12, "parallel_trials": 3,
     "parameters": {"RATE": {"min": 0.005, "max": 0.04, "scale": "log"},
                    "DEPTH": {"values": [50, 101]}, "NORM": {"categories": ["'gn'", "'bn'"]},
                    "SEED": {"integers": [0, 9]}}}
"""

from launch.machines import LaunchError
from launch.vertex_submission import read_json

_NEEDED = ("metric", "goal", "max_trials", "parallel_trials", "parameters")
_SCALES = {
    "linear": "UNIT_LINEAR_SCALE",
    "log": "UNIT_LOG_SCALE",
    "reverse_log": "UNIT_REVERSE_LOG_SCALE",
}


def read_sweep(path):
    """Returns the sweep of a JSON file; its form is above.

    Raises:
        LaunchError: if it cannot be read, or lacks something.
    """
    sweep = read_json(path)
    missing = [key for key in _NEEDED if not isinstance(sweep, dict) or not sweep.get(key)]
    if missing:
        raise LaunchError(f"{path} lacks {', '.join(missing)}; see docs/launching.md.")
    unknown = sorted(set(sweep) - set(_NEEDED))
    if unknown or sweep["goal"] not in ("MAXIMIZE", "MINIMIZE"):
        raise LaunchError(f"{path}: {', '.join(unknown) or 'goal: MAXIMIZE or MINIMIZE'}.")
    for key in ("max_trials", "parallel_trials"):
        if not isinstance(sweep[key], int) or sweep[key] < 1:
            raise LaunchError(f"{path}: {key} is not an integer of 1 or more.")
    if not isinstance(sweep["parameters"], dict):
        raise LaunchError(f"{path}: parameters is not an object of bindings.")
    return sweep


def build_tuning(job, sweep):
    """Returns a HyperparameterTuningJob as a dict.

    Args:
        job: dict, the CustomJob of a trial.
        sweep: as of `read_sweep`.

    Raises:
        LaunchError: if a parameter is not one of the four forms.
    """
    parameters = [_parameter(name, values) for name, values in sweep["parameters"].items()]
    for pool in job["job_spec"]["worker_pool_specs"]:
        container = pool["container_spec"]
        # Vertex AI adds --NAME=value for each parameter, which the trial turns into a binding.
        at = container["command"].index("rethink_tf.train")
        container["command"][at:] = ["launch.vertex_trial", f"--sweep_metric={sweep['metric']}"]
    return {
        "display_name": job["display_name"],
        "labels": job["labels"],
        "max_trial_count": sweep["max_trials"],
        "parallel_trial_count": sweep["parallel_trials"],
        "study_spec": {
            "metrics": [{"metric_id": metric_id(sweep["metric"]), "goal": sweep["goal"]}],
            "parameters": parameters,
        },
        "trial_job_spec": job["job_spec"],
    }


def metric_id(metric):
    """Returns the name that Vertex AI has for a metric: letters, digits and _."""
    return "".join(each if each.isalnum() else "_" for each in metric)


def _parameter(name, form):
    spec = {"parameter_id": name}
    form = form if isinstance(form, dict) else {}
    keys = set(form) - {"scale"}
    if keys == {"min", "max"} and _are_numbers([form["min"], form["max"]]):
        spec["double_value_spec"] = {"min_value": form["min"], "max_value": form["max"]}
    elif keys == {"integers"} and _are_numbers(form["integers"], 2):
        low, high = form["integers"]
        spec["integer_value_spec"] = {"min_value": str(low), "max_value": str(high)}
    elif keys == {"values"} and _are_numbers(form["values"]):
        spec["discrete_value_spec"] = {"values": form["values"]}
    elif keys == {"categories"} and isinstance(form["categories"], list):
        spec["categorical_value_spec"] = {"values": [str(each) for each in form["categories"]]}
    else:
        raise LaunchError(
            f"sweep: {name} is none of min and max, integers [low, high], values [numbers], "
            f"categories [texts]: {form}."
        )
    if form.get("scale"):
        if form["scale"] not in _SCALES:
            raise LaunchError(f"sweep: {name}: scale is one of {', '.join(_SCALES)}.")
        spec["scale_type"] = _SCALES[form["scale"]]
    return spec


def _are_numbers(values, count=None):
    numbers = isinstance(values, list) and all(type(each) in (int, float) for each in values)
    return numbers and bool(values) and (count is None or len(values) == count)
