"""Evaluations beside training, by processes of their own."""

import json
import os

from experiment_runs import finish, read_metrics, read_until, start, tiny

from rethink_tf import exit_codes, locking

PARAMS = ["STEPS=6", "run.checkpoint_every=2", "run.keep_newest=10"]


def test_a_process_evaluates_each_checkpoint_of_another_that_trains(tmp_path):
    params = tiny(tmp_path / "run", tmp_path / "data", *PARAMS)
    # Before there is a folder.
    with start("quickstart.gin", params, "evaluate", flags=["--follow"]) as follower:
        read_until(follower, "Waiting for the first checkpoint")
        finish("quickstart.gin", params, mode="train")
        read_until(follower, "Evaluated 4 images at step 2")
        output = follower.stdout.read()
        assert follower.wait() == 0, output
    steps = [line["step"] for line in read_metrics(tmp_path / "run")]
    assert steps == [2, 4, 6]
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    scores = {line["step"]: line["mask/AP"] for line in read_metrics(tmp_path / "run")}
    assert best["score"] == max(scores.values()) and scores[best["step"]] == best["score"]

    # While one process evaluates each checkpoint, no other does.
    lock = locking.FolderLock(str(tmp_path / "run" / "evaluation.lock"), "evaluates")
    with lock, start("quickstart.gin", params, "evaluate", flags=["--follow"]) as second:
        output = second.stdout.read()
    assert second.returncode == exit_codes.REFUSED, output
    assert output.splitlines()[-1].startswith(f"error: Process {os.getpid()} on ")


def test_training_goes_on_while_its_evaluations_run_beside_it(tmp_path):
    params = tiny(tmp_path / "run", tmp_path / "data", *PARAMS)
    output = finish("quickstart.gin", [*params, "run.evaluate_in_background=True"])
    assert "Evaluating beside training, on the CPU" in output
    assert output.count("Evaluated 4 images at step") == 3
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 4, 6]
