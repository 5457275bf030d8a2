"""Tests of rethink_tf/data/input/service.py: real services, in processes of their own."""

import pathlib
import signal
import subprocess
import sys

import pytest
import tensorflow as tf
from drawn_records import SETTINGS, assert_same_batches
from experiment_runs import REPOSITORY, read_until, start, tiny

from launch.local_workers import free_addresses
from rethink_tf import exit_codes
from rethink_tf.data.input import service
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.input.reading import DataError, PipelineCounters, naming_errors
from rethink_tf.data.records import store


def start_service(address, stderr):
    port = address.rsplit(":", 1)[1]
    return subprocess.Popen(
        [sys.executable, "-m", "rethink_tf.data.serve", f"--port={port}", "--host=localhost"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """Returns [(process, address)] of two services."""
    addresses = free_addresses(2)
    # They write a line a second of each run that is lost: a pipe would fill up.
    with open(tmp_path_factory.mktemp("services") / "log.txt", "w") as log:
        processes = [start_service(address, log) for address in addresses]
        for process in processes:
            read_until(process, "Serving")
        yield list(zip(processes, addresses, strict=True))
        for process in processes:
            process.kill()
            process.communicate()


def batches_of(source, count, services=(), counters=None, start_step=0, **settings):
    pipeline = Pipeline(**SETTINGS | settings, services=services)
    context = tf.distribute.InputContext(num_replicas_in_sync=2)
    counters = counters or PipelineCounters()
    dataset = pipeline.training(source, [3], 4, 1, start_step, context, counters)
    return list(naming_errors(dataset.take(count), counters))


def test_batches_of_services_are_those_of_a_pipeline_without_in_the_same_order(drawn, services):
    addresses = [address for _, address in services]
    settings = {"copy_paste": True, "min_side": (20, 25, 30), "min_side_sampling": "choice"}
    local = batches_of(drawn, 20, start_step=5, **settings)

    assert_same_batches(local, batches_of(drawn, 20, addresses, start_step=5, **settings))


def test_what_services_skip_is_counted_by_the_run(drawn, services, tmp_path):
    copied = tmp_path / "records"
    copied.mkdir()
    for path in pathlib.Path(drawn).iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    index = store.load_index(str(copied))
    with open(index.paths[0], "r+b") as file:
        file.seek(index.offset[2] + 12)
        file.write(b"?" * 40)
    counters = [PipelineCounters(), PipelineCounters()]
    local = batches_of(index, 10, counters=counters[0])

    assert_same_batches(local, batches_of(index, 10, [services[0][1]], counters[1]))
    assert counters[1].skipped_by_record == counters[0].skipped_by_record
    assert counters[1].skipped_records >= 2


def test_workers_of_one_dispatcher_are_refused(drawn):
    dispatcher, worker = service.start_server("localhost", 0)
    target = dispatcher.target.split("://")[1]
    service_api = tf.data.experimental.service
    other = service_api.WorkerServer(service_api.WorkerConfig(dispatcher_address=target))

    # The second worker hands batches out once the dispatcher has told the run of it.
    with pytest.raises(DataError, match=f"service at {target} .* its dispatcher must have one"):
        batches_of(drawn, 100_000, [target])
    del other, worker


def test_a_service_that_is_not_there_is_named(drawn):
    [address] = free_addresses(1)

    with pytest.raises(DataError, match=f"{address} of Pipeline.services does not answer"):
        batches_of(drawn, 1, [address], service_minutes=0)
    with pytest.raises(ValueError, match="'host', must be a list such as"):
        Pipeline(services="host")


def test_a_run_whose_service_dies_ends_so_that_it_is_started_again(tmp_path, services):
    addresses = [address for _, address in services]
    params = ["STEPS=1000", f"Pipeline.services={addresses}", "Pipeline.service_minutes=0.2"]
    run = start("quickstart.gin", tiny(tmp_path / "run", tmp_path / "data", *params), "train")
    read_until(run, "step 6/1000")
    services[1][0].kill()
    output, _ = run.communicate(timeout=100)

    assert run.returncode == exit_codes.AGAIN, output
    silent = f"No batch came from Pipeline.services for 0.2 minutes: {addresses[1]} does not answer"
    assert silent in output and "Traceback" not in output


def test_a_service_ends_by_a_signal_and_names_a_port_that_is_taken(services):
    process, address = services[0]
    second = start_service(address, subprocess.STDOUT)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == exit_codes.REFUSED
    assert f"error: port {address.split(':')[1]} cannot be served" in output
    assert "Traceback" not in output

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
