"""The distribution strategy, chosen by one binding, and what batches fit it."""

import contextlib
import functools
import json
import os
import signal
import threading

import gin
import tensorflow as tf
import tf_keras
from absl import logging
from official.common import distribute_utils
from tensorflow.python.data.ops import multi_device_iterator_ops
from tensorflow.python.framework import config as framework_config

from rethink_tf import cluster, execution
from rethink_tf.ops.content import PADDING


@gin.register
def make_strategy(
    name="auto",
    num_gpus=None,
    tpu_address="",
    all_reduce_alg=None,
    num_cpus=1,
    wait_minutes=30.0,
):
    """Returns a `tf.distribute.Strategy`.

    Args:
        name: "one_device", "mirrored", "multi_worker_mirrored" (workers from TF_CONFIG,
            or from what the launcher sets, see `rethink_tf.cluster`), "tpu", or
            "auto": mirrored where there are several GPUs, else one device.
        num_gpus: int, how many GPUs of this machine; None for all there are.
        tpu_address: str, of the TPU; "" or "local" for the one of this host.
        all_reduce_alg: str or None, see Model Garden's `distribute_utils`.
        num_cpus: int; without a GPU, "mirrored" runs that many replicas on logical CPU devices, to
            try out a distributed run.
        wait_minutes: float, how long a worker waits at the start for the others; then its process
            ends by SIGALRM.

    Raises:
        ValueError: if the name is unknown, there are fewer GPUs than asked for, or the CPU cannot
            be split any more, the workers cannot be told, or the TPU is not there.
    """
    available = len(tf.config.list_physical_devices("GPU"))
    num_gpus = available if num_gpus is None else num_gpus
    if num_gpus > available:
        raise ValueError(f"make_strategy: {num_gpus} GPUs asked for, TensorFlow sees {available}.")
    if name == "auto":
        name = "mirrored" if num_gpus > 1 else "one_device"
    known = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
    if name not in known:
        raise ValueError(f"make_strategy: unknown name {name!r}; choose auto or one of {known}.")
    if num_cpus > 1 and (name != "mirrored" or num_gpus):
        raise ValueError(
            f"make_strategy: num_cpus = {num_cpus} has no effect on {name} with {num_gpus} GPUs: "
            "bind make_strategy.name = 'mirrored' and num_gpus = 0 to run so many replicas on the "
            "CPU, or leave it out."
        )
    if name == "mirrored" and num_gpus == 0 and num_cpus > 1:
        return tf.distribute.MirroredStrategy(_logical_cpus(num_cpus))
    around = contextlib.nullcontext()
    if name == "multi_worker_mirrored":
        around = _waiting_for_workers(_read_cluster(), wait_minutes * 60)
    elif name == "tpu":
        tpu_address = tpu_address or "local"
        around = _explaining_tpu(tpu_address)
    with around:
        return distribute_utils.get_distribution_strategy(
            name,
            num_gpus=min(num_gpus, 1) if name == "one_device" else num_gpus,
            all_reduce_alg=all_reduce_alg,
            tpu_address=tpu_address,
        )


@contextlib.contextmanager
def _waiting_for_workers(config, seconds):
    """Says what is waited for, and limits the wait.

    Args:
        config: dict, TF_CONFIG.
        seconds: float. Python's threads and handlers stand still while TensorFlow waits, so the
            operating system keeps the time.
    """
    task = config["task"]
    jobs = config["cluster"]
    addresses = [each for job in ("chief", "worker") for each in jobs.get(job, [])]
    if len(addresses) > 1:
        logging.info(
            "This is %s %s of %d workers; waiting for all of them, at most %.0f s: %s.",
            task["type"],
            task["index"],
            len(addresses),
            seconds,
            ", ".join(addresses),
        )
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if threading.current_thread() is threading.main_thread():
        # TensorFlow's service of the workers catches the signal from then on, and does nothing.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _read_cluster():
    """Returns the cluster, and hands it to TensorFlow, which reads TF_CONFIG."""
    found = cluster.read_cluster(os.environ)
    os.environ["TF_CONFIG"] = json.dumps(found)
    return found


