"""The evaluator with a predictor of fixed outputs: order, errors, pictures and files."""

import contextlib
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import metrics_file
from rethink_tf.data import schema
from rethink_tf.evaluation import coco_metrics, inference, pasting

SIZES = [(48, 64), (64, 48), (40, 40)]
CATEGORY_IDS = [7, 3]
BATCH, DETECTIONS, SIDE = 2, 6, 14


class FixedPredictor:
    """Gives a batch's own arrays back, as a detector's outputs."""

    fields = ("masks",)
    strategy = tf.distribute.get_strategy()

    def __call__(self, batch):
        return {key: value for key, value in batch.items() if key not in schema_of_images()}


def schema_of_images():
    return (schema.IMAGE, schema.IMAGE_SIZE)


def make_batches(seed=0, num_images=7):
    generator = np.random.default_rng(seed)
    batches = []
    for start in range(0, num_images, BATCH):
        ids = np.arange(start, start + BATCH)
        sizes = np.array([SIZES[i % len(SIZES)] for i in ids], np.int32)
        ids = np.where(ids < num_images, ids + 100, schema.PADDING_IMAGE_ID)
        corner = generator.random([BATCH, DETECTIONS, 2]) * 60
        side = 5 + generator.random([BATCH, DETECTIONS, 2]) * 50
        classes = generator.integers(0, 3, [BATCH, DETECTIONS]).astype(np.int32)
        batches.append(
            {
                schema.IMAGE: tf.zeros([BATCH, 96, 96, 3], tf.uint8),
                schema.IMAGE_SIZE: tf.constant(sizes * 3 // 2),
                schema.IMAGE_ID: ids,
                schema.ORIGINAL_SIZE: sizes,
                schema.IMAGE_SCALE: np.full([BATCH, 2], 1.5, np.float32),
                "boxes": np.concatenate([corner, corner + side], -1).astype(np.float32),
                "scores": generator.random([BATCH, DETECTIONS]).astype(np.float32),
                "classes": classes,
                "masks": generator.random([BATCH, DETECTIONS, SIDE, SIDE]).astype(np.float32),
            }
        )
    return batches


def make_evaluator(folder, batches, predictor=None, **more):
    images = [
        {"id": int(image_id), "height": int(height), "width": int(width)}
        for batch in batches
        for image_id, (height, width) in zip(
            batch[schema.IMAGE_ID], batch[schema.ORIGINAL_SIZE], strict=True
        )
        if image_id != schema.PADDING_IMAGE_ID
    ]
    categories = [{"id": i, "name": str(i)} for i in CATEGORY_IDS]
    truth = {"images": images, "annotations": [], "categories": categories}
    return inference.Evaluator(
        predictor=predictor or FixedPredictor(),
        make_batches=lambda: batches,
        num_batches=len(batches),
        ground_truth=truth,
        category_ids=CATEGORY_IDS,
        model_dir=str(folder),
        step=tf.Variable(3, dtype=tf.int64),
        **more,
    )


def expected_results(batches):
    """The same one by one, by way of whole masks."""
    results = []
    for batch in batches:
        for row, image_id in enumerate(batch[schema.IMAGE_ID]):
            if image_id == schema.PADDING_IMAGE_ID:
                continue
            height, width = batch[schema.ORIGINAL_SIZE][row]
            for k in np.flatnonzero(batch["classes"][row]):
                box = np.clip(batch["boxes"][row][k] / 1.5, 0, [height, width] * 2)
                mask = pasting.paste_mask(batch["masks"][row][k], box, height, width)
                results += coco_metrics.detections_to_coco(
                    image_id,
                    [box],
                    [batch["scores"][row][k]],
                    [sorted(CATEGORY_IDS)[batch["classes"][row][k] - 1]],
                    segmentation=[pasting.encode_mask(mask)],
                )
    return results


def test_results_are_those_of_one_after_the_other(tmp_path):
    batches = make_batches()
    batches[2]["classes"][0] = 0  # nothing is detected
    evaluator = make_evaluator(tmp_path, batches)
    evaluator.evaluate(-1)
    found = coco_metrics.read_results(tmp_path / "results" / "detections-3.json")
    assert found == json.loads(json.dumps(expected_results(batches)))
    assert len({result["image_id"] for result in found}) == 6
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3 and json.loads(line)["mask/AP"] == -1.0
    first = dict(evaluator.metrics)
    evaluator.evaluate(-1)
    assert dict(evaluator.metrics) == first


def test_matches_are_kept_of_the_last_step_alone(tmp_path):
    for last_step, is_kept in ((4, False), (3, True)):
        make_evaluator(tmp_path, make_batches(), last_step=last_step).evaluate(-1)
        assert os.path.exists(metrics_file.matches_path(str(tmp_path), 3)) == is_kept
    with np.load(metrics_file.matches_path(str(tmp_path), 3)) as arrays:
        assert arrays["image_ids"].tolist() == list(range(100, 107))
        # No object at all: each detection of 0.5 or more is one of nothing.
        scores = [result["score"] for result in expected_results(make_batches())]
        assert arrays["confusion"][-1].sum() == sum(score >= 0.5 for score in scores)


def test_a_line_of_metrics_stays_apart_from_half_a_line(tmp_path):
    """What a kill has left in the file swallows no later evaluation."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "box/AP": 0.5}\n{"step": 2, "bo')
    make_evaluator(tmp_path, make_batches()).evaluate(-1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"step": 1, "box/AP": 0.5}', '{"step": 2, "bo']
    assert json.loads(lines[2])["step"] == 3 and len(lines) == 3
    assert metrics_file.evaluated_steps(str(tmp_path)) == {1, 3}


def test_the_weights_to_measure_are_held_while_it_predicts(tmp_path):
    weight = tf.Variable(0.25)

    class OneScore(FixedPredictor):
        def __call__(self, batch):
            scores = np.full([BATCH, DETECTIONS], weight.numpy())
            return super().__call__(batch) | {"scores": scores}

    @contextlib.contextmanager
    def weights():
        weight.assign(0.75)
        try:
            yield
        finally:
            weight.assign(0.25)

    evaluator = make_evaluator(tmp_path, make_batches(), OneScore(), weights=weights)
    evaluator.evaluate(-1)
    found = coco_metrics.read_results(evaluator.results_path)
    assert {result["score"] for result in found} == {0.75} and float(weight) == 0.25


def test_an_error_in_the_background_names_the_image(tmp_path):
    batches = make_batches()
    batches[1]["boxes"][1, :] = np.nan
    batches[1]["classes"][1, 0] = 1
    with pytest.raises(ValueError, match="Detections of image 103: box 0 must be finite"):
        make_evaluator(tmp_path, batches).evaluate(-1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_detector_without_masks(tmp_path):
    class BoxPredictor(FixedPredictor):
        fields = ()

    batches = make_batches()
    evaluator = make_evaluator(tmp_path, batches, BoxPredictor())
    evaluator.evaluate(-1)
    found = coco_metrics.read_results(evaluator.results_path)
    assert found and all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in found)
    assert "mask/AP" not in evaluator.metrics


def test_keypoints_are_brought_into_the_stored_image(tmp_path):
    class KeypointPredictor(FixedPredictor):
        fields = ("keypoints",)

    batches = make_batches()
    generator = np.random.default_rng(1)
    for batch in batches:
        batch["keypoints"] = generator.uniform(1, 60, [BATCH, DETECTIONS, 2, 3]).astype(np.float32)
    shown = []

    def pictures(image_id, image, found):
        shown.append(found["keypoints"])

    evaluator = make_evaluator(tmp_path, batches, KeypointPredictor(), pictures=pictures)
    evaluator.evaluate(-1)
    first = coco_metrics.read_results(evaluator.results_path)[0]
    k = np.flatnonzero(batches[0]["classes"][0])[0]
    y, x, score = batches[0]["keypoints"][0, k].T
    # Half a pixel back to COCO's indices; the network saw the image at 1.5 of its size.
    expected = np.stack([x / 1.5 - 0.5, y / 1.5 - 0.5, score], -1)
    np.testing.assert_allclose(np.reshape(first["keypoints"], [2, 3]), expected, rtol=1e-5)
    np.testing.assert_allclose(shown[0][0], batches[0]["keypoints"][0, k], rtol=1e-6)
    assert evaluator.metrics["keypoints/AP"] == -1.0


def test_pictures_get_whole_masks_of_the_first_batch(tmp_path):
    shown = []

    def pictures(image_id, image, found):
        shown.append((image_id, image.shape, [mask.shape for mask in found["masks"]]))

    batches = make_batches()
    make_evaluator(tmp_path, batches, pictures=pictures).evaluate(-1)
    assert [image_id for image_id, _, _ in shown] == [100, 101]
    for row, (_, shape, masks) in enumerate(shown):
        height, width = batches[0][schema.IMAGE_SIZE][row].numpy()
        assert shape == (height, width, 3)
        assert masks == [(height, width)] * np.count_nonzero(batches[0]["classes"][row])
