"""Model Garden's Mask R-CNN (`official.vision`) on the batches of `inputs`, for comparison.

Its model, losses and training step are its own, with its own defaults (batch normalization, masks
of 128 RoIs an image); anchors are matched in its input, so that its step gets the targets ready.
"""

import tensorflow as tf
import tf_keras
from official.vision.configs import backbones
from official.vision.configs import maskrcnn as configs
from official.vision.ops import anchor
from official.vision.tasks import maskrcnn as tasks

from rethink_tf.data import schema

LEVELS = (2, 6)


def make_task(num_classes, side, depth=50, num_rois=512, num_proposals=1000, max_objects=100):
    """Configures the task.

    Args:
        num_classes: int C, without background.
        side: (height, width) of the images, pixels.
        depth: int, of the ResNet.
        num_rois: int, RoIs an image in training.
        num_proposals: int, proposals an image.
        max_objects: int, object rows an image.

    Returns:
        `MaskRCNNTask`; its `build_model` makes the model.
    """
    backbone = backbones.Backbone(type="resnet", resnet=backbones.ResNet(model_id=depth))
    model = configs.MaskRCNN(num_classes=num_classes + 1, input_size=[*side, 3], backbone=backbone)
    model.norm_activation.use_sync_bn = False  # one replica
    model.roi_sampler.num_sampled_rois = num_rois
    model.roi_generator.num_proposals = num_proposals
    model.roi_generator.test_num_proposals = num_proposals
    # Weights are random, and every side is to predict its full number of detections.
    model.detection_generator.pre_nms_score_threshold = 0.0
    task = configs.MaskRCNNTask(model=model)
    task.losses.l2_weight_decay = 1e-4
    task.train_data.parser.max_num_instances = max_objects
    return tasks.MaskRCNNTask(task)


def make_inputs(task, batch):
    """Turns a batch of `inputs.make_batch` into the images and labels of Model Garden.

    Args:
        task: of `make_task`.
        batch: dict as in `data.schema`.

    Returns:
        images, floating [B, H, W, 3], and the dict of labels.
    """
    dtype = tf_keras.mixed_precision.global_policy().compute_dtype
    images = tf.cast(batch[schema.IMAGE], tf.float32) / 255.0
    images = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = task.task_config.model
    generator = anchor.build_anchor_generator(
        *LEVELS, model.anchor.num_scales, model.anchor.aspect_ratios, model.anchor.anchor_size
    )
    anchors = generator(image_size=images.shape[1:3])
    labeler = anchor.RpnAnchorLabeler(0.7, 0.3, 256, 0.5)
    scores, boxes = [], []
    for image_boxes, classes in zip(batch[schema.BOXES], batch[schema.CLASSES], strict=True):
        used = int(tf.reduce_sum(tf.cast(classes > 0, tf.int32)))
        labels = tf.cast(classes[:used, tf.newaxis], tf.float32)
        image_scores, image_deltas = labeler.label_anchors(anchors, image_boxes[:used], labels)
        scores.append(image_scores)
        boxes.append(image_deltas)
    empty = batch[schema.CLASSES] == 0

    def stack(each):
        return {level: tf.stack([image[level] for image in each]) for level in each[0]}

    count = images.shape[0]
    size = tf.cast(batch[schema.IMAGE_SIZE], tf.float32)
    ones, zeros = tf.ones_like(size), tf.zeros_like(size)
    return tf.cast(images, dtype), {
        "image_info": tf.stack([size, size, ones, zeros], axis=1),
        "anchor_boxes": {
            level: tf.tile(value[tf.newaxis], [count, 1, 1, 1]) for level, value in anchors.items()
        },
        "rpn_score_targets": stack(scores),
        "rpn_box_targets": stack(boxes),
        "gt_boxes": tf.where(empty[..., tf.newaxis], -1.0, batch[schema.BOXES]),
        "gt_classes": tf.where(empty, -1, batch[schema.CLASSES]),
        "gt_masks": tf.cast(batch[schema.MASKS], tf.float32) / 255.0,
    }
