"""A run that is told to stop: by a signal, or by the cloud that takes its machine away.

The loops ask after each step and each batch of an evaluation, and then end in a way that loses
nothing: the run saves, and its process ends with a code of its own (`exit_codes`).
"""

import json
import os
import pathlib
import signal
import socket
import threading
import time

from absl import logging
from tensorflow.python.distribute.failure_handling import failure_handling_util

from rethink_tf import exit_codes

# Workers ask each other about this often whether one was told to stop: a signal may reach one only.
SECONDS_BETWEEN_EXCHANGES = 10.0
_SECONDS_BETWEEN_REQUESTS = 30.0  # to Google's metadata server, which tells an hour ahead
_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")


class Stopped(Exception):
    """The run was told to stop, and its loop has ended after a whole step.

    Attributes:
        exit_code: int, of the process.
    """

    def __init__(self, reason):
        """Takes what told it, such as "SIGTERM"."""
        super().__init__(reason)
        self.exit_code = (
            exit_codes.INTERRUPTED if reason == signal.SIGINT.name else exit_codes.AGAIN
        )


class StopRequest:
    """Listens, while its context is open, for what tells this run to stop.

    A thread reads the signals, because Python's handlers wait for the main thread, which may be in
    a step of TensorFlow. So a second signal ends the process at once whatever it does.
    """

    def __init__(self, workers=None):
        """Sets up; nothing is listened to yet.

        Args:
            workers: `Workers`, which all stop after the same step, or None for one process.
        """
        self._workers, self._reason, self._is_open = workers, "", False
        self._agreed, self._asked, self._next, self._last = "", 0, 1, None

    def __enter__(self):
        self._is_open = True
        # Python delivers signals to the main thread alone.
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._listen()
        self._closed = threading.Event()
        if _is_on_google():
            threading.Thread(target=self._watch_google, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._is_open = False
        self._closed.set()
        if self._listens:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._handlers_before.items():
                signal.signal(number, handler)
            self._sender.close()  # which ends the thread
        return False

    def requested(self):
        """Returns what tells the run to stop, all workers the same; "" to go on.

        Every worker must call it after the same steps.
        """
        if not self._is_open:
            return ""
        if self._workers is None:
            return self._reason
        self._asked += 1
        if not self._agreed and self._asked >= self._next:
            self._exchange()
        return self._agreed

    @property
    def reason(self):
        """What told this process alone to stop; "" for nothing."""
        return self._reason

    def check(self):
        """Raises `Stopped` if the run is told to stop; as of `requested`."""
        if reason := self.requested():
            raise Stopped(reason)

    def _exchange(self):
        found = [
            json.loads(text)
            for text in self._workers.exchange(json.dumps([self._reason, time.monotonic()]))
        ]
        self._agreed = next((reason for reason, _ in found if reason), "")
        # By one worker's clock, so that all count the same number of steps.
        now, steps = found[0][1], 1
        if self._last:
            asked, then = self._last
            since = max(self._asked - asked, 1)
            rate = since / max(now - then, 1e-6)
            steps = int(min(max(SECONDS_BETWEEN_EXCHANGES * rate, 1), 2 * since))
        self._last, self._next = (self._asked, now), self._asked + steps

    def _listen(self):
        receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._handlers_before = {
            number: signal.signal(number, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._read_signals, args=(receiver,), daemon=True).start()

    def _read_signals(self, receiver):
        with receiver:
            while data := receiver.recv(1):
                number = data[0]
                if number not in (signal.SIGTERM, signal.SIGINT):
                    continue  # of others, whose handlers Python calls as ever
                if self._reason:
                    logging.warning("A second signal: ending at once, without a checkpoint.")
                    os._exit(128 + number)
                self._request(signal.Signals(number).name)

    def _request(self, reason):
        self._reason = reason
        logging.warning(
            "%s: the run ends after this step, with a checkpoint. A second signal ends it at once.",
            reason,
        )

    def _watch_google(self):
        """Asks Google Compute Engine whether the machine is about to be taken away."""
        is_known_to_fail = False
        while not self._closed.is_set():
            try:
                if failure_handling_util.termination_watcher_function_gce():
                    self._request("Google Compute Engine's host maintenance")
                    return
            except (OSError, ValueError) as error:
                if not is_known_to_fail:
                    logging.warning("The metadata server does not answer: %s.", error)
                is_known_to_fail = True
            self._closed.wait(_SECONDS_BETWEEN_REQUESTS)


def _is_on_google():
    """Whether this machine is one of Google Compute Engine, Cloud TPU's included."""
    # The variable of Google's own clients names another server.
    if os.environ.get("GCE_METADATA_IP"):
        return True
    try:
        return "Google" in _PRODUCT.read_text()
    except OSError:
        return False
