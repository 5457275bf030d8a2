"""Strategies by name."""

import pytest
import tensorflow as tf

from rethink_tf import cluster
from rethink_tf.training import checkpoints
from rethink_tf.training.distribution import check_batch_size, distribute, make_strategy


def test_one_device_by_default():
    strategy = make_strategy()
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert checkpoints.is_chief(strategy)


def test_mirrored_on_logical_cpus(two_cpus):
    assert make_strategy("mirrored", num_cpus=len(two_cpus)).num_replicas_in_sync == 2


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="unknown name 'mirored'"):
        make_strategy("mirored")
    with pytest.raises(ValueError, match="64 GPUs asked for"):
        make_strategy("mirrored", num_gpus=64)


def test_no_iterator_of_a_device_tunes_itself(two_replicas):
    def make_dataset(context):
        options = tf.data.Options()
        options.autotune.enabled = False
        return tf.data.Dataset.range(8).batch(1).with_options(options)

    batches = iter(distribute(two_replicas, make_dataset))
    first = two_replicas.experimental_local_results(next(batches))
    assert [each.numpy().tolist() for each in first] == [[0], [1]]
    # TensorFlow shows the data sets of devices nowhere else.
    (worker,) = batches._iterators
    for device in worker._iterator._device_iterators:
        assert device._dataset.options().autotune.enabled is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Set TF_CONFIG on each of them"),
        ("{'cluster'", "TF_CONFIG is not JSON .*: {'cluster'"),
    ],
)
def test_workers_without_a_cluster_are_refused(monkeypatch, text, message):
    """Each of them would train alone, and into the same folder."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=message):
        make_strategy("multi_worker_mirrored")


@pytest.mark.parametrize("address", ["", "local"])
def test_a_tpu_that_is_not_there_is_one_line(address):
    with pytest.raises(
        ValueError, match="no TPU at tpu_address = 'local' .*TPUs not found"
    ) as error:
        make_strategy("tpu", tpu_address=address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("hosts", "tasks", "rank"),
    [("n[01-10],m5", "1(x11)", "3"), ("a1,b[2-3]", "2(x2),1", "4"), ("n7", "3", "0")],
)
def test_slurm_agrees_with_tensorflow_where_texts_sort_as_numbers(monkeypatch, hosts, tasks, rank):
    environ = {
        "SLURM_JOB_ID": "0",
        "SLURM_PROCID": rank,
        "SLURM_STEP_NODELIST": hosts,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
    }
    ours = cluster.read_cluster(environ)
    ordered = sorted(ours["cluster"]["worker"])
    workers = len(ordered)
    for name, value in (environ | {"SLURM_STEP_NUM_TASKS": str(workers)}).items():
        monkeypatch.setenv(name, value)
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=20000, gpus_per_node=workers, gpus_per_task=1, auto_set_gpu=False
    )
    assert resolver.cluster_spec().as_dict() == {"worker": ordered}
    assert resolver.get_task_info() == (ours["task"]["type"], ours["task"]["index"])


@pytest.mark.parametrize("name", ["auto", "one_device"])
def test_cpus_that_would_not_be_used_are_refused(name):
    with pytest.raises(ValueError, match="num_cpus = 2 has no effect on one_device with 0 GPUs"):
        make_strategy(name, num_cpus=2)


@pytest.mark.parametrize(
    ("size", "steps", "message"),
    [
        (5, 1, "batch_size = 5 images .* by 2 replicas: take a multiple of 2"),
        (6, 2, "batch_size = 6 images .* by 2 replicas in accumulate_steps = 2 parts: .* of 4"),
        (6, 0, "accumulate_steps = 0: give the number of micro-batches"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(two_replicas, size, steps, message):
    check_batch_size(two_replicas, "batch_size", 12, accumulate_steps=3)
    with pytest.raises(ValueError, match=message):
        check_batch_size(two_replicas, "batch_size", size, accumulate_steps=steps)
