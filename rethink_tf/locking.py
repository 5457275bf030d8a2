"""Locks on a run's folder: one process trains into it, and a killed one leaves no lock behind.

On a local disk the operating system holds the lock, and drops it with the process. Elsewhere (gs://,
or a file system without locks) a file is a lease, which its owner renews and others watch. An
owner that could not renew it, and finds it taken over, ends its process: else two write one folder.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid

from absl import logging

from rethink_tf import exit_codes, files

TRAINING_LOCK = "training.lock"  # Of a run, held by the process that trains.
RENEWED_EVERY = 20.0  # seconds
# A lease that was not renewed for so long is nobody's: its process died, or its machine.
STALE_AFTER = 120.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """A lock that one process at a time holds."""

    def __init__(self, path, use, renewed_every=RENEWED_EVERY, stale_after=STALE_AFTER):
        """Takes what is to be locked; nothing is locked yet.

        Args:
            path: str, the lock's file, in the folder that it locks.
            use: str, what the owner does there, such as "trains".
            renewed_every: float, seconds from one renewal of a lease to the next.
            stale_after: float, seconds without a renewal after which a lease is taken over.
        """
        self._path, self._use = path, use
        self._renewed_every, self._stale_after = renewed_every, stale_after
        self._descriptor, self._closed, self._made = None, threading.Event(), []
        self._owner = {
            "id": uuid.uuid4().hex,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }

    def __enter__(self):
        """Locks the folder, which is made where it is missing.

        Raises:
            ValueError: if another process holds the lock, naming it.
        """
        if files.is_remote(self._path):
            self._lease()
            return self
        self._make_folder()
        try:
            self._lock()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._lease()
        return self

    def __exit__(self, *error):
        self._closed.set()
        if self._descriptor is None:
            self._renewing.join()
            if self._read().get("id") == self._owner["id"]:
                files.remove_if_there(self._path)
        else:
            # Before the lock is dropped: who gets it on a removed file asks for the new one.
            files.remove_if_there(self._path)
            os.close(self._descriptor)
        # A refused experiment leaves nothing behind.
        for folder in self._made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _make_folder(self):
        folder = os.path.dirname(os.path.abspath(self._path))
        missing = folder
        while not os.path.exists(missing):
            self._made.append(missing)
            missing = os.path.dirname(missing)
        os.makedirs(folder, exist_ok=True)

    def _lock(self):
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(descriptor, self._path):
                    break
            except BlockingIOError:
                os.close(descriptor)
                self._refuse()
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)  # Its owner removed it in between.
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(self._owner).encode())
        self._descriptor = descriptor

    def _lease(self):
        found, seen = self._read(), time.monotonic()
        if found.get("id") and time.time() - found.get("renewed", 0) < 2 * self._stale_after:
            logging.info(
                "%s: waiting at most %.0f s to see whether its owner, process %s on %s, lives.",
                self._path,
                self._stale_after,
                found.get("process"),
                found.get("host"),
            )
            # By our own clock alone: those of two machines may differ.
            while found.get("id") and time.monotonic() - seen < self._stale_after:
                time.sleep(self._renewed_every / 4)
                if (now := self._read()) != found and now:
                    self._refuse()
                found = now
        self._renew()
        time.sleep(self._renewed_every / 10)
        if self._read().get("id") != self._owner["id"]:  # Two came at once; the last one has it.
            self._refuse()
        self._renewing = threading.Thread(target=self._renew_on, daemon=True)
        self._renewing.start()

    def _renew(self):
        files.write_whole(self._path, json.dumps(self._owner | {"renewed": time.time()}))

    def _renew_on(self):
        while not self._closed.wait(self._renewed_every):
            try:
                if self._read().get("id", self._owner["id"]) != self._owner["id"]:
                    logging.error(
                        "%s was not renewed for too long and was taken over by another process, "
                        "which now %s there: this one ends at once, without a checkpoint.",
                        self._path,
                        self._use,
                    )
                    # The main thread may be in a step that waits for others.
                    os._exit(exit_codes.AGAIN)
                self._renew()
            # The cloud may not answer for a while; the next renewal may work.
            except Exception as error:
                logging.warning("%s was not renewed: %s", self._path, error)

    def _read(self):
        """Returns what the file says of its owner; {} where it says nothing."""
        try:
            found = json.loads(files.read_text(self._path) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _refuse(self):
        found = self._read()
        raise ValueError(
            f"Process {found.get('process', '?')} on {found.get('host', '?')} {self._use} in "
            f"{os.path.dirname(self._path)} since {found.get('since', '?')}: wait for its end, "
            "stop it, or choose another folder (--gin_param='MODEL_DIR=\"/another/folder\"')."
        )


def _is_same_file(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
