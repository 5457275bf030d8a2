"""What all tests share: a quiet TensorFlow, two logical devices, the shared data, and a clean gin.

Nothing here imports TensorFlow or gin: a test file that does without them stays quick.
"""

import os
import pathlib
import sys

# Read by TensorFlow when it is imported, hence before any test file is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder `shared` beside the repository, with real photographs and reference results."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds the data and reference results of this test")
    return folder


@pytest.fixture(scope="session")
def two_cpus() -> list[str]:
    """The names of two logical CPU devices, for strategies with two replicas.

    Devices can be split only before TensorFlow runs its first operation;
    `pytest_collection_modifyitems` sees to that.
    """
    import tensorflow as tf

    devices = tf.config.list_logical_devices("CPU")
    assert len(devices) >= 2, "TensorFlow had started before its CPU could be split in two"
    return [device.name.removeprefix("/device:") for device in devices[:2]]


@pytest.fixture(scope="session")
def two_replicas(two_cpus):
    """A `MirroredStrategy` of two replicas.

    One for the whole process: TensorFlow numbers the collective operations of each strategy from
    the start, so that those of a second one meet the shapes of the first.
    """
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(two_cpus)


def pytest_collection_modifyitems(items):
    """Splits the CPU after collection and before the first test, if any test asks for two."""
    if not any("two_cpus" in getattr(item, "fixturenames", ()) for item in items):
        return
    import tensorflow as tf

    physical = tf.config.list_physical_devices("CPU")[0]
    if not tf.config.get_logical_device_configuration(physical):
        tf.config.set_logical_device_configuration(
            physical, [tf.config.LogicalDeviceConfiguration()] * 2
        )


@pytest.fixture
def fresh_tensorflow_settings():
    """Puts back what a run of an experiment sets for its whole process."""
    import tf_keras
    from tensorflow.python.framework import config as framework_config

    yield
    tf_keras.mixed_precision.set_global_policy("float32")
    framework_config.disable_op_determinism()


@pytest.fixture(autouse=True)
def clean_gin():
    """Forgets a test's bindings, so that they can't reach the next test."""
    yield
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()
