"""N workers of one command on the loopback, under a supervisor that starts them again.

    launch/local_workers.sh 2 -- python -m rethink_tf.train --gin_file=quickstart.gin …

Each worker gets TF_CONFIG with free ports. When one is killed or ends with 75
(`rethink_tf.exit_codes`), the others are stopped and all start again, each time with fresh ports.
Any other code than 0 stops the others and ends the job with that code. SIGTERM and SIGINT go to the
workers, and the job ends with what they say. Worker 0 writes to the terminal, the others to files.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

from rethink_tf import exit_codes

_POLL_SECONDS = 0.05


class Supervisor:
    """The workers of a job, from their start to their end."""

    def __init__(self, command, count, logs, grace, keep_cluster=False):
        """Takes the job.

        Args:
            command: list of str.
            count: int, workers.
            logs: `pathlib.Path`, the folder of the logs of workers 1 and on.
            grace: float, seconds that a stopped worker has to save before it is killed.
            keep_cluster: bool, whether TF_CONFIG stays what it is: the one worker here is one of a
                cluster of others.
        """
        self._keep_cluster = keep_cluster
        self._command = command
        self._count = count
        self._logs = logs
        self._grace = grace
        self._signals = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: self._signals.append(got))

    def run(self, restarts, backoff):
        """Runs the job to its end.

        Args:
            restarts: int, how often the workers are started again.
            backoff: float, seconds before the first restart; they double up to 60.

        Returns:
            int, the exit code.
        """
        for attempt in range(restarts + 1):
            codes = self._run_once()
            decided = decide(codes)
            if decided is not None or self._signals:
                return exit_codes.AGAIN if decided is None else decided
            if attempt == restarts:
                break
            pause = min(backoff * 2**attempt, 60.0)
            _say(f"restart {attempt + 1} of {restarts} in {pause:g} s")
            if self._interrupted_within(pause):
                return exit_codes.AGAIN
        _say(
            f"{restarts} restarts are used up; the same command goes on from the newest checkpoint"
        )
        return exit_codes.AGAIN

    def _run_once(self):
        """Runs all workers until each has ended, and returns their exit codes."""
        workers = [None] * self._count
        try:
            addresses = free_addresses(self._count)
            for index in range(self._count):
                workers[index] = self._start(addresses, index)
            _say(f"workers run as processes {', '.join(str(each.pid) for each in workers)}")
            self._wait(workers)
        finally:
            # Also when a worker's command cannot be started: none is left behind.
            for worker in filter(None, workers):
                _send(worker, signal.SIGKILL)
        return [worker.returncode for worker in workers]

    def _start(self, addresses, index):
        environment = dict(os.environ)
        if not self._keep_cluster:
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
        output = None if index == 0 else self._log(index).open("ab")
        try:
            return subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                # Ctrl-C in a terminal reaches the supervisor alone, which passes it on once.
                start_new_session=True,
            )
        finally:
            if output:
                output.close()

    def _wait(self, workers):
        """Waits for the end of all workers; the first that fails makes the others stop."""
        kill_at, said, passed_on = None, set(), 0
        while any(worker.poll() is None for worker in workers):
            while passed_on < len(self._signals):
                for worker in workers:
                    _send(worker, self._signals[passed_on])
                passed_on += 1
                kill_at = kill_at or time.monotonic() + self._grace
            self._report(workers, said)
            if kill_at is None and said:
                kill_at = time.monotonic() + self._grace
                for worker in workers:
                    _send(worker, signal.SIGTERM)
            if kill_at and time.monotonic() > kill_at:
                for index, worker in enumerate(workers):
                    if worker.poll() is None:
                        _say(f"worker {index} did not stop within {self._grace:g} s and is killed")
                        _send(worker, signal.SIGKILL)
                kill_at = time.monotonic() + self._grace
            time.sleep(_POLL_SECONDS)
        self._report(workers, said)

    def _report(self, workers, said):
        """Says once of each worker that failed how it ended."""
        for index, worker in enumerate(workers):
            code = worker.poll()
            if code and index not in said:
                said.add(index)
                how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
                _say(f"worker {index} {how}{self._last_line(index)}")

    def _last_line(self, index):
        if index == 0:
            return ""
        lines = self._log(index).read_text(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]}; all of it: {self._log(index)})" if lines else ""

    def _log(self, index):
        return self._logs / f"worker-{index}.log"

    def _interrupted_within(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._signals:
            time.sleep(_POLL_SECONDS)
        return bool(self._signals)


def decide(codes):
    """Returns how a job ends, from the exit codes of all its workers.

    Args:
        codes: list of int, as of `subprocess`: of a worker that a signal killed, -signal (or
            128 + signal, if a shell stood between).

    Returns:
        int, the job's exit code; or None, if the workers must start again. A worker that is refused
        or stopped by Ctrl-C decides over others that were lost: starting again repeats it.
    """
    final = [code for code in codes if code != exit_codes.DONE and not _starts_again(code)]
    if final:
        return exit_codes.REFUSED if exit_codes.REFUSED in final else final[0]
    return None if any(codes) else exit_codes.DONE


def _starts_again(code):
    by_signal = code < 0 or 128 < code <= 128 + 64
    return code == exit_codes.AGAIN or (by_signal and code not in (130, -signal.SIGINT))


def _send(worker, number):
    """Sends a signal to a worker and its children, if it runs; SIGKILL waits for its end."""
    if worker.poll() is None:
        os.killpg(worker.pid, number)
    if number == signal.SIGKILL:
        worker.wait()


def free_addresses(count):
    """Returns addresses of the loopback whose ports nobody has, such as "127.0.0.1:34567"."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def _say(text):
    print(f"local_workers: {text}", file=sys.stderr, flush=True)


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="launch/local_workers.sh",
        description="Runs N workers of one command on this machine; a lost one starts all again.",
    )
    parser.add_argument("workers", type=int, metavar="N", help="how many workers")
    parser.add_argument("command", nargs="+", metavar="-- command", help="what each worker runs")
    parser.add_argument("--restarts", type=int, default=10, help="at most so many (%(default)s)")
    parser.add_argument(
        "--backoff", type=float, default=1.0, help="seconds before the first (%(default)s)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=90.0,
        help="seconds that a stopped worker has to save before it is killed (%(default)s)",
    )
    parser.add_argument(
        "--keep_cluster",
        action="store_true",
        help="with N = 1: TF_CONFIG stays as it is, for one worker of a cluster of others",
    )
    parser.add_argument("--logs", help="folder of the other workers' logs (a temporary one)")
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.restarts < 0:
        parser.error("N is 1 or more, and --restarts 0 or more")
    if options.keep_cluster and options.workers != 1:
        parser.error("--keep_cluster is for one worker: N = 1")
    return options


def main(arguments=None):
    """Runs the command line, and returns its exit code."""
    options = _parse(arguments)
    logs = pathlib.Path(options.logs or tempfile.gettempdir())
    if options.workers > 1:
        logs = logs if options.logs else pathlib.Path(tempfile.mkdtemp(prefix="local_workers_"))
        logs.mkdir(parents=True, exist_ok=True)
        _say(f"worker 0 writes here, the others into {logs}/worker-*.log")
    supervisor = Supervisor(
        options.command, options.workers, logs, options.grace, options.keep_cluster
    )
    try:
        return supervisor.run(options.restarts, options.backoff)
    except OSError as error:
        _say(f"error: the workers cannot be started: {error}")
        return exit_codes.REFUSED


if __name__ == "__main__":
    sys.exit(main())
