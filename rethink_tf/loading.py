"""A trained detector for use: from a run's folder, or from others' weights and gin files.

    detector = rethink_tf.load("runs/quickstart")
    detections = detector(image)  # uint8 [H, W, 3], RGB

It computes what an evaluation of the run does: the same resizing, padding and limits.

Letters: B images of a batch, H x W pixels.
"""

import contextlib
import dataclasses
import os
import tempfile
import threading

import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf import building as _building  # noqa: F401  registers what gin files name
from rethink_tf import config, config_apart, execution, files
from rethink_tf.data import schema
from rethink_tf.data.input import augment, batch_shapes
from rethink_tf.data.records import categories as category_lists
from rethink_tf.data.sources import coco_names
from rethink_tf.detections import Detections
from rethink_tf.evaluation import inference, placing
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.ops import roi_align
from rethink_tf.own_data import settings as _own_data  # noqa: F401  registered for gin files
from rethink_tf.settings import Settings
from rethink_tf.training import checkpoint_files, checkpoints
from rethink_tf.weights import conversion

# gin and Keras' policy belong to the process: one detector is built at a time.
_BUILDING = threading.Lock()
_PLACES = ("MODEL_DIR=''", "DATA_DIR=''")
# What a checkpoint calls the weights whose shapes tell the number of classes and of keypoints.
_LOGITS = "model/box_head/class_logits/kernel/.ATTRIBUTES/VARIABLE_VALUE"
_KEYPOINTS = "model/keypoint_head/deconv/kernel/.ATTRIBUTES/VARIABLE_VALUE"


