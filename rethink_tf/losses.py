"""The losses of the detector by name: the RPN's, the box head's, and the sums of the other heads'.

Each is a sum over its samples divided by a normalizer. The step chooses the normalizers so that the
sum of the replicas' losses is the mean over the global batch; see `training.step`.

Letters: B images, K anchors, R RoIs.
"""

import gin
import tensorflow as tf

# Of the RPN and of the box head, or the first stage of it; the others are named by their heads.
NAMES = ("rpn_objectness", "rpn_box", "box_class", "box_regression")


def smooth_l1(errors, beta):
    """Returns the smooth L1 loss of errors, elementwise.

    Args:
        errors: float32, any shape.
        beta: float >= 0; below it the loss is quadratic, 0 gives L1.

    Returns:
        float32, the same shape.

    Source: Girshick 2015, arXiv:1504.08083, equation 3; beta as in Detectron.
    """
    size = tf.abs(errors)
    if beta == 0.0:
        return size
    return tf.where(size < beta, 0.5 * tf.square(size) / beta, size - 0.5 * beta)


@gin.register
class DetectionLosses:
    """The losses of the detector's training outputs."""

    def __init__(self, rpn_beta=1.0 / 9.0, box_beta=1.0):
        """Sets the constants.

        Args:
            rpn_beta: float, smooth L1 of the RPN's deltas: Detectron's 1/9, Detectron2's 0.
            box_beta: float, of the box head's deltas: Detectron's 1, Detectron2's 0.
        """
        self.rpn_beta, self.box_beta = rpn_beta, box_beta

    @staticmethod
    def counts(outputs, num_rpn_samples):
        """Counts the samples that the losses are divided by.

        Args:
            outputs: of `MaskRCNN` in training.
            num_rpn_samples: int, `RPN.num_samples`. Detectron divides by it even where fewer
                anchors were found.

        Returns:
            dict of float32 scalars: rpn (anchors), rois (one a stage), and by the name of each head
            its samples that count.
        """
        images = tf.cast(tf.shape(outputs["rpn_labels"])[0], tf.float32)
        counts = {"rpn": images * num_rpn_samples}
        for stage in box_stages(outputs):
            counts["rois" + stage] = _count(outputs["class_targets" + stage] >= 0)
        for head in head_names(outputs):
            counts[head] = _count(outputs[f"{head}_valid"])
        return counts

    def __call__(self, outputs, normalizers):
        """Computes the losses.

        Args:
            outputs: of `MaskRCNN` in training.
            normalizers: dict of float32 scalars, keys as of `counts`, or their means over replicas
                and micro-batches, below 1 where these are more than the samples; 0 is taken as 1.

        Returns:
            dict of float32 scalars: rpn_objectness, rpn_box, box_class, box_regression (of later
            stages box_class_stage2, ...), and one of each head's `loss_name`.
        """
        # Not max(value, 1): a mean below one sample a replica is right, and 1 would shrink the
        # loss.
        divisor = {key: tf.where(value > 0.0, value, 1.0) for key, value in normalizers.items()}
        labels = outputs["rpn_labels"]
        objectness = tf.nn.sigmoid_cross_entropy_with_logits(
            tf.cast(labels == 1, tf.float32), outputs["rpn_logits"]
        )
        losses = {
            "rpn_objectness": _masked_sum(objectness, labels >= 0) / divisor["rpn"],
            "rpn_box": _box_loss(
                outputs["rpn_deltas"], outputs["rpn_delta_targets"], labels == 1, self.rpn_beta
            )
            / divisor["rpn"],
        }
        for stage in box_stages(outputs):
            losses |= self._box_losses(outputs, stage, divisor["rois" + stage])
        for head in head_names(outputs):
            total = _masked_sum(outputs[f"{head}_losses"], outputs[f"{head}_valid"])
            losses[head] = total / divisor[head]
        return losses

    def _box_losses(self, outputs, stage, divisor):
        """Returns the two losses of one stage of the box head; stage as of `box_stages`."""
        targets = outputs["class_targets" + stage]
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(targets, 0), outputs["class_logits" + stage]
        )
        deltas, delta_targets = outputs["box_deltas" + stage], outputs["box_delta_targets" + stage]
        regression = _box_loss(deltas, delta_targets, targets > 0, self.box_beta)
        return {
            "box_class" + stage: _masked_sum(cross_entropy, targets >= 0) / divisor,
            "box_regression" + stage: regression / divisor,
        }


def box_stages(outputs):
    """Returns what the names of each stage of the box head end in, for the first (or only) one "".

    Args:
        outputs: of `MaskRCNN` in training.

    Returns:
        list of str: "", "_stage2", "_stage3", ...
    """
    prefix = "class_targets"
    return sorted(key.removeprefix(prefix) for key in outputs if key.startswith(prefix))


def head_names(outputs):
    """Returns the `loss_name` of each head beside the box head that the outputs are of.

    Args:
        outputs: of `MaskRCNN` in training.
    """
    ending = "_losses"
    return [key.removesuffix(ending) for key in outputs if key.endswith(ending)]


def _count(mask):
    return tf.reduce_sum(tf.cast(mask, tf.float32))


def _masked_sum(values, mask):
    return tf.reduce_sum(tf.where(mask, values, 0.0))


def _box_loss(deltas, targets, positive, beta):
    """Returns the sum over the positives of the smooth L1 of the four deltas."""
    return _masked_sum(tf.reduce_sum(smooth_l1(deltas - targets, beta), axis=-1), positive)
