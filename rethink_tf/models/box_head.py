"""Box head (Fast R-CNN): the sample of RoIs, the head, and the final detections.

Shapes: B images, R RoIs an image, M objects, C object classes (logits have C + 1, class 0 is
background), K boxes a RoI (one a class, or one for all of them), D detections. Deltas are
(dy, dx, dh, dw). Constants are those of Detectron and Detectron2 (Girshick 2015, arXiv:1504.08083;
Lin et al. 2017, arXiv:1612.03144; the head "4conv1fc" is of Wu and He 2018, arXiv:1803.08494).
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import matching, nms
from rethink_tf.ops.content import Rows

# Beyond so many (box, class) pairs above the score threshold, the lowest are dropped before the
# suppression. The 100 detections of an image come from the first few hundred.
MAX_CANDIDATES = 4096


@gin.register
class BoxHead(tf_keras.layers.Layer):
    """Convolutions, fully connected layers, class logits and box deltas."""

    def __init__(
        self,
        num_classes,
        num_convs=4,
        conv_channels=256,
        num_fcs=1,
        fc_channels=1024,
        normalizer="gn",
        roi_size=7,
        positive_from=0.5,
        num_samples=512,
        positive_fraction=0.25,
        box_weights=(10.0, 10.0, 5.0, 5.0),
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=100,
        class_agnostic=False,
        **kwargs,
    ):
        """Makes the layers.

        Args:
            num_classes: int C, object classes without background.
            num_convs: int, 3x3 convolutions: 4 for "4conv1fc", 0 for "2fc".
            conv_channels: int.
            num_fcs: int: 1 for "4conv1fc", 2 for "2fc".
            fc_channels: int.
            normalizer: one of `layers.normalization.NORMALIZERS`, of the convolutions.
            roi_size: int, side of the pooled features.
            positive_from: float, IoU from which a RoI is an object; below, background.
            num_samples: int R, RoIs an image that enter the losses.
            positive_fraction: float, at most this share of them are objects.
            box_weights: four floats, multiplied into the regression targets.
            score_threshold: float; detections must score above.
            nms_threshold: float, IoU, within a class.
            max_detections: int D, an image.
            class_agnostic: bool, whether a RoI has one box for all classes, not one a class.
            **kwargs: of the Keras layer.
        """
        super().__init__(autocast=False, **kwargs)
        self.num_classes, self.roi_size = num_classes, roi_size
        self.positive_from = positive_from
        self.num_samples, self.positive_fraction = num_samples, positive_fraction
        self.box_weights = tuple(box_weights)
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections = max_detections
        self.num_boxes = 1 if class_agnostic else num_classes
        self.convs = [
            conv.ConvNorm(conv_channels, 3, 1, normalizer, name=f"conv{i + 1}")
            for i in range(num_convs)
        ]

        def dense(units, initializer, name, activation=None):
            return conv.Dense(units, activation, kernel_initializer=initializer, name=name)

        # With deltas near 0, training starts from the proposals themselves.
        self.fcs = [dense(fc_channels, conv.xavier(), f"fc{i + 1}", "relu") for i in range(num_fcs)]
        self.class_logits = dense(num_classes + 1, conv.normal(0.01), "class_logits")
        self.deltas = dense(self.num_boxes * 4, conv.normal(0.001), "deltas")

    @property
    def stages(self):
        """The heads that the RoIs go through, one after the other: this one alone."""
        return [self]

    def call(self, rois, training=False, valid=None):
        """Runs the head.

        Args:
            rois: floating [B, R, S, S, channels], pooled features.
            training: bool.
            valid: bool [B, R], which RoIs are there; None for all.

        Returns:
            class_logits float32 [B, R, C + 1] and deltas float32 [B, R, K, 4].
        """
        num_rois, side, channels = rois.shape[1], rois.shape[2], rois.shape[-1]
        outputs = tf.reshape(rois, [-1, side, side, channels])
        rows = None if valid is None else Rows(tf.reshape(valid, [-1]))
        outputs = conv.run(self.convs, outputs, training, rows)
        outputs = tf.reshape(outputs, [-1, side * side * outputs.shape[-1]])
        for layer in self.fcs:
            outputs = layer(outputs)
        logits = tf.cast(self.class_logits(outputs), tf.float32)
        deltas = tf.cast(self.deltas(outputs), tf.float32)
        return (
            tf.reshape(logits, [-1, num_rois, self.num_classes + 1]),
            tf.reshape(deltas, [-1, num_rois, self.num_boxes, 4]),
        )

    def sample(self, proposals, proposal_valid, objects, classes, draw):
        """Draws the RoIs that enter the losses; the objects' own boxes are candidates too.

        Args:
            proposals: float32 [B, P, 4], pixels.
            proposal_valid: bool [B, P].
            objects: float32 [B, M, 4], pixels.
            classes: int32 [B, M], 0 is padding.
            draw: callable, number of draws N -> float32 [B, N] uniform.

        Returns:
            dict: rois float32 [B, R, 4], objects first; class_targets int32 [B, R] (0 background,
            -1 an empty slot); box_delta_targets float32 [B, R, 4]; roi_matches int32 [B, R], the
            object of each RoI.
        """
        # Untrained proposals may miss every object; the objects' own boxes never do.
        candidates = tf.concat([proposals, objects], axis=1)
        valid = tf.concat([proposal_valid, classes > 0], axis=1)
        labels, matches = self._match(candidates, valid, objects, classes)
        indices, sampled = matching.sample(
            labels, draw(tf.shape(candidates)[1]), self.num_samples, self.positive_fraction
        )
        rois = tf.gather(candidates, indices, batch_dims=1)
        matches = tf.gather(matches, indices, batch_dims=1)
        return self._targets(rois, sampled, matches, objects, classes)

    def label(self, rois, valid, objects, classes):
        """Labels RoIs that were chosen before, and keeps every one in its slot.

        Args:
            rois: float32 [B, R, 4], pixels.
            valid: bool [B, R]; False marks an empty slot.
            objects: float32 [B, M, 4], pixels.
            classes: int32 [B, M], 0 is padding.

        Returns:
            dict as of `sample`.
        """
        labels, matches = self._match(rois, valid, objects, classes)
        return self._targets(rois, labels, matches, objects, classes)

    def _match(self, candidates, valid, objects, classes):
        labels, matches = matching.match(
            candidates, objects, classes > 0, self.positive_from, self.positive_from
        )
        return tf.where(valid, labels, matching.IGNORED), matches

    def _targets(self, rois, labels, matches, objects, classes):
        targets = tf.where(
            labels == matching.POSITIVE, tf.gather(classes, matches, batch_dims=1), labels
        )
        delta_targets = box_ops.encode_boxes(
            tf.gather(objects, matches, batch_dims=1), rois, self.box_weights
        )
        return {
            "rois": rois,
            "class_targets": targets,
            "box_delta_targets": delta_targets,
            "roi_matches": matches,
        }

    def train(self, pooled, sampled, **cascade):
        """Runs the head on the RoIs that enter the losses.

        Args:
            pooled: floating [B, R, S, S, channels], features of the RoIs.
            sampled: dict of `sample`.
            **cascade: what only later stages need; see `CascadeBoxHead.train`.

        Returns:
            dict: class_logits float32 [B, R, C + 1]; box_deltas float32 [B, R, 4], those of the
            target's class.
        """
        del cascade
        valid = sampled["class_targets"] != matching.IGNORED
        class_logits, deltas = self(pooled, training=True, valid=valid)
        # Background takes the first, which no loss sees.
        boxes = tf.clip_by_value(sampled["class_targets"] - 1, 0, self.num_boxes - 1)
        return {
            "class_logits": class_logits,
            "box_deltas": tf.gather(deltas, boxes, batch_dims=2),
        }

    def candidates(self, pool, proposals, proposal_valid, image_size):
        """Runs the head, up to the boxes that `suppress` chooses the detections from.

        Args:
            pool: `RoIAlign` of the image's features.
            proposals: float32 [B, P, 4], pixels.
            proposal_valid: bool [B, P].
            image_size: int32 [B, 2], (height, width), pixels.

        Returns:
            dict as of `decode`.
        """
        class_logits, deltas = self(pool(proposals, self.roi_size))
        return self.decode(class_logits, deltas, proposals, proposal_valid, image_size)

    def decode(self, class_logits, deltas, proposals, proposal_valid, image_size):
        """Turns the head's outputs into the boxes that detections are chosen from.

        Args:
            class_logits: float32 [B, P, C + 1].
            deltas: float32 [B, P, K, 4].
            proposals: float32 [B, P, 4], pixels.
            proposal_valid: bool [B, P].
            image_size: int32 [B, 2], (height, width), pixels.

        Returns:
            dict: boxes float32 [B, N, 4], clipped to the image, pixels; scores float32 [B, N],
            above the threshold by falling score, or NO_SCORE, which marks padding rows; classes
            int32 [B, N], 1..C. N is at most MAX_CANDIDATES.
        """
        num_classes, num_proposals = self.num_classes, proposals.shape[1]
        scores = tf.nn.softmax(class_logits)[..., 1:]
        usable = (scores > self.score_threshold) & proposal_valid[..., tf.newaxis]
        # One number that is not finite would spoil the suppression of the whole image.
        usable &= tf.reduce_all(tf.math.is_finite(deltas), axis=-1)
        scores = tf.where(usable, scores, nms.NO_SCORE)
        total = num_proposals * num_classes
        scores, order = tf.math.top_k(tf.reshape(scores, [-1, total]), min(MAX_CANDIDATES, total))
        rows, columns = order // num_classes, order % num_classes
        boxes = rows * self.num_boxes + tf.minimum(columns, self.num_boxes - 1)
        deltas = tf.gather(
            tf.reshape(deltas, [-1, num_proposals * self.num_boxes, 4]), boxes, batch_dims=1
        )
        anchors = tf.gather(proposals, rows, batch_dims=1)
        boxes = box_ops.decode_boxes(deltas, anchors, self.box_weights)
        boxes = box_ops.clip_boxes(boxes, image_size)
        scores = tf.where(box_ops.area(boxes) > 0.0, scores, nms.NO_SCORE)
        return {"boxes": boxes, "scores": scores, "classes": columns + 1}

    def suppress(self, candidates):
        """Chooses the detections of each image.

        Args:
            candidates: dict as of `decode`.

        Returns:
            dict: boxes float32 [B, D, 4], pixels of the input image; scores float32 [B, D];
            classes int32 [B, D], 1..C; by falling score, zero where there are fewer than D.
        """
        boxes, scores, classes = (candidates[key] for key in ("boxes", "scores", "classes"))
        kept, valid = nms.suppress_per_class(
            boxes, scores, classes, self.max_detections, self.nms_threshold
        )
        return {
            "boxes": tf.where(valid[..., tf.newaxis], tf.gather(boxes, kept, batch_dims=1), 0.0),
            "scores": tf.where(valid, tf.gather(scores, kept, batch_dims=1), 0.0),
            "classes": tf.where(valid, tf.gather(classes, kept, batch_dims=1), 0),
        }
