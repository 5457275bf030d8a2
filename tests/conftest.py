"""What all tests share: a quiet TensorFlow, two logical devices, the shared data, and a clean gin.

Nothing here imports TensorFlow or gin: a test file that does without them stays quick.
"""

import os
import pathlib
import sys

# Read by TensorFlow when it is imported, hence before any test file is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # as `console.start` does

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


@pytest.fixture(scope="session")
def loaded_folder(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny run whose detections are many, `run`, and its data, `shapes`."""
    from loaded_run import train_once  # TensorFlow is imported with the first test that needs it

    return train_once(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def run_dir(loaded_folder) -> str:
    """The run of `loaded_folder`, for tests that read it."""
    return str(loaded_folder / "run")


# Files that take more than some seconds: whole runs, other processes, graphs of whole detectors.
LONG = """
    benchmarks/test_accelerator benchmarks/test_evaluation benchmarks/test_group_norm
    benchmarks/test_input_pipeline
    data/input/test_copy_paste data/input/test_evaluation_batches data/input/test_jitter
    data/input/test_pipeline data/input/test_reading data/input/test_service
    data/records/test_keypoints data/records/test_skips data/sources/test_coco
    data/sources/test_image_files data/sources/test_inputs
    data/sources/test_unmasked_objects data/sources/test_voc diagnosis/test_weights
    errors/test_errors_page evaluation/test_test_time_augmentation exporting/test_fixed
    exporting/test_saved_model layers/test_conv looking/test_show_data
    models/test_cascade models/test_detector models/test_freezing models/test_invariance
    models/test_keypoint_head models/test_resnet models/test_toy_head models/test_vgg
    ops/test_convolution own_data/test_own_data_run predicting/test_loading
    predicting/test_predict pretraining/test_pretraining_run study/test_study_run
    training/test_accumulation training/test_averaging
    training/test_cascade_switch training/test_checkpoint_shapes training/test_stopping
    training/test_workers weights/test_detectron2 weights/test_imagenet weights/test_keras_files
    weights/test_model_garden test_cascade_run
    test_convert test_curves test_experiment test_export test_going_on test_keypoint_experiment
    test_lost_worker test_monitoring test_notebook test_output test_parity test_shipped_experiments
    test_toy_parts test_train test_voc_experiment test_following test_locking test_remote_folder
    training/test_replicas
""".split()


def pytest_collection_modifyitems(items):
    """Marks the tests that are quick, and splits the CPU before the first test that asks for two.

    `-m quick` is what one runs while working.
    """
    for item in items:
        name = item.path.relative_to(REPOSITORY / "tests").with_suffix("").as_posix()
        if name not in LONG:
            item.add_marker(pytest.mark.quick)
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


@pytest.fixture
def untraced():
    """Runs the steps of a test operation by operation: to trace them takes most of a short run.

    For what does not depend on the graph, and whose graph another test traces.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def clean_gin():
    """Forgets a test's bindings, so that they can't reach the next test."""
    yield
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()
