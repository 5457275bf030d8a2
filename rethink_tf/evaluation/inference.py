"""Runs a detector over a data set and turns its detections into metrics.

While a batch is predicted, a thread pastes and encodes the masks of the one before.
"""

import contextlib
import functools
import itertools
import operator
import os
import time

import numpy as np
import orbit
import tensorflow as tf
import tqdm
from absl import logging

from rethink_tf import console, metrics_file
from rethink_tf.data import schema
from rethink_tf.evaluation import coco_metrics, matches, overlap, placing
from rethink_tf.ops.content import split_padding


class Predictor:
    """Predicts for distributed batches and brings the detections of all replicas together."""

    def __init__(self, detector, strategy, batch_spec=None):
        """Sets up the prediction; all variables must exist.

        Args:
            detector: `MaskRCNN`; its plan says whether XLA compiles the prediction.
            strategy: `tf.distribute.Strategy` that it was made under.
            batch_spec: element spec of the distributed batches, without `ops.content.PADDING`. What
                is open in it, H and W, is open in the program, which serves all shapes. None makes
                a program for each shape, which XLA needs.
        """
        self.strategy = strategy
        self.fields = tuple(head.field for head in detector.heads)
        self._detector = detector
        self._run = {
            padded: tf.function(
                functools.partial(self._on_all_replicas, padded=padded),
                batch_spec and [batch_spec],
                autograph=False,
                jit_compile=detector.plan.jit_compile or None,
            )
            for padded in (False, True)
        }

    def __call__(self, batch):
        """Predicts.

        Args:
            batch: distributed evaluation batch (`data.schema`).

        Returns:
            dict of NumPy arrays over the global batch: the detector's outputs, and `image_id`,
            `original_size` and `image_scale` of the batch.
        """
        batch, padded = split_padding(batch)
        return {key: value.numpy() for key, value in self._run[padded](batch).items()}

    @property
    def num_traces(self):
        """How many programs were made so far."""
        return sum(each.experimental_get_tracing_count() for each in self._run.values())

    def _on_all_replicas(self, batch, padded):
        def predict(batch):
            detections = self._detector(batch, training=False, padded=padded)
            keys = (schema.IMAGE_ID, schema.ORIGINAL_SIZE, schema.IMAGE_SCALE)
            return detections | {key: batch[key] for key in keys}

        outputs = self.strategy.run(predict, args=(batch,))
        return {key: self.strategy.gather(value, axis=0) for key, value in outputs.items()}


