"""The worker processes of a run, and what they tell each other outside of the training step.

Each process restores its own copy of the weights, and nothing in TensorFlow compares the copies:
workers that start from different checkpoints would train on without an error.
"""

import contextlib
import re
import zlib

import numpy as np
import tensorflow as tf


class WorkerLostError(RuntimeError):
    """Another worker of the run died or does not answer: no step can be finished without it."""


def end_together(workers):
    """Waits for the other workers, if any: a process that ends takes its connections with it.

    Args:
        workers: `Workers`, or None where one process runs it all.
    """
    if workers:
        workers.exchange("")


@contextlib.contextmanager
def naming_losses():
    """Raises `WorkerLostError` in place of what TensorFlow raises when a worker is lost.

    TensorFlow's workers send each other heartbeats: the error comes after ten seconds at most, also
    while this worker waits for a sum.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not isinstance(error, _OF_LOSSES) and "Collective ops is aborted" not in str(error):
            raise
        tasks = sorted(set(re.findall(r"/job:(\w+)/replica:0/task:(\d+)", str(error))))
        if not tasks and "Collective" not in str(error):
            raise
        names = " and ".join(f"{job} {index}" for job, index in tasks) or "another worker"
        raise WorkerLostError(
            f"The connection to {names} is lost (its own log says why): all workers must start "
            "again"
        ) from error


_OF_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class Workers:
    """All worker processes of a strategy; this is one of them.

    Attributes:
        count: int, how many there are.
    """

    def __init__(self, strategy, count):
        """Takes the strategy; see `of`.

        Args:
            strategy: `tf.distribute.MultiWorkerMirroredStrategy`.
            count: int, worker processes.
        """
        self._strategy, self.count = strategy, count
        signature = [tf.TensorSpec([None], tf.float32)]
        self._gather_rows = tf.function(self._on_all_replicas, signature, autograph=False)

    def exchange(self, text):
        """Sends a text to all workers and returns theirs; every worker must call it.

        Args:
            text: str.

        Returns:
            list of str, the texts of all workers in their order, this one's included.
        """
        # As float32, which every collective sums exactly up to 2 ** 24.
        data = np.frombuffer(text.encode(), np.uint8).astype(np.float32)
        lengths = self._gather(np.array([len(data)], np.float32))[:, 0].astype(int)
        rows = self._gather(np.pad(data, [0, max(1, *lengths) - len(data)]))
        pairs = zip(rows, lengths, strict=True)
        return [bytes(row[:length].astype(np.uint8)).decode() for row, length in pairs]

    def _gather(self, values):
        """Returns float32 [count, N], the float32 [N] of every worker, whole numbers < 2 ** 24."""
        gathered = self._gather_rows(tf.constant(values))
        rows = self._strategy.experimental_local_results(gathered)[0].numpy()
        return rows[:: len(rows) // self.count]  # each replica of a worker has sent its row

    def _on_all_replicas(self, row):
        num_replicas = self._strategy.num_replicas_in_sync

        def on_one_replica(row):
            context = tf.distribute.get_replica_context()
            mine = tf.one_hot(context.replica_id_in_sync_group, num_replicas)[:, tf.newaxis] * row
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        return self._strategy.run(on_one_replica, args=(row,))

    def fail_together(self, action):
        """Calls a function; where it fails on one worker, all of them stop with the reasons.

        Otherwise the workers that did not fail would wait for the one that did.

        Args:
            action: callable without arguments.

        Returns:
            What the function returns.

        Raises:
            ValueError: naming each worker that failed, and why.
        """
        result, problem = None, ""
        try:
            result = action()
        except Exception as error:
            problem = str(error) or type(error).__name__
        problems = self.exchange(problem)
        if any(problems):
            raise ValueError(name_each(problems)) from None
        return result

    def check_same_state(self, step, variables):
        """Compares the step and all bits of the variables of all workers.

        Args:
            step: int.
            variables: list of variables, in the same order everywhere.

        Raises:
            ValueError: if they differ, on every worker, saying who has what.
        """
        checksum = 0
        for variable in variables:
            value = self._strategy.experimental_local_results(variable)[0]
            checksum = zlib.crc32(value.numpy().tobytes(), checksum)
        found = self.exchange(f"step {step}, weights with checksum {checksum:08x}")
        if len(set(found)) > 1:
            raise ValueError(
                f"The workers do not start from the same state: {name_each(found)}. All must read "
                "the same checkpoint files: put MODEL_DIR and run.init_checkpoint where all see "
                "the same."
            )


def of(strategy):
    """Returns the `Workers` of a strategy, or None where one process runs it all.

    Args:
        strategy: `tf.distribute.Strategy`.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    count = len(jobs.get("chief", [])) + len(jobs.get("worker", []))
    return Workers(strategy, count) if count > 1 else None


def name_each(texts):
    """Returns "worker 0: ...; worker 1: ..." of the texts that say something."""
    return "; ".join(f"worker {index}: {text}" for index, text in enumerate(texts) if text)
