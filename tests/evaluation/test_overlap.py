"""Threads beside the caller: order, bounds, errors and the end."""

import threading
import time

import pytest

from rethink_tf.evaluation import overlap


def test_results_come_in_the_order_of_the_calls():
    def work(number):
        time.sleep(0.01 * (number % 3))
        return number

    results = []
    with overlap.InOrder(work, num_workers=3, max_waiting=5) as background:
        for number in range(20):
            results += background.put(number)
        results += background.finish()
    assert results == list(range(20))
    assert background.finish() == []


def test_the_caller_goes_on_while_a_call_runs():
    go_on = threading.Event()
    with overlap.InOrder(go_on.wait, num_workers=1) as background:
        assert background.put(5) == []
        go_on.set()
        assert background.finish() == [True]


def test_unfinished_calls_are_bounded():
    lock, unfinished, most = threading.Lock(), 0, 0

    def work():
        nonlocal unfinished
        time.sleep(0.002)
        with lock:
            unfinished -= 1

    with overlap.InOrder(work, num_workers=2, max_waiting=4) as background:
        for _ in range(30):
            with lock:
                unfinished += 1
                most = max(most, unfinished)
            background.put()
    assert most <= 5  # four, and the one that is put


def test_an_error_reaches_the_caller_and_ends_the_work():
    done = []

    def work(number):
        if number == 3:
            raise ValueError("image 3 has no size")
        time.sleep(0.005)
        done.append(number)

    before = threading.active_count()
    with (
        pytest.raises(ValueError, match="image 3 has no size"),
        overlap.InOrder(work, num_workers=1, max_waiting=2) as background,
    ):
        for number in range(100):
            background.put(number)
    assert done[:3] == [0, 1, 2] and len(done) < 10
    assert threading.active_count() == before


def test_an_interruption_drops_what_has_not_begun():
    done = []

    def work(number):
        time.sleep(0.02)
        done.append(number)

    with (
        pytest.raises(KeyboardInterrupt),
        overlap.InOrder(work, num_workers=1, max_waiting=50) as background,
    ):
        for number in range(50):
            background.put(number)
        raise KeyboardInterrupt
    assert len(done) < 10