@contextlib.contextmanager
def _explaining_tpu(tpu_address):
    """Says in one line that a TPU is not there; TensorFlow's errors tell of kernels and ops."""
    try:
        yield
    except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"make_strategy: no TPU at tpu_address = {tpu_address!r} ({reason}). On a TPU's own "
            "host it is 'local', with tensorflow-tpu installed in place of tensorflow; elsewhere "
            "bind make_strategy.name = 'auto'."
        ) from error


def check_batch_size(strategy, name, size, accumulate_steps=1):
    """Checks that a global batch can be shared.

    Args:
        strategy: `tf.distribute.Strategy`.
        name: str, of the setting.
        size: int, images.
        accumulate_steps: int, micro-batches that they come in.

    Raises:
        ValueError: if replicas or micro-batches would get unequal shares, or nothing.
    """
    if accumulate_steps < 1:
        raise ValueError(
            f"accumulate_steps = {accumulate_steps}: give the number of micro-batches that the "
            "images of a step come in, 1 for all at once."
        )
    replicas = strategy.num_replicas_in_sync
    parts = replicas * accumulate_steps
    if size < 1 or size % parts:
        micro = f" in accumulate_steps = {accumulate_steps} parts" if accumulate_steps > 1 else ""
        raise ValueError(
            f"{name} = {size} images cannot be shared equally by {replicas} replicas{micro}: take "
            f"a multiple of {parts}."
        )


def start_strategy(settings):
    """Makes a run's strategy, and sets seed, precision and op determinism of this process.

    Args:
        settings: of the run, with strategy, precision, jit_compile, deterministic and seed.

    Returns:
        The `tf.distribute.Strategy` and the `ExecutionPlan`.
    """
    strategy = settings.strategy()
    plan = execution.make_plan(
        strategy, settings.precision, settings.jit_compile, settings.deterministic
    )
    set_up_tensorflow(settings.seed, plan)
    return strategy, plan


def set_up_tensorflow(seed, plan):
    """Sets seed, precision and op determinism of this process as an `ExecutionPlan` says."""
    tf_keras.utils.set_random_seed(seed)
    tf_keras.mixed_precision.set_global_policy(plan.precision)
    if plan.is_deterministic:
        tf.config.experimental.enable_op_determinism()
    else:
        framework_config.disable_op_determinism()


def batch_spec(batches, replica_batch_size):
    """Returns the `batch_spec` of `TrainStep` and `Predictor`.

    Args:
        batches: distributed data set, as of `input.pipeline`.
        replica_batch_size: int, images of a batch of one replica. Over several workers TensorFlow
            leaves it open, for data sets whose last batch is smaller.

    Returns:
        dict of specs, without `ops.content.PADDING`.
    """

    def with_size(spec):
        parts = [
            tf.TensorSpec([replica_batch_size, *part.shape[1:]], part.dtype)
            for part in tf.nest.flatten(spec, expand_composites=True)
        ]
        return parts[0] if isinstance(spec, tf.TensorSpec) else type(spec)(*parts)

    specs = batches.element_spec
    return {key: with_size(spec) for key, spec in specs.items() if key != PADDING}


def _logical_cpus(count):
    """Splits the CPU into logical devices, if that was not done yet, and returns their names."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or []
    if len(configured) < count:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
        except RuntimeError as error:
            raise ValueError(
                f"make_strategy: the CPU cannot be split into {count} devices any more, because "
                "TensorFlow has already run something."
            ) from error
    return [f"CPU:{index}" for index in range(count)]


def distribute(strategy, make_dataset):
    """Returns the batches of all replicas of this worker.

    Args:
        strategy: `tf.distribute.Strategy`.
        make_dataset: function of a `tf.distribute.InputContext`, the worker's `tf.data.Dataset`.
    """
    _end_device_datasets_at_once()
    return strategy.distribute_datasets_from_function(make_dataset)


@functools.cache
def _end_device_datasets_at_once():
    """Turns autotuning off in the data sets that TensorFlow makes for each of several devices.

    They have nothing to tune, and take no options from the data set that they read. Their tuning
    thread often misses the end of its iterator. The iterator then waits for the thread's next turn,
    up to a minute, and the run waits with it, after each evaluation.
    """
    create = multi_device_iterator_ops._create_device_dataset

    def without_autotune(*args):
        options = tf.data.Options()
        options.autotune.enabled = False
        return create(*args).with_options(options)

    multi_device_iterator_ops._create_device_dataset = without_autotune
