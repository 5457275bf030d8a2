"""Cascade R-CNN: box heads one after the other, each on the boxes that the one before has refined.

As in Detectron2's `CascadeROIHeads`. Where the Detectron of the cascade's authors differs
(github.com/zhaoweicai/Detectron-Cascade-RCNN), it is said below.

The stages are all there from the start, and the later ones may begin to train late: the paper
(He et al. 2018, arXiv:1811.08883) trains without the cascade and switches it on for the last
270,000 steps. Until then the first stage is the whole box head. Its boxes are class-agnostic from
the start, which the paper does not say of its own: Detectron takes over weights of the same name
and shape alone, and its cascades are class-agnostic, so that only then all that was trained goes
on. The later stages start from their random initial weights, as weights of new names do there.

Shapes: B images, R RoIs an image, M objects, P proposals, C object classes, D detections.

Source: Cai and Vasconcelos 2018, arXiv:1712.00726.
"""

import contextlib

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.models.box_head import BoxHead
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops.operations import Operations


@gin.register
class CascadeBoxHead(tf_keras.layers.Layer):
    """Several box heads in a row; takes the place of `BoxHead` in the detector."""

    operations = Operations()

    def __init__(
        self,
        num_classes,
        stage=BoxHead,
        positive_from=(0.5, 0.6, 0.7),
        box_weights=((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        **kwargs,
    ):
        """Makes the stages.

        Args:
            num_classes: int C, object classes without background.
            stage: callable, makes a `BoxHead`, given num_classes, positive_from, box_weights,
                class_agnostic and name.
            positive_from: float a stage, IoU from which a RoI is an object; ascending.
            box_weights: four floats a stage, multiplied into the regression targets.
            **kwargs: of the Keras layer.

        Raises:
            ValueError: if the thresholds do not ascend, or there are not as many of one as of the
                other.
        """
        super().__init__(autocast=False, **kwargs)
        _check_stages(positive_from, box_weights)
        self.stages = [
            stage(
                num_classes=num_classes,
                positive_from=threshold,
                box_weights=weights,
                class_agnostic=True,
                name=f"stage{number}",
            )
            for number, (threshold, weights) in enumerate(
                zip(positive_from, box_weights, strict=True), start=1
            )
        ]
        first = self.stages[0]
        self.roi_size, self.num_samples = first.roi_size, first.num_samples
        self.positive_fraction, self._runs_all = first.positive_fraction, None
        # Saved with the weights, so that a prediction uses the stages that are trained so far.
        self.stages_trained = self.add_weight(
            "stages_trained",
            [],
            tf.int64,
            tf_keras.initializers.Constant(len(self.stages)),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def sample(self, proposals, proposal_valid, objects, classes, draw):
        """Draws the RoIs of the first stage; see `BoxHead.sample`.

        The mask head trains on the positives among these, as in Detectron2, so that the switch
        changes nothing for it. (The authors' Detectron trains it on those of the last stage,
        `MRCNN.AT_STAGE`.) At test it always gets the boxes of the last stage.
        """
        return self.stages[0].sample(proposals, proposal_valid, objects, classes, draw)

    def train(self, pooled, sampled, pool, objects, classes, image_size, num_stages=None):
        """Runs the stages on the RoIs that enter the losses.

        A later stage takes every box of the one before, labelled anew by its own threshold; none is
        drawn or added. The gradient of the features is that of the mean over the stages.

        Args:
            pooled: floating [B, R, S, S, channels], features of the first stage's RoIs.
            sampled: dict of `sample`.
            pool: `RoIAlign` of the features.
            objects: float32 [B, M, 4], pixels.
            classes: int32 [B, M], 0 is padding.
            image_size: int32 [B, 2], (height, width), pixels.
            num_stages: int, how many stages train; None for all.

        Returns:
            dict: class_logits and box_deltas of the first stage as of `BoxHead.train`; of each
            later one, class_logits_stage2, box_deltas_stage2, and class_targets_stage2 and
            box_delta_targets_stage2 as of `BoxHead.sample`.
        """
        stages = self.stages[:num_stages]
        self.stages_trained.assign(len(stages))
        # Detectron2 scales the gradient of the features, so that more stages do not weigh more.
        share, suffix, outputs = 1.0 / len(stages), "", {}
        for number, head in enumerate(stages, start=1):
            if number > 1:
                rois, valid = refine(
                    sampled["rois"],
                    sampled["class_targets"] >= 0,
                    outputs["box_deltas" + suffix],
                    stages[number - 2].box_weights,
                    image_size,
                )
                sampled = head.label(rois, valid, objects, classes)
                pooled = pool(sampled["rois"], head.roi_size)
                logits = outputs["class_logits" + suffix]
                logits, pooled = self.operations.one_at_a_time(logits, pooled)
                outputs["class_logits" + suffix] = logits
                suffix = f"_stage{number}"
                for key in ("class_targets", "box_delta_targets"):
                    outputs[key + suffix] = sampled[key]
            found = head.train(_scale_gradient(pooled, share), sampled)
            outputs |= {key + suffix: value for key, value in found.items()}
        return outputs

    def candidates(self, pool, proposals, proposal_valid, image_size):
        """Runs the stages that are trained so far: the first alone, or all.

        The scores are the means over the stages, each on its own boxes, the boxes those of the last
        stage. (The authors' Detectron runs every stage on the last one's RoIs for its scores.)
        Arguments and result are those of `BoxHead.candidates`.
        """

        def by(stages):
            return lambda: _candidates(stages, pool, proposals, proposal_valid, image_size)

        if self._runs_all is not None:
            return by(self.stages if self._runs_all else self.stages[:1])()
        return tf.cond(self.stages_trained > 1, by(self.stages), by(self.stages[:1]))

    @contextlib.contextmanager
    def settled_stages(self):
        """Within it, what is traced runs the stages that are trained by now, without asking again.

        That is for programs that are exported: tf2onnx does not convert the condition.
        """
        self._runs_all = int(self.stages_trained.numpy()) > 1
        try:
            yield
        finally:
            self._runs_all = None

    def suppress(self, candidates):
        """Chooses the detections of each image; see `BoxHead.suppress`."""
        return self.stages[-1].suppress(candidates)


def _candidates(stages, pool, rois, valid, image_size):
    """Runs the stages one after the other and returns what detections are chosen from."""
    scores, before, deltas = [], None, None
    for head in stages:
        if before is not None:
            rois, valid = refine(rois, valid, deltas[..., 0, :], before.box_weights, image_size)
        class_logits, deltas = head(pool(rois, head.roi_size))
        scores.append(tf.nn.softmax(class_logits))
        before = head
    # Logarithms of scores are logits of the same scores.
    class_logits = tf.math.log(tf.add_n(scores) / len(scores))
    return before.decode(class_logits, deltas, rois, valid, image_size)


def refine(rois, valid, deltas, box_weights, image_size):
    """Returns the RoIs of the next stage.

    Args:
        rois: float32 [B, R, 4], pixels.
        valid: bool [B, R].
        deltas: float32 [B, R, 4]. No gradient flows into them.
        box_weights: four floats, of the stage that the deltas are from.
        image_size: int32 [B, 2], (height, width), pixels.

    Returns:
        rois: float32 [B, R, 4], clipped to the image; zero where they are not valid.
        valid: bool [B, R]; False also where nothing is left of a box.
    """
    # The boxes are inputs of the next stage, not what this one is trained by.
    deltas = tf.stop_gradient(deltas)
    boxes = box_ops.clip_boxes(box_ops.decode_boxes(deltas, rois, box_weights), image_size)
    # A diverged stage must not crash the pooling before its loss is seen and named.
    valid &= tf.reduce_all(tf.math.is_finite(deltas), axis=-1) & (box_ops.area(boxes) > 0.0)
    return tf.where(valid[..., tf.newaxis], boxes, 0.0), valid


def _scale_gradient(values, factor):
    """Returns the values; their gradient is multiplied by the factor."""

    @tf.custom_gradient
    def scale(values):
        return tf.identity(values), lambda upstream: upstream * factor

    return scale(values)


def _check_stages(positive_from, box_weights):
    if not positive_from or len(positive_from) != len(box_weights):
        raise ValueError(
            f"CascadeBoxHead: positive_from has {len(positive_from)} stages, {positive_from}, and "
            f"box_weights has {len(box_weights)}, {box_weights}: give one of each a stage."
        )
    for before, after in zip(positive_from, positive_from[1:], strict=False):
        if after <= before:
            raise ValueError(
                f"CascadeBoxHead: positive_from = {positive_from}: a stage's threshold, {after}, "
                f"must be above that of the stage before, {before}."
            )
    if not (0.0 < positive_from[0] and positive_from[-1] <= 1.0):
        raise ValueError(
            f"CascadeBoxHead: positive_from = {positive_from}: IoU thresholds are above 0 and at "
            "most 1."
        )
    for weights in box_weights:
        if len(weights) != 4 or min(weights) <= 0.0:
            raise ValueError(
                f"CascadeBoxHead: box_weights = {box_weights}: a stage has four, all above 0."
            )
