"""The benchmark of what a long run holds: its samples and its slopes."""

import os

import pytest

from benchmarks import soak


def test_slopes_of_known_growth_leave_out_the_start():
    samples = [
        # The first fifth grows for reasons of its own.
        {"step": step, "memory MB": 500 + step / 100, "threads": 12, "file descriptors": 40}
        if step >= 200
        else {"step": step, "memory MB": step, "threads": step, "file descriptors": step}
        for step in range(0, 1001, 50)
    ]
    memory, threads, _ = soak.fit(samples, 1000)
    assert memory["per 1,000 steps"] == pytest.approx(10)
    assert memory["in 540,000"] == pytest.approx(5400)
    assert (memory["least"], memory["most"]) == (502, 510)
    assert threads["per 1,000 steps"] == pytest.approx(0, abs=1e-9)


def test_a_sample_is_of_the_process_and_none_of_one_that_ended():
    before = soak.sample(os.getpid())
    with open(os.devnull), open(os.devnull):
        assert soak.sample(os.getpid())["file descriptors"] == before["file descriptors"] + 2
    assert before["memory MB"] > 5 and before["threads"] >= 1
    assert soak.sample(2**22 + 1) is None
