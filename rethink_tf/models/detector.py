"""Mask R-CNN: wires backbone, FPN if any, RPN, box head, and the heads that say more of an object.

Shapes: B images, M objects, R RoIs an image, C object classes, D detections.
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.execution import ExecutionPlan
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.fpn import FPN
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.object_head import Positives
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN
from rethink_tf.ops import draws, matching
from rethink_tf.ops import pixels as pixel_ops
from rethink_tf.ops.content import Content
from rethink_tf.ops.roi_align import RoIAlign

# Detectron2's mean and deviation of ImageNet's pixels, RGB. Detectron's mean is 122.7717 115.9465
# 102.9801 with a deviation of 1.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# Proposals beside the detections: more of them hide each other in a picture.
SHOWN_PROPOSALS = 50

# What the random draws of a step are for; see `ops.draws`.
RPN_DRAWS, ROI_DRAWS = 1, 2


@gin.register
class MaskRCNN(tf_keras.Model):
    """The detector; without mask and keypoint heads it is Faster R-CNN."""

    def __init__(
        self,
        num_classes,
        backbone=ResNet,
        fpn=FPN,
        rpn=RPN,
        box_head=BoxHead,
        mask_head=MaskHead,
        keypoint_head=None,
        num_keypoints=17,
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        further_heads=(),
        plan=None,
        **kwargs,
    ):
        """Builds the parts.

        Args:
            num_classes: int C, object classes without background.
            backbone: callable without arguments, makes the backbone.
            fpn: the same for the pyramid; None takes the backbone's levels as they are, all of as
                many channels.
            rpn: the same for the RPN.
            box_head: callable taking num_classes, makes a `BoxHead` or `CascadeBoxHead`.
            mask_head: callable taking num_classes, or None for no masks.
            keypoint_head: callable taking num_keypoints, or None for no keypoints.
            num_keypoints: int K, of the data set; COCO's persons have 17.
            pixel_mean: three floats, RGB, subtracted from the pixels.
            pixel_std: three floats, RGB; the rest is divided by them.
            further_heads: callables taking num_classes, make further `ObjectHead`s.
            plan: `ExecutionPlan`, for all layers; None for TensorFlow's own operations.
            **kwargs: of the Keras model.
        """
        # Keras would cast the boxes of a batch to bfloat16, which has no odd pixels from 256 on.
        super().__init__(autocast=False, **kwargs)
        self.backbone, self.rpn = backbone(), rpn()
        self.fpn = fpn() if fpn else None
        self.box_head = box_head(num_classes=num_classes)
        self.mask_head = mask_head(num_classes=num_classes) if mask_head else None
        self.keypoint_head = keypoint_head(num_keypoints=num_keypoints) if keypoint_head else None
        self.further_heads = [head(num_classes=num_classes) for head in further_heads]
        self.num_classes = num_classes
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.plan = plan or ExecutionPlan()
        self.plan.give_to(self)

    @property
    def heads(self):
        """The heads beside the box head, `ObjectHead`s."""
        heads = [self.mask_head, self.keypoint_head, *self.further_heads]
        return [head for head in heads if head is not None]

    def create_variables(self):
        """Creates every variable, by running each part once on the smallest input that it takes."""
        # Two cells a side of the coarsest level.
        side = 2 ** (max(self.rpn.levels) + 1)
        image, size = tf.zeros([1, side, side, 3], tf.uint8), tf.constant([[side, side]])
        features = self.features(image, size)
        self.rpn(features)
        pool, roi = self._roi_align(features), tf.zeros([1, 1, 4])
        for stage in self.box_head.stages:
            stage(pool(roi, stage.roi_size))
        for head in self.heads:
            head.create_variables(pool(roi, head.roi_size)[0])

    def call(self, batch, training=False, seed=None, num_stages=None, padded=True):
        """Predicts, or in training computes what the losses need.

        Args:
            batch: dict as in `data.schema`: image uint8 [B, H, W, 3] and image_size int32 [B, 2],
                in training also image_id, boxes, classes, and masks, has_mask (without it, every
                object has a mask) and keypoints where there is a head for them. B is static; H and
                W are multiples of the backbone's coarsest stride.
            training: bool.
            seed: int32 [2], of the run and the step; needed in training.
            num_stages: int, how many stages of the box head train; None for all.
            padded: bool; False says that every image, rounded up to the coarsest stride, fills
                H x W, which saves time. With True the numbers of an image are the same in every
                H x W.

        Returns:
            In training a dict of the RPN's and the heads' sampled outputs and targets (see
            `RPN.sample`, `BoxHead.sample` and `train`; of `ObjectHead.train` after the head's name,
            such as mask_losses). Otherwise a dict: boxes float32 [B, D, 4] in pixels of the input
            image, scores float32 [B, D], classes int32 [B, D] (0 is padding) and each head's field
            (0 for padding): masks float32 [B, D, S, S], probabilities, or keypoints float32
            [B, D, K, 3], (y, x, score), pixels of the input image; and, to be looked at, the
            RPN's best `SHOWN_PROPOSALS` of each image: proposals float32 [B, <= 50, 4], pixels
            (0 for padding).
        """
        content = self._content(batch["image_size"], padded)
        features = self.features(batch["image"], batch["image_size"], training, content)
        if training:
            return self._train(features, batch, seed, num_stages, content)
        return self._predict(features, batch, content)

    def find_candidates(self, batch, padded=True):
        """Runs the detector up to the boxes that detections are chosen from.

        Args:
            batch: dict as of `call`, without training.
            padded: bool, as of `call`.

        Returns:
            dict as of `BoxHead.decode`.
        """
        content = self._content(batch["image_size"], padded)
        features = self.features(batch["image"], batch["image_size"], content=content)
        pool = self._roi_align(features, content)
        return self._find_candidates(features, pool, batch["image_size"], content)

    def describe(self, batch, detections, padded=True):
        """Runs the heads of objects on boxes that are given.

        Args:
            batch: dict as of `call`, without training.
            detections: dict: boxes float32 [B, D, 4], pixels of the input image, and classes int32
                [B, D], 0 is padding.
            padded: bool, as of `call`.

        Returns:
            dict by field of what `ObjectHead.describe` returns.
        """
        content = self._content(batch["image_size"], padded)
        features = self.features(batch["image"], batch["image_size"], content=content)
        return self._describe(self._roi_align(features, content), detections)

    def variables_of_stages(self, num_stages=None):
        """Returns the trainable variables without those of the box head's later stages.

        Args:
            num_stages: int, how many stages train; None for all.
        """
        # They have no gradient yet: to update them would be to let momentum and decay move them.
        later = self.box_head.stages[num_stages:] if num_stages else []
        left_out = {each.ref() for stage in later for each in stage.trainable_variables}
        return [each for each in self.trainable_variables if each.ref() not in left_out]

    def pretrained_parts(self):
        """Returns what a classifier of the same backbone shares: {name: layer or list of layers}.

        Those are the backbone and, where the classifier's fully connected layers follow the
        features (VGG-16), these.
        """
        parts = {"backbone": self.backbone}
        if self.backbone.shares_fcs:
            parts["fcs"] = self.box_head.stages[0].fcs
        return parts

    @property
    def coarsest_stride(self):
        """What the content of an image is rounded up to a multiple of, pixels."""
        return self.backbone.coarsest_stride

    def _content(self, image_size, padded):
        return Content.of_images(image_size, self.coarsest_stride) if padded else None

    def features(self, image, image_size, training=False, content=None):
        """Normalizes the pixels and computes the feature maps.

        Args:
            image: uint8 [B, H, W, 3], RGB.
            image_size: int32 [B, 2], (height, width), pixels; the rest is made zero.
            training: bool.
            content: `ops.content.Content` of the images; None where they fill H x W.

        Returns:
            dict {level: [B, H_l, W_l, channels]}, as `pyramid`.
        """
        pixels = pixel_ops.normalize(image, image_size, self.pixel_mean, self.pixel_std)
        return self.pyramid(tf.cast(pixels, self.compute_dtype), training, content)

    def pyramid(self, pixels, training=False, content=None):
        """Computes the feature maps of the RPN and the heads.

        Args:
            pixels: floating [B, H, W, 3], normalized.
            training: bool.
            content: as of `features`.

        Returns:
            dict {level: [B, H_l, W_l, channels]}; the stride of level l is 2 ** l pixels. They are
            zero beyond the content.

        Raises:
            ValueError: if the backbone's levels differ in channels and there is no FPN.
        """
        levels = self.backbone(pixels, training=training, content=content)
        if self.fpn:
            return self.fpn(levels, training=training, content=content)
        channels = {level: feature.shape[-1] for level, feature in levels.items()}
        if len(set(channels.values())) != 1:
            raise ValueError(
                f"MaskRCNN: the backbone's levels have different channels, {channels}, which one "
                "RPN and one head cannot share: bind MaskRCNN.fpn = @FPN."
            )
        return levels

    def _roi_align(self, features, content=None):
        """RoIAlign on the levels of the backbone: one that the FPN adds is for the RPN alone."""
        levels = self.fpn.levels if self.fpn else features
        features = {level: features[level] for level in levels}
        return RoIAlign(features, content, self.plan.roi_align, self.plan.is_fused)

    def _train(self, features, batch, seed, num_stages, content):
        image_size, boxes, classes = batch["image_size"], batch["boxes"], batch["classes"]
        if not self.plan.static_shapes:
            # Padding rows cost time in the matching of every anchor.
            used = tf.maximum(tf.reduce_max(tf.reduce_sum(tf.cast(classes > 0, tf.int32), 1)), 1)
            boxes, classes = boxes[:, :used], classes[:, :used]

        def draw_for(purpose):
            return lambda count: draws.uniform(seed, purpose, batch["image_id"], count)

        # No gradient flows through the proposals; the losses have a head of their own, on the
        # sampled anchors.
        head = self.rpn(
            {level: tf.stop_gradient(each) for level, each in features.items()}, content
        )
        outputs = self.rpn.sample(
            features, head[-1], boxes, classes > 0, draw_for(RPN_DRAWS), content
        )
        proposals, valid = self.rpn.propose(*head, image_size, training=True)
        sampled = self.box_head.sample(proposals, valid, boxes, classes, draw_for(ROI_DRAWS))
        num_rois = min(self.box_head.num_samples, proposals.shape[1] + batch["boxes"].shape[1])
        sampled = self._fill(sampled, num_rois)
        outputs |= sampled
        pool = self._roi_align(features, content)
        pooled = pool(sampled["rois"], self.box_head.roi_size)
        positives = self._positives(sampled)
        for head in self.heads:
            found = head.train(pool, positives, batch, self.plan.static_shapes)
            outputs |= {f"{head.loss_name}_{key}": value for key, value in found.items()}
        # The box head has the most to hold: its backward pass comes first, when nothing else is
        # held.
        for key in ["rpn_logits", "rpn_deltas", *(f"{h.loss_name}_losses" for h in self.heads)]:
            outputs[key], pooled = self.plan.operations.one_at_a_time(outputs[key], pooled)
        return outputs | self.box_head.train(
            pooled,
            sampled,
            pool=pool,
            objects=boxes,
            classes=classes,
            image_size=image_size,
            num_stages=num_stages,
        )

    @staticmethod
    def _fill(sampled, num_rois):
        """Fixes the number of RoIs, which depends on the data while padding rows are cut."""
        missing = num_rois - tf.shape(sampled["class_targets"])[1]
        filled = {}
        for key, value in sampled.items():
            empty = matching.IGNORED if key == "class_targets" else 0
            margin = [[0, 0], [0, missing]] + [[0, 0]] * (value.shape.rank - 2)
            value = tf.pad(value, margin, constant_values=empty)
            filled[key] = tf.ensure_shape(value, [None, num_rois] + value.shape[2:].as_list())
        return filled

    def _positives(self, sampled):
        """Returns the `Positives` of a sample, which come first among the RoIs."""
        # A sample has its positives first, and at most so many.
        limit = int(self.box_head.num_samples * self.box_head.positive_fraction)
        rois, classes = sampled["rois"][:, :limit], sampled["class_targets"][:, :limit]
        matches = sampled["roi_matches"][:, :limit]
        if not self.plan.static_shapes:
            # As many columns as the image with the most positives has, and one at least.
            used = tf.reduce_max(tf.reduce_sum(tf.cast(classes > 0, tf.int32), axis=1))
            used = tf.maximum(used, 1)
            rois, classes, matches = rois[:, :used], classes[:, :used], matches[:, :used]
        return Positives(rois, classes, matches)

    def _predict(self, features, batch, content):
        pool, image_size = self._roi_align(features, content), batch["image_size"]
        proposals, valid = self._propose(features, image_size, content)
        candidates = self.box_head.candidates(pool, proposals, valid, image_size)
        detections = self.box_head.suppress(candidates)
        described = self._describe(pool, detections)
        shown = {"proposals": proposals[:, :SHOWN_PROPOSALS]}
        return detections | self.decode(described, detections) | shown

    def decode(self, described, detections):
        """Returns the heads' fields of detections, given what `describe` returned of them."""
        boxes, classes = detections["boxes"], detections["classes"]
        return {
            head.field: head.decode(described[head.field], boxes, classes) for head in self.heads
        }

    def _find_candidates(self, features, pool, image_size, content):
        proposals, valid = self._propose(features, image_size, content)
        return self.box_head.candidates(pool, proposals, valid, image_size)

    def _propose(self, features, image_size, content):
        head = self.rpn(features, content)
        return self.rpn.propose(*head, image_size, training=False)

    def _describe(self, pool, detections):
        boxes, classes = detections["boxes"], detections["classes"]
        return {
            head.field: head.describe(pool, boxes, classes, self.plan.static_shapes)
            for head in self.heads
        }
