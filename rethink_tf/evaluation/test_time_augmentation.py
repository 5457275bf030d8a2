"""Test-time augmentation: an image is looked at in several sizes and mirrored, and all views vote.

What is done is Detectron's (`im_detect_all` of `detectron/core/test.py`, by the settings of
`configs/test_time_aug/e2e_mask_rcnn_R-50-FPN_2x.yaml`), whose numbers the paper (He et al. 2018,
arXiv:1811.08883, "test-time augmentation") reports:

1. Boxes: those of every view that score above the threshold, not suppressed yet, are brought into
   one frame and united (`BBOX_AUG` with the heuristic "UNION"). They are suppressed by class, each
   one kept moves to the score-weighted mean of the united boxes that agree with it (`BBOX_VOTE`),
   and the best of an image stay.
2. Masks: the mask head runs in every view on these boxes, and the probabilities are averaged
   (`MASK_AUG`, "SOFT_AVG"). Keypoints likewise, by their heatmaps (`KPS_AUG`, "HM_AVG", of all
   views for objects of every size: `SCALE_SIZE_DEP` is off, Detectron's default).

The frame is the input image that the detector sees without augmentation. Which frame it is changes
nothing: the IoU of boxes does not depend on the scale, and means move with it.

Views come one after the other and are computed one at a time, so that the memory needed is that of
the largest one, and the pixels of a batch in all sizes. As in Detectron, step 2 computes the
features anew: kept from step 1, those of 18 views would take some GB an image.

Letters: B images, D detections an image, N candidates.
"""

import functools

import gin
import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.data.input import augment
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import nms
from rethink_tf.ops.content import split_padding

# Key under which an augmented batch holds those of its further sizes, a list.
FURTHER = "further_sizes"

# Of the boxes of all views above the score threshold, the lowest beyond so many are dropped before
# the suppression, whose memory on a GPU grows with the square of it: 32 MiB here.
MAX_UNITED = 16384


@gin.register
class TestTimeAugmentation:
    """Which views there are, and how their boxes vote."""

    # pytest is not to take it for a test.
    __test__ = False

    def __init__(
        self,
        scales=(400, 500, 600, 700, 900, 1000, 1100, 1200),
        max_side=2000,
        flip=True,
        vote_iou=0.9,
    ):
        """Checks the settings.

        Args:
            scales: shorter sides, pixels, of the further sizes: the one that the pipeline evaluates
                in is always there, by the pipeline's own longest side.
            max_side: int, longest side in the further sizes, pixels; wins over the scale.
            flip: bool, whether every size is seen mirrored as well.
            vote_iou: float in (0, 1]; boxes vote on those of their class that they have at least
                this IoU with. 1 leaves all boxes as they are.

        Raises:
            ValueError: if a setting is out of its range, or there is no view beside the usual one.
        """
        scales = [scales] if isinstance(scales, int) else list(scales)
        name = "TestTimeAugmentation"
        if not scales and not flip:
            raise ValueError(
                f"{name}: without scales and without flip there is nothing to augment: give one of "
                "them, or leave run.test_augmentation out."
            )
        if any(not isinstance(scale, int) or scale < 1 for scale in scales):
            raise ValueError(f"{name}.scales = {scales}: whole pixels of at least 1 are needed.")
        if len(set(scales)) < len(scales):
            raise ValueError(f"{name}.scales = {scales}: one comes twice and would count double.")
        if scales and max(scales) > max_side:
            raise ValueError(
                f"{name}.max_side = {max_side} is below the scale {max(scales)}: no image can have "
                "a shorter side that is longer than its longest. Raise max_side or drop the scale."
            )
        if not 0 < vote_iou <= 1:
            raise ValueError(f"{name}.vote_iou = {vote_iou} must be above 0 and at most 1.")
        self.further_sizes = [(scale, max_side) for scale in scales]
        self.flips = (False, True) if flip else (False,)
        self.vote_iou = vote_iou

    @property
    def num_views(self):
        """How many views of an image there are, the usual one included."""
        return (1 + len(self.further_sizes)) * len(self.flips)

    def group(self, batches):
        """Joins the batches of each image in all sizes.

        Args:
            batches: iterable of distributed batches, as `Pipeline.evaluation` gives them with
                `further_sizes`.

        Yields:
            The batches of the pipeline's own size, the others in a list under FURTHER.
        """
        batches = iter(batches)
        for batch in batches:
            yield batch | {FURTHER: [next(batches) for _ in self.further_sizes]}


