"""Work that threads do while the caller goes on, with results in the order of the calls."""

import collections
import os
from concurrent import futures


def default_num_workers():
    """Returns how many threads help: half of the cores, so that prediction keeps the others.

    Two at most: NumPy's calls on an image's masks are short, so that threads mostly wait for the
    interpreter: two gain a fifth, more nothing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(2, (cores or 1) // 2))


class InOrder:
    """Calls a function in threads; a context manager, at whose end no thread is left.

    With an error or Ctrl-C inside of the context, calls that have not begun are dropped.
    """

    def __init__(self, function, num_workers=None, max_waiting=32):
        """Starts without work.

        Args:
            function: callable.
            num_workers: int > 0, threads; None for `default_num_workers`.
            max_waiting: int >= 0, calls that may be unfinished at once, so that their arguments and
                results do not fill the memory.
        """
        self._function, self._max_waiting = function, max_waiting
        self._threads = futures.ThreadPoolExecutor(num_workers or default_num_workers())
        self._waiting = collections.deque()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._threads.shutdown(wait=True, cancel_futures=True)

    def put(self, *arguments):
        """Asks for one call; waits while too many are unfinished.

        Args:
            *arguments: of the function.

        Returns:
            List of results that were not returned yet, of the first calls that have finished.

        Raises:
            Exception: what one of these calls raised.
        """
        self._waiting.append(self._threads.submit(self._function, *arguments))
        return self._take(self._max_waiting)

    def finish(self):
        """Waits for all calls and returns the list of results that were not returned yet."""
        return self._take(0)

    def _take(self, max_waiting):
        results = []
        while self._waiting and (len(self._waiting) > max_waiting or self._waiting[0].done()):
            results.append(self._waiting.popleft().result())
        return results
