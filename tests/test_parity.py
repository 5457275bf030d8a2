"""Our numbers against Detectron2's, for the weights and the photograph of ../shared/parity.

The tolerances are those of its README.
"""

import functools
import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from detector_steps import machine_plan

from rethink_tf.evaluation import pasting
from rethink_tf.losses import DetectionLosses
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.rpn import RPN
from rethink_tf.ops.roi_align import RoIAlign
from rethink_tf.weights import detectron2, pickles

MASK_SIZE = 112
SWAP = [1, 0, 3, 2]  # (x, y, x, y) to (y, x, y, x) and back, and the deltas likewise


@pytest.fixture(scope="module")
def parity_dir(shared_dir):
    return shared_dir / "parity"


@pytest.fixture(scope="module")
def reference(parity_dir):
    return np.load(parity_dir / "r50_fpn_gn.npz")


@pytest.fixture(scope="module")
def detector(parity_dir, tmp_path_factory):
    spec = importlib.util.spec_from_file_location("parity_weights", parity_dir / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    path = tmp_path_factory.mktemp("parity") / "r50_fpn_gn.pkl"
    weights.write_checkpoint(str(parity_dir / "r50_fpn_gn.spec.json"), str(path))
    counts = dict(train_pre_nms=500, train_proposals=300, test_pre_nms=500, test_proposals=300)
    model = MaskRCNN(
        80,
        rpn=functools.partial(RPN, num_samples=65536, **counts),
        box_head=functools.partial(BoxHead, num_samples=4096, positive_fraction=0.5),
        plan=machine_plan(),
    )
    model.create_variables()
    arrays = pickles.load_arrays(path)
    assert detectron2.num_classes(arrays) == 80
    detectron2.load(model, arrays)
    return model


@pytest.fixture(scope="module")
def batch(reference):
    image = reference["image_rgb"]
    return {
        "image": tf.constant(image[np.newaxis]),
        "image_size": tf.constant([image.shape[:2]], tf.int32),
    }


@pytest.fixture(scope="module")
def features(detector, batch):
    return detector.features(batch["image"], batch["image_size"])


@pytest.fixture(scope="module")
def training(detector, batch, reference):
    """Returns the losses and the gradients of one training step on the reference's objects."""
    boxes = reference["gt/boxes_xyxy"][:, SWAP]
    full = np.unpackbits(reference["gt/masks_packed"], axis=-1)
    objects = {
        "image_id": tf.constant([1], tf.int64),
        "boxes": tf.constant(boxes[np.newaxis], tf.float32),
        "classes": tf.constant(reference["gt/classes"][np.newaxis] + 1, tf.int32),
        "masks": tf.constant(crop_masks(full, boxes)[np.newaxis]),
    }
    losses_fn = DetectionLosses(rpn_beta=0.0, box_beta=0.0)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            outputs = detector(batch, training=True, seed=tf.constant([0, 0]))
            counts = losses_fn.counts(outputs, detector.rpn.num_samples)
            losses = losses_fn(outputs, counts)
            total = tf.add_n(list(losses.values()))
        return losses, tape.gradient(total, detector.trainable_variables)

    losses, gradients = step(batch | objects)
    names = {id(v): g for v, g in zip(detector.trainable_variables, gradients, strict=True)}
    return losses, names


def crop_masks(masks, boxes):
    """Samples full-size masks at MASK_SIZE x MASK_SIZE places of their boxes, in NumPy."""
    crops = []
    for mask, (y1, x1, y2, x2) in zip(masks, boxes, strict=True):
        fractions = (np.arange(MASK_SIZE) + 0.5) / MASK_SIZE
        rows = np.clip(y1 + fractions * (y2 - y1), 0, mask.shape[0] - 1).astype(int)
        columns = np.clip(x1 + fractions * (x2 - x1), 0, mask.shape[1] - 1).astype(int)
        crops.append(mask[np.ix_(rows, columns)] * 255)
    return np.stack(crops).astype(np.uint8)


def assert_close(ours, theirs, tolerance=1e-4):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < tolerance, f"relative error {error:.2e}"


def test_features_agree(detector, batch, features, reference):
    pixels = (batch["image"].numpy() - np.array(detector.pixel_mean)) / detector.pixel_std
    stages = detector.backbone(tf.constant(pixels, tf.float32))
    for level in (2, 3, 4, 5):
        step = max(1, stages[level].shape[1] // 8)
        assert_close(stages[level][:, ::step, ::step], reference[f"backbone/res{level}"])
    for level in (2, 3, 4, 5, 6):
        step = max(1, features[level].shape[1] // 8)
        assert_close(features[level][:, ::step, ::step], reference[f"fpn/p{level}"])
        mean = tf.reduce_mean(features[level], axis=[0, 1, 2])
        assert_close(mean, reference[f"fpn_channel_mean/p{level}"])


def test_rpn_agrees(detector, features, reference):
    logits, deltas, _ = detector.rpn(features)
    for level in (2, 3, 4, 5, 6):
        height, width = features[level].shape[1:3]
        step = 4 if level < 4 else 1
        ours = np.reshape(logits[level], [1, height, width, 3])[:, ::step, ::step]
        assert_close(ours, reference[f"rpn_logits/p{level}"])
        ours = np.reshape(deltas[level], [1, height, width, 3, 4])[..., SWAP]
        ours = ours[:, ::step, ::step].reshape(reference[f"rpn_deltas/p{level}"].shape)
        assert_close(ours, reference[f"rpn_deltas/p{level}"])


def test_proposals_agree(detector, batch, features, reference):
    boxes, valid = detector.rpn.propose(
        *detector.rpn(features), batch["image_size"], training=False
    )
    ours = boxes[0].numpy()[valid[0].numpy()][:, SWAP]
    theirs = reference["proposals/boxes_xyxy"]
    distance = np.abs(theirs[:, np.newaxis] - ours[np.newaxis]).max(-1).min(1)
    assert np.mean(distance < 0.1) >= 0.98
    assert len(ours) == len(theirs)


def test_heads_agree_on_fixed_boxes(detector, features, reference):
    boxes = tf.constant(reference["fixed_boxes_xyxy"][:, SWAP])[tf.newaxis]
    levels = {level: features[level] for level in (2, 3, 4, 5)}
    pooled = RoIAlign(levels)(boxes, 7)
    assert_close(pooled[0, ..., ::8], reference["roi_align_7x7"])
    logits, deltas = detector.box_head(pooled)
    assert_close(np.roll(logits[0], -1, axis=-1), reference["box_head/class_logits"])
    ours = deltas.numpy()[0][..., SWAP].reshape(5, -1)
    assert_close(ours, reference["box_head/box_deltas"])
    masks = detector.mask_head(RoIAlign(levels)(boxes, 14)[0], tf.ones([5], tf.int32))
    assert_close(masks, reference["mask_head/logits_class0"])


def test_detections_agree(detector, batch, reference):
    found = {key: value[0].numpy() for key, value in detector(batch).items()}
    boxes, count = found["boxes"][:, SWAP], int((found["classes"] > 0).sum())
    theirs = reference["detections/boxes_xyxy"]
    assert count == len(theirs)
    same, overlaps = 0, []
    for row, box in enumerate(theirs):
        near = np.abs(boxes - box).max(axis=1) < 0.1
        near &= found["classes"] == reference["detections/classes"][row] + 1
        near &= np.abs(found["scores"] - reference["detections/scores"][row]) < 1e-3
        if not near.any():
            continue
        same += 1
        match = int(np.argmax(near))
        height, width = batch["image"].shape[1:3]
        ours = pasting.paste_mask(found["masks"][match], found["boxes"][match], height, width)
        mask = np.unpackbits(reference["detections/mask_packed"][row], axis=-1)
        union = np.logical_or(ours, mask).sum()
        overlaps.append(np.logical_and(ours, mask).sum() / union if union else 1.0)
    assert same >= 98
    assert min(overlaps) > 0.98


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        ("rpn_objectness", "loss_rpn_cls", 1e-3),
        ("rpn_box", "loss_rpn_loc", 1e-3),
        ("box_class", "loss_cls", 1e-3),
        ("box_regression", "loss_box_reg", 1e-3),
        ("mask", "loss_mask", 1e-2),
    ],
)
def test_losses_agree(training, reference, ours, theirs, tolerance):
    losses, _ = training
    np.testing.assert_allclose(losses[ours], reference[f"loss/{theirs}"], rtol=tolerance)


def test_gradient_norms_agree(detector, training, reference):
    _, gradients = training
    expected = dict(zip(reference["grad_norm_names"], reference["grad_norm"], strict=True))
    wrong = []
    for parameter in detectron2.parameters(detector):
        gradient = tf.convert_to_tensor(gradients[id(parameter.variable)])
        ours, theirs = float(tf.norm(gradient)), float(expected.pop(parameter.name))
        tolerance = 0.03 if "mask_head" in parameter.name else 0.01
        if abs(ours - theirs) > tolerance * theirs:
            wrong.append(f"{parameter.name}: {ours:.6g}, Detectron2 has {theirs:.6g}")
    assert not wrong, "\n".join(wrong)
    assert not expected