class AugmentedPredictor:
    """Predicts as `inference.Predictor`, but from all views of an image."""

    def __init__(self, detector, strategy, augmentation, flip_order=()):
        """Sets up the prediction; all variables must exist.

        Where XLA does not compile, a few programs serve all shapes, mirrored or not.

        Args:
            detector: `MaskRCNN`; its plan says whether XLA compiles the prediction.
            strategy: `tf.distribute.Strategy` that it was made under.
            augmentation: `TestTimeAugmentation`.
            flip_order: ints, as of `ObjectHead.mirror`.
        """
        self.strategy = strategy
        self._flip_order = flip_order
        self.fields = tuple(head.field for head in detector.heads)
        self._detector, self._augmentation = detector, augmentation

        self._jit_compile, self._programs = detector.plan.jit_compile, {}
        self._unite = self._make_program(self._unite_views)
        self._decode = self._make_program(
            lambda detections: detections | detector.decode(detections, detections)
        )
        self._gather = tf.function(
            lambda outputs: {key: strategy.gather(each, axis=0) for key, each in outputs.items()},
            autograph=False,
        )

    def __call__(self, batch):
        """Predicts.

        Args:
            batch: of `TestTimeAugmentation.group`.

        Returns:
            dict of NumPy arrays over the global batch, as of `inference.Predictor`: boxes in pixels
            of the batch's own images.
        """
        frame = {key: batch[key] for key in (schema.IMAGE_SIZE, schema.IMAGE_SCALE)}
        views = []
        for size, each in enumerate((batch, *batch[FURTHER])):
            _, padded = split_padding(each)
            view = {key: each[key] for key in (schema.IMAGE, *frame)}
            views += [(size, padded, view, tf.constant(flip)) for flip in self._augmentation.flips]
        found = [
            self._program(self._find_in_view, size, padded)(view, flip, frame)
            for size, padded, view, flip in views
        ]
        detections = self._unite(found)
        if self.fields:
            for size, padded, view, flip in views:
                describe = self._program(self._describe_in_view, size, padded)
                detections = describe(view, flip, frame, detections)
            detections = self._decode(detections)
        keys = (schema.IMAGE_ID, schema.ORIGINAL_SIZE, schema.IMAGE_SCALE)
        outputs = self._gather(detections | {key: batch[key] for key in keys})
        return {key: value.numpy() for key, value in outputs.items()}

    def _program(self, method, size, padded):
        """Returns a method as a program for views of a size that are padded or not.

        Where every shape is a program of its own, they are kept apart by the size: TensorFlow warns
        of a function that is traced for many shapes in a row.
        """
        key = method.__name__, padded, size if self._jit_compile else None
        if key not in self._programs:
            self._programs[key] = self._make_program(
                functools.partial(method, padded=padded), reduce_retracing=not self._jit_compile
            )
        return self._programs[key]

    def _make_program(self, method, reduce_retracing=False):
        return tf.function(
            lambda *args: self.strategy.run(method, args=args),
            autograph=False,
            jit_compile=self._jit_compile or None,
            reduce_retracing=reduce_retracing,
        )

    def _find_in_view(self, view, flip, frame, padded):
        """Returns the candidates of one view, as of `BoxHead.decode`, in the frame."""
        found = self._detector.find_candidates(_turn(view, flip), padded)
        boxes = from_view(found["boxes"], view, flip, frame)
        return found | {"boxes": boxes}

    def _unite_views(self, found):
        """Returns the detections of all views' candidates, with zeros for what the heads say."""
        united = {key: tf.concat([each[key] for each in found], axis=1) for key in found[0]}
        count = min(MAX_UNITED, united["scores"].shape[1])
        _, order = tf.math.top_k(united["scores"], count)
        united = {key: tf.gather(each, order, batch_dims=1) for key, each in united.items()}
        detections = self._detector.box_head.suppress(united)
        detections["boxes"] = nms.vote(
            detections["boxes"],
            detections["classes"],
            united["boxes"],
            united["scores"],
            united["classes"],
            self._augmentation.vote_iou,
        )
        rows = detections["classes"].shape
        return detections | {
            head.field: tf.zeros([*rows, *head.described_shape]) for head in self._detector.heads
        }

    def _describe_in_view(self, view, flip, frame, detections, padded):
        """Adds what the heads say of the detections in one view, a share of the mean."""
        there = {
            "boxes": to_view(detections["boxes"], view, flip, frame),
            "classes": detections["classes"],
        }
        described = self._detector.describe(_turn(view, flip), there, padded)
        added = {}
        for head in self._detector.heads:
            found = described[head.field]
            found = tf.where(flip, head.mirror(found, self._flip_order), found)
            added[head.field] = detections[head.field] + found / self._augmentation.num_views
        return detections | added


def from_view(boxes, view, flip, frame):
    """Brings boxes from a view into the frame.

    Args:
        boxes: float32 [B, N, 4], pixels of the view.
        view: dict with image_size and image_scale as in `data.schema`.
        flip: bool scalar, whether the view is mirrored.
        frame: the same of the frame.

    Returns:
        float32 [B, N, 4], pixels of the frame, clipped to it.
    """
    boxes = augment.flip_boxes(boxes, _widths(view), flip)
    return box_ops.clip_boxes(boxes * _ratio(view, frame), frame[schema.IMAGE_SIZE])


def to_view(boxes, view, flip, frame):
    """Brings boxes from the frame into a view; arguments as of `from_view`, whose inverse it is."""
    boxes = boxes * _ratio(frame, view)
    return augment.flip_boxes(boxes, _widths(view), flip)


def _turn(view, flip):
    """Returns what the detector sees of a view: mirrored within its content where flip is true."""
    widths = view[schema.IMAGE_SIZE][:, 1]
    image = tf.reverse_sequence(view[schema.IMAGE], tf.where(flip, widths, 1), seq_axis=2)
    return {schema.IMAGE: image, schema.IMAGE_SIZE: view[schema.IMAGE_SIZE]}


def _widths(view):
    return tf.cast(view[schema.IMAGE_SIZE][:, 1:], tf.float32)


def _ratio(source, target):
    """Returns float32 [B, 1, 4], pixels of one image by those of another, exactly 1 of the same."""
    ratio = target[schema.IMAGE_SCALE] / source[schema.IMAGE_SCALE]
    return tf.tile(ratio, [1, 2])[:, tf.newaxis]
