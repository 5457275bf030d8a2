"""Reading on other hosts: for accelerators that are faster than their own host reads.

Each service is a dispatcher of tf.data's service with one worker (`rethink_tf.data.serve`). The
plan stays where it is drawn: a run serves the slots of its steps, a few kilobytes each, by a
dispatcher and a worker of its own process; the services fetch them, read and decode the records,
and the run fetches the batches. Of W services, number i reads the steps i, i + W, i + 2W, ..., and
the run takes them in turns, so the batches and their order are those of a run that reads for
itself. (Workers of one dispatcher would share or repeat the steps as they come; that is noticed and
refused.)
"""

import contextlib
import functools
import os
import socket
import threading
import time

import tensorflow as tf
from absl import logging

from rethink_tf import exit_codes
from rethink_tf.data.input.reading import DataError

_ONE_TRY = 5.0  # seconds


class ServiceLostError(RuntimeError):
    """A service no longer knows of this run's batches: its process was started again."""


def start_server(host: str, port: int):
    """Starts a dispatcher at a port, and its one worker at the next.

    Args:
        host: the name or address by which runs reach this process.
        port: of the dispatcher; 0 for two free ones.

    Returns:
        (dispatcher, worker) of `tf.data.experimental.service`; both end when they are let go.

    Raises:
        ValueError: if a port is taken.
    """
    for each in (port, port and port + 1):
        try:
            # gRPC shares a port with another server in silence.
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", each))
        except OSError as error:
            raise ValueError(f"port {each} cannot be served: {error}") from error
    service = tf.data.experimental.service
    # The job of a run that was killed goes within minutes: its batches fill the worker's memory.
    times = {"job_gc_check_interval_ms": 30_000, "job_gc_timeout_ms": 30_000}
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=port, **times))
    worker = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=dispatcher.target.split("://")[1],
            worker_address=f"{_bracketed(host)}:%port%",
            port=port and port + 1,
        )
    )
    return dispatcher, worker


def read_remotely(make_slots, read_batches, services, batches_a_step, minutes, counters):
    """Batches of all steps, read by services, in the order of the plan.

    Args:
        make_slots: callable of (first, stride) that returns the data set of the slots of every
            stride-th step from the first on; "number" counts them.
        read_batches: callable from that data set to one of (batch, number, ...), tensors and
            dicts, whose number is that of the step a row.
        services: "host:port" each.
        batches_a_step: how many batches follow from the slots of a step.
        minutes: how long to wait for a service, and later for a batch.
        counters: `reading.PipelineCounters`, which learns how to wait, and of an error.

    Raises:
        DataError: if a service does not answer.
        ServiceLostError: from `counters.waiting`.
    """
    service = tf.data.experimental.service
    off = service.ShardingPolicy.OFF
    # Images hardly shrink.
    options = {"compression": None, "max_outstanding_requests": 2 * batches_a_step}

    def stream(first, address):
        own_host = _own_host(address, minutes)
        slots = make_slots(first, len(services))
        slots = slots.apply(service.distribute(off, _slot_address(own_host), **options))
        batches = read_batches(slots).prefetch(2)
        batches = batches.apply(service.distribute(off, f"grpc://{address}", **options))
        check = _order_check(address, batches_a_step, counters)
        return batches.enumerate().map(check)

    streams = [stream(first, address) for first, address in enumerate(services)]
    counters.waiting = functools.partial(_end_without, services, minutes)
    turns = tf.data.Dataset.range(len(streams) * batches_a_step).repeat()
    return tf.data.Dataset.choose_from_datasets(streams, turns.map(lambda k: k // batches_a_step))


def _order_check(address, batches_a_step, counters):
    def refuse():
        counters.error = counters.error or DataError(
            f"the service at {address} (Pipeline.services) gave batches out of order: its "
            "dispatcher must have one worker, as python -m rethink_tf.data.serve starts it"
        )
        raise counters.error

    def check(position, parts):
        is_next = tf.reduce_all(parts[1] == position // batches_a_step)
        checked = tf.cond(
            is_next,
            lambda: tf.constant(0, tf.int64),
            lambda: tf.numpy_function(refuse, [], tf.int64),
        )
        with tf.control_dependencies([checked]):
            return tf.nest.map_structure(tf.identity, parts)

    return check


@functools.cache
def _slot_servers(host):
    """Starts this process's own service, which stays until its end.

    TensorFlow's stop holds Python's lock while it waits for Python to end a drawing.
    """
    return start_server(host, 0)


def _slot_address(host):
    """Returns where this process serves slots, as the host of a service reaches it."""
    dispatcher, _ = _slot_servers(host)
    return f"grpc://{_bracketed(host)}:{dispatcher.target.rsplit(':', 1)[1]}"


def _own_host(address, minutes):
    """Returns this host's address as a service sees it, once the service answers."""
    deadline, is_said = time.monotonic() + 60 * minutes, False
    while True:
        try:
            with _connect(address) as connection:
                return connection.getsockname()[0]
        except OSError as error:
            if time.monotonic() > deadline:
                raise DataError(
                    f"{address} of Pipeline.services does not answer ({error}): start it there by "
                    f"python -m rethink_tf.data.serve --port={address.rsplit(':', 1)[1]}"
                ) from error
        if not is_said:
            logging.info("Waiting up to %g minutes for the service at %s.", minutes, address)
            is_said = True
        time.sleep(1)


@contextlib.contextmanager
def _end_without(services, minutes):
    """Ends the process if what is done within, the wait for a batch, takes too long.

    TensorFlow would wait for ever, in C++, where no exception reaches it. What it raises if a
    service was started again becomes `ServiceLostError`.
    """

    def end():
        silent = [address for address in services if not _answers(address)]
        logging.error(
            "No batch came from Pipeline.services for %g minutes: %s. This process ends without "
            "a checkpoint; the same command goes on from the newest one.",
            minutes,
            f"{', '.join(silent)} does not answer"
            if silent
            else f"{', '.join(services)} answer, and their logs may say more",
        )
        os._exit(exit_codes.AGAIN)

    timer = threading.Timer(60 * minutes, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (tf.errors.NotFoundError, tf.errors.UnavailableError) as error:
        raise ServiceLostError(
            f"A service of {', '.join(services)} (Pipeline.services) was started again and no "
            "longer knows of this run"
        ) from error
    finally:
        timer.cancel()


def _answers(address):
    try:
        _connect(address).close()
    except OSError:
        return False
    return True


def _connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_ONE_TRY)


def _bracketed(host):
    return f"[{host}]" if ":" in host else host
