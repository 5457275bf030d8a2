"""Plans and runs a study: arms x schedules x subsets of the data x seeds.

    python -m rethink_tf.study --gin_file=gin_configs/study_….gin --plan
    python -m rethink_tf.study --gin_file=gin_configs/study_….gin

Without --plan and --jobs the runs go one after the other, here, each a process of its own. The same
command goes on where it was stopped or killed.
"""

import dataclasses
import json
import os
import signal
import sys

import gin
from absl import app, flags

from rethink_tf import config, console, exit_codes, files, metrics_file
from rethink_tf.report import collecting
from rethink_tf.study import planning, progress, running, texts
from rethink_tf.study.settings import Study

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A gin file that binds Study; may be given several times."
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "A gin binding of the study that wins over the files, such as Study.seeds=(1,)"
)
_PLAN = flags.DEFINE_bool("plan", False, "Print every run, what it goes on from and what it costs.")
_JOBS = flags.DEFINE_string(
    "jobs", None, "Write the commands, and what each waits for, to this JSON file for a launcher."
)
_RATE = flags.DEFINE_float(
    "images_per_second",
    None,
    "Of a run, over all its devices. Default: what the study's runs had so far.",
    lower_bound=0,
)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices of a run, for the hours.", lower_bound=1)
_PRICE = flags.DEFINE_float("price", None, "Of a device and hour.", lower_bound=0)


def main(argv):
    """Parses the flags, and plans or runs."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    console.start()
    try:
        config.parse(_GIN_FILE.value, _GIN_PARAM.value)
        study = gin.get_configurable(Study)()
        config.check_all_used()
        runs = planning.make_plan(study)
        if _JOBS.value:
            files.write_whole(_JOBS.value, json.dumps(_jobs(runs), indent=1) + "\n")
            print(f"Wrote {len(runs)} jobs to {_JOBS.value}.")
        if _PLAN.value:
            print(_plan_text(study, runs))
        if _PLAN.value or _JOBS.value:
            return
        states = _run(study, runs)
    except (ValueError, TypeError, OSError, running.RunFailedError) as error:
        sys.exit(f"error: {error}")
    print(_plan_text(study, runs))
    if metrics_file.COLLAPSED in states:
        print("Collapsed runs are kept as they are; the report shows them.")


def _plan_text(study, runs):
    states = list(collecting.states_of(runs).values())
    rate = _RATE.value or progress.measured_rate(study.study_dir)
    return texts.plan_table(runs, states, rate, _DEVICES.value, _PRICE.value)


def _jobs(runs):
    """What `launch` reads: the command of each run, and what it waits for."""
    return [
        {
            "name": run.name,
            "gin_files": run.gin_files,
            "gin_params": run.gin_params,
            "after": [run.parent] if run.parent else [],
            "command": ["python", "-m", "rethink_tf.train", *run.flags],
        }
        for run in runs
    ]


def _run(study, runs):
    """Runs the study until its end or a signal, with a line of progress."""
    reasons = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # A second one ends the process at once; its run saves and ends by itself.
        signal.signal(number, lambda found, frame: (reasons.append(found), _restore_signals()))
    described = {
        "runs": [dataclasses.asdict(run) for run in runs],
        "references": study.references,
        "pretraining": study.pretraining,
        "init_checkpoints": study.init_checkpoints,
    }
    text = json.dumps(described, indent=1) + "\n"
    files.write_whole(os.path.join(study.study_dir, collecting.PLAN_FILE), text)
    shown = texts.ProgressLine()
    states = running.run_all(study, runs, lambda: bool(reasons), shown.show)
    shown.end()
    if reasons:
        is_interrupted = reasons[0] == signal.SIGINT
        print(
            f"Stopped by {signal.Signals(reasons[0]).name}. The same command goes on.",
            file=sys.stderr,
        )
        sys.exit(exit_codes.INTERRUPTED if is_interrupted else exit_codes.AGAIN)
    return states


def _restore_signals():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    app.run(main)
