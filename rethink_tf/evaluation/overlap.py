"""Work that threads do while the caller goes on, with results in the order of the calls."""

import collections
from concurrent import futures


class InOrder:
    """Calls a function in threads; a context manager, at whose end no thread is left.

    With an error or Ctrl-C inside of the context, calls that have not begun are dropped.
    """

    def __init__(self, function, num_workers=1, max_waiting=32):
        """Starts without work.

        Args:
            function: callable.
            num_workers: int > 0, threads. More than one gain only where a call leaves Python's
                interpreter for long; NumPy's on the masks of one image do not.
            max_waiting: int >= 0, calls that may be unfinished at once, so that their arguments and
                results do not fill the memory.
        """
        self._function, self._max_waiting = function, max_waiting
        self._threads = futures.ThreadPoolExecutor(num_workers)
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