class LoadedDetector:
    """A detector with its weights, its classes and the way that images are prepared.

    Calls from several threads are safe.

    Attributes:
        detector: `MaskRCNN`.
        categories: entries with "id" and "name", by id.
        checkpoint: str, the path of its weights.
        pipeline: `Pipeline`, whose settings for evaluation are used.
    """

    def __init__(self, detector, pipeline, categories, checkpoint):
        """Takes the parts; `load` and `load_weights` make them."""
        self.detector, self.pipeline = detector, pipeline
        self.categories, self.checkpoint = categories, checkpoint
        self._names = {entry["id"]: entry["name"] for entry in categories}
        plan, multiple = detector.plan, detector.coarsest_stride
        side = -(-pipeline.max_side // multiple) * multiple
        fixed = pipeline.buckets or ([(side, side)] if plan.static_shapes else None)
        self.shapes = batch_shapes.BatchShapes(fixed, multiple)
        self._placer = placing.Placer(self._names, [head.field for head in detector.heads])
        self._tracing, self._predictors, self._traced = threading.Lock(), {}, set()

    @property
    def class_names(self):
        """Names of the classes, in the order of the detector's."""
        return [entry["name"] for entry in self.categories]

    def __call__(self, images):
        """Detects objects.

        Args:
            images: uint8 [H, W, 3], RGB, or a list of such images, which may differ in size; they
                make one batch.

        Returns:
            `Detections`, or a list of them: by falling score, in pixels of the given image, and as
            low as the detector keeps them (`above` chooses).

        Raises:
            ValueError: if an image is none.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        if not images:
            return []
        arrays = [_checked(image, number) for number, image in enumerate(images)]
        outputs = self.predict(self.batch_of(arrays))
        return [self.place(outputs, row, image.shape[:2]) for row, image in enumerate(arrays)]

    def batch_of(self, images):
        """Returns the batch of `data.schema` that an evaluation would make of images.

        Args:
            images: list of uint8 [H, W, 3], RGB.
        """
        stored = np.array([image.shape[:2] for image in images], np.int32)
        # The evaluation's own steps; see `data.input.slots.evaluate`.
        sizes = self.shapes.limit(self.pipeline.evaluation_sizes(stored)).astype(np.int32)
        shape = self.shapes.cover(sizes)
        is_padded = not self.shapes.fills(sizes, shape)
        resized = [
            augment.resize_and_pad(tf.constant(image), tf.constant(size), tf.constant(shape))
            for image, size in zip(images, sizes, strict=True)
        ]
        return {
            schema.IMAGE: tf.stack(resized),
            schema.IMAGE_SIZE: tf.constant(sizes),
            schema.ORIGINAL_SIZE: tf.constant(stored),
            schema.IMAGE_SCALE: tf.constant((sizes / stored).astype(np.float32)),
            schema.IMAGE_ID: tf.range(len(images), dtype=tf.int64),
            schema.PADDING: tf.zeros([int(is_padded)], tf.bool),
        }

    def predict(self, batch):
        """Returns the outputs of `Predictor` for a batch, {name: array}."""
        program = batch[schema.IMAGE].shape[0], batch[schema.PADDING].shape[0]
        # Python code of layers runs while a program is traced, and is not made for threads.
        is_first = program not in self._traced
        with self._tracing if is_first else contextlib.nullcontext():
            outputs = self._predictor(program[0])(batch)
        self._traced.add(program)
        return outputs

    def _predictor(self, batch_size):
        """Returns the programs for batches of a size, which is static in them."""
        if batch_size not in self._predictors:
            spec = schema.evaluation_spec(batch_size, self.shapes.only)
            strategy = tf.distribute.get_strategy()
            self._predictors[batch_size] = inference.Predictor(self.detector, strategy, spec)
        return self._predictors[batch_size]

    def place(self, outputs, row, size):
        """Returns the `Detections` of one image of a batch.

        Args:
            outputs: of `predict`.
            row: int, the image's.
            size: (H, W) of the image to place them in.
        """
        scale = outputs[schema.IMAGE_SCALE][row] * outputs[schema.ORIGINAL_SIZE][row] / size
        found = self._placer.detections(outputs, row, *size, scale)
        boxes, scores, ids = (found.pop(key) for key in ("boxes", "scores", "category_ids"))
        names = [self._names[each] for each in ids.tolist()]
        return Detections(
            tuple(map(int, size)), boxes.astype(np.float32), scores, ids, names, found
        )


def load(model_dir, checkpoint=None, precision=None):
    """Loads what a run has trained.

    Args:
        model_dir: str, the run's folder.
        checkpoint: str, path of one of its checkpoints without an ending; None for the newest that
            reads. Where the run averages its weights, the averages are taken.
        precision: str, as of `Settings`; None for the run's.

    Returns:
        `LoadedDetector`.

    Raises:
        ValueError: if the folder holds no run, or no checkpoint that reads.
    """
    gin_file = os.path.join(model_dir, "config.gin")
    if not files.exists(gin_file):
        raise ValueError(
            f"{gin_file} is not there: give the folder of a run that rethink_tf.train has trained "
            "(MODEL_DIR)."
        )
    entries = category_lists.of_run(model_dir)
    folder = os.path.join(model_dir, "checkpoints")
    path = checkpoint or checkpoint_files.find_newest(folder, None)
    if not path:
        raise ValueError(f"{folder} holds no checkpoint: the run has not saved one yet.")
    with files.local_copy(gin_file) as local:
        return _build([local], (), entries, path, precision=precision)


def load_weights(checkpoint, gin_files, gin_params=(), names=None, input_format=None):
    """Loads the weights of another code base, such as Detectron2's model_final.pkl, in one step.

    Args:
        checkpoint: str, the file, as `rethink_tf.convert` takes it; a detector's, not a
            classifier's. Or a checkpoint that `convert` wrote.
        gin_files: list of str, what the detector is.
        gin_params: bindings over them.
        names: list of str, of the classes in their order; None for COCO's 80, or "person" where the
            detector has one class.
        input_format: as of `conversion.convert`.

    Returns:
        `LoadedDetector`.

    Raises:
        ValueError: if the file is not of this detector, or the names are not as many as classes.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint
        if not files.exists(checkpoint + ".index"):
            path = os.path.join(folder, "weights")
            with _BUILDING, config_apart.parsed(gin_files, [*_PLACES, *gin_params]):
                build = config.value_of("run.detector") or MaskRCNN
                conversion.convert(checkpoint, path, input_format, build)
        num_classes = _shapes_of(path)[_LOGITS][-1] - 1
        entries = _entries(names, num_classes)
        return _build(gin_files, [*_PLACES, *gin_params], entries, path, name=checkpoint)


def _entries(names, num_classes):
    """Returns entries with "id" and "name", by the names given or COCO's."""
    if names is None:
        known = {80: coco_names.CATEGORIES, 1: coco_names.CATEGORIES[:1]}
        if num_classes not in known:
            raise ValueError(
                f"The weights have {num_classes} classes, not COCO's 80: give their names in order."
            )
        return known[num_classes]
    if len(names) != num_classes:
        raise ValueError(f"There are {len(names)} names, and the weights have {num_classes}.")
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def _build(gin_files, gin_params, entries, path, name=None, precision=None):
    with _BUILDING, _policy_kept(), config_apart.parsed(gin_files, gin_params):
        settings = Settings(mode="evaluate")
        precision = precision or settings.precision
        plan = execution.make_plan(
            tf.distribute.get_strategy(), precision, settings.jit_compile, False
        )
        if not plan.static_shapes and plan.device != "TPU":
            # Whose gradient on CPUs is another matter; see `roi_align.choose_form`.
            plan = dataclasses.replace(plan, roi_align=roi_align.CROP)
        tf_keras.mixed_precision.set_global_policy(plan.precision)
        detector = settings.detector(
            num_classes=len(entries), num_keypoints=_num_keypoints(path), plan=plan
        )
        detector.create_variables()
        if missing := checkpoints.initialize(detector, path):
            raise ValueError(f"{path} lacks weights of {', '.join(sorted(set(missing)))}.")
        return LoadedDetector(detector, settings.pipeline(), entries, name or path)


def _shapes_of(path):
    """Returns {variable of a checkpoint: its shape}."""
    try:
        return checkpoint_files.open_reader(path).get_variable_to_shape_map()
    except Exception as error:  # TensorFlow raises one of many
        raise ValueError(f"The checkpoint {path} cannot be read: {error}") from error


def _num_keypoints(path):
    """Returns the number of keypoints of a checkpoint's head, 0 without one."""
    return _shapes_of(path).get(_KEYPOINTS, [0] * 4)[2]


@contextlib.contextmanager
def _policy_kept():
    """Gives Keras its policy back, which is the process's."""
    before = tf_keras.mixed_precision.global_policy()
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def _checked(image, number):
    """Returns an image as an array."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"Image {number} is {array.dtype} {list(array.shape)}: give uint8 [H, W, 3], RGB."
        )
    return array