class Evaluator(orbit.AbstractEvaluator):
    """Evaluates for Orbit's controller: predict, paste, save the detections, measure, record.

    Attributes:
        metrics: {name: float} of the last evaluation; empty before there was one.
        results_path: str, where its detections are; None likewise.
        seconds: float, how long all evaluations of this object took, and last_seconds the last.
        pictures: as given.
    """

    def __init__(
        self,
        predictor,
        make_batches,
        num_batches,
        ground_truth,
        category_ids,
        model_dir,
        step,
        is_chief=True,
        pictures=None,
        metrics=coco_metrics.CocoMetrics,
        is_augmented=False,
        weights=contextlib.nullcontext,
        check_stop=None,
        last_step=None,
    ):
        """Sets up the evaluation; the predictor and the metrics are made before.

        Args:
            predictor: `Predictor`.
            make_batches: callable without arguments, returns an iterable of distributed evaluation
                batches (`data.schema`).
            num_batches: int, how many global batches that gives, for the progress bar.
            ground_truth: dict in COCO form, of exactly the images to evaluate.
            category_ids: sorted ids of the data set's categories; class k is the k-th.
            model_dir: str; `metrics.jsonl` and `results/` are written there.
            step: variable that counts the training steps.
            is_chief: bool, whether this process writes. All measure, so that all agree on which
                checkpoint is the best.
            pictures: callable or None, called for the first images of each evaluation with the
                image's id, its resized pixels uint8 [h, w, 3], and a dict of detections in those
                pixels: boxes, scores, category_ids, and the heads' fields as of `forms`.
            metrics: callable taking ground_truth and fields, what detections have beside boxes,
                returns an object with `evaluate`, `format_table` and `headline`, such as
                `CocoMetrics`.
            is_augmented: bool, whether the predictor is one of `test_time_augmentation`. Its lines
                of `metrics.jsonl` then have "test_augmentation": true, its results' file another
                name, and its summaries another prefix, for they are no later values of the same.
            weights: callable without arguments, returns a context in which the detector holds the
                weights to measure; by default those it has.
            check_stop: callable without arguments, called after each batch; what it raises ends the
                evaluation. None for none.
            last_step: int, the step whose evaluation also keeps what was matched, for a bootstrap
                over images, where the metrics have `matches`; None for none.
        """
        self._predictor, self._make_batches = predictor, make_batches
        self._num_batches, self._num_images = num_batches, len(ground_truth["images"])
        # The object keeps the ground truth: Orbit's base class would wrap every list and dict of it
        # here, and pycocotools takes plain ones only.
        self._measure = metrics(ground_truth=ground_truth, fields=predictor.fields)
        self._placer = placing.Placer(category_ids, predictor.fields)
        self._model_dir, self._step, self._is_chief = model_dir, step, is_chief
        self.pictures, self._is_augmented, self._weights = pictures, is_augmented, weights
        self._check_stop = check_stop or (lambda: None)
        self._last_step = last_step
        self.metrics, self.results_path = {}, None
        self.seconds = self.last_seconds = 0.0

    @property
    def score(self):
        """The number of the last evaluation that the best checkpoint is chosen by."""
        return self.metrics[self._measure.headline]

    def evaluate(self, num_steps):
        """Evaluates the whole data set once.

        Args:
            num_steps: ignored; an AP over a part of the data would mean nothing.

        Returns:
            None; the numbers are in `metrics`, in `metrics.jsonl` and in the summaries.
        """
        del num_steps
        logging.info(
            "Evaluating %d images at step %d%s.",
            self._num_images,
            int(self._step.numpy()),
            " by test augmentation" if self._is_augmented else "",
        )
        start, results = time.monotonic(), []
        batches = tqdm.tqdm(
            self._make_batches(),
            "evaluating",
            self._num_batches,
            disable=not (self._is_chief and console.shows_bars()),
            leave=False,
        )
        # Pasting and encoding masks takes its time: it runs beside the next batch's prediction.
        with self._weights(), overlap.InOrder(self._results) as background:
            for position, batch in enumerate(batches):
                outputs = self._predictor(batch)
                for row, image_id in enumerate(outputs[schema.IMAGE_ID]):
                    if image_id != schema.PADDING_IMAGE_ID:
                        results += itertools.chain(*background.put(outputs, row))
                if position == 0 and self.pictures and self._is_chief:
                    self._show(batch, outputs)
                self._check_stop()
            results += itertools.chain(*background.finish())
        # In an order that does not depend on which images share a batch.
        results.sort(key=operator.itemgetter("image_id"))
        self.metrics = self._measure.evaluate(results)
        self.last_seconds = time.monotonic() - start
        self.seconds += self.last_seconds
        if self._is_chief:
            self._record(results, self.last_seconds)

    def _results(self, outputs, row):
        """Returns the COCO results of one image of a global batch. Runs in a thread."""
        image_id = int(outputs[schema.IMAGE_ID][row])
        height, width = outputs[schema.ORIGINAL_SIZE][row].tolist()
        found = self._placer.detections(
            outputs, row, height, width, outputs[schema.IMAGE_SCALE][row]
        )
        boxes = found["boxes"]
        try:
            further = {
                form.key: form.to_coco(found[field], boxes, height, width)
                for field, form in self._placer.forms.items()
            }
        except ValueError as error:
            raise ValueError(f"Detections of image {image_id}: {error}") from error
        return coco_metrics.detections_to_coco(
            image_id, boxes, found["scores"], found["category_ids"], **further
        )

    def _show(self, batch, outputs):
        """Has the first images that are at this worker drawn."""
        strategy = self._predictor.strategy
        images = strategy.experimental_local_results(batch[schema.IMAGE])[0].numpy()
        sizes = strategy.experimental_local_results(batch[schema.IMAGE_SIZE])[0].numpy()
        for row, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            image_id = int(outputs[schema.IMAGE_ID][row])
            if image_id == schema.PADDING_IMAGE_ID:
                continue
            found = self._placer.detections(outputs, row, height, width, np.ones(2))
            for field, form in self._placer.forms.items():
                found[field] = form.to_picture(
                    found[field], found["boxes"], int(height), int(width)
                )
            self.pictures(image_id, image[:height, :width], found)

    def _record(self, results, seconds):
        step = int(self._step.numpy())
        name = f"detections-{step}{'-augmented' * self._is_augmented}.json"
        self.results_path = os.path.join(self._model_dir, "results", name)
        tf.io.gfile.makedirs(os.path.dirname(self.results_path))
        coco_metrics.write_results(self.results_path, results)
        # pycocotools' matching in Python is slow on a large test set: once a run.
        if step == self._last_step and not self._is_augmented and hasattr(self._measure, "matches"):
            path = metrics_file.matches_path(self._model_dir, step)
            matches.write(path, self._measure.matches(results))
        line = (
            {"step": step}
            | ({"test_augmentation": True} if self._is_augmented else {})
            | dict(self.metrics)
            | {"seconds": round(seconds, 3), "time": time.time()}
        )
        metrics_file.append(self._model_dir, line)
        for name, value in self.metrics.items():
            if "per_class" not in name:
                prefix = "test_augmentation" if self._is_augmented else "evaluation"
                tf.summary.scalar(f"{prefix}/{name}", value)
        logging.info(
            "Evaluated %d images at step %d%s in %.1f s.\n%s",
            self._num_images,
            step,
            " by test augmentation" if self._is_augmented else "",
            seconds,
            self._measure.format_table(self.metrics),
            extra=console.KEPT,
        )
