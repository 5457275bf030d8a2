"""Runs a detector over files, and says what became of each."""

import collections
import os
from concurrent import futures

import tqdm
from absl import logging

from rethink_tf import console
from rethink_tf.data.sources.image_files import UnusableError
from rethink_tf.predicting import inputs, outputs, videos

_BATCHES_AHEAD = 2  # that threads have read, at most


def predict(detector, source, folder, score, batch_size, options, max_pixels):
    """Detects objects in images and videos, and writes pictures and `detections.json`.

    A file that cannot be read, or is too large, is named in a warning and left out.

    Args:
        detector: `loading.LoadedDetector`.
        source: str, as of `inputs.find`.
        folder: str, where to write.
        score: float, of the weakest detections that are drawn.
        batch_size: int, images at a time.
        options: `image_files.Options`.
        max_pixels: int, of the largest image that is read.

    Returns:
        {reason: how many files were left out}.

    Raises:
        ValueError: if there is no file, or a picture would replace an input.
    """
    paths, root = inputs.find(source)
    names = outputs.picture_names(paths, root)
    targets = {path: os.path.join(folder, name) for path, name in names.items()}
    _check_targets(paths, targets, folder)
    written = outputs.Outputs(folder, detector.categories, score)
    skipped = collections.Counter()

    def leave_out(path, error):
        reason, detail = error.args
        skipped[reason] += 1
        logging.warning("%s is left out: %s (%s).", path, detail, reason)

    images = [path for path in paths if not inputs.is_video(path)]
    bar = tqdm.tqdm(
        total=len(paths), desc="detecting", unit="file", disable=not console.shows_bars()
    )
    try:
        with bar, futures.ThreadPoolExecutor(2) as readers:
            for batch in _read_ahead(images, batch_size, readers, options, max_pixels):
                good = []
                for path, image, error in batch:
                    leave_out(path, error) if error else good.append((path, image))
                found = detector([image for _, image in good])
                for (path, image), detections in zip(good, found, strict=True):
                    written.save_picture(targets[path], image, detections)
                    written.add(os.path.relpath(path, root), detections)
                bar.update(len(batch))
            for path in set(paths) - set(images):
                try:
                    _video(detector, path, root, targets[path], written, max_pixels)
                except UnusableError as error:
                    leave_out(path, error)
                bar.update()
    finally:
        # Ctrl-C too: what was found is not lost.
        if written.num_images:
            written.write()
    _log_end(written, score, folder)
    return dict(skipped)


def _log_end(written, score, folder):
    logging.info(
        "%d images: %d detections of %.2f and more are drawn in %s; all are in %s.",
        written.num_images,
        written.num_drawn,
        score,
        folder,
        written.path,
        extra=console.KEPT,
    )


def _check_targets(paths, targets, folder):
    """Checks that no picture would be written over an input."""
    there = {os.path.realpath(path) for path in paths}
    for target in targets.values():
        if os.path.realpath(target) in there:
            raise ValueError(f"--output={folder} would replace the input {target}: give another.")


def _read_ahead(paths, batch_size, readers, options, max_pixels):
    """Yields batches of (path, image or None, error or None), which threads read ahead."""

    def read(path):
        try:
            return path, inputs.read(path, options, max_pixels), None
        except UnusableError as error:
            return path, None, error

    groups = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    waiting = collections.deque()
    for group in groups:
        waiting.append([readers.submit(read, path) for path in group])
        if len(waiting) > _BATCHES_AHEAD:
            yield [each.result() for each in waiting.popleft()]
    while waiting:
        yield [each.result() for each in waiting.popleft()]


def _video(detector, path, root, target, written, max_pixels):
    name = os.path.relpath(path, root)

    def show(frame, number):
        detections = detector(frame)
        written.add(name, detections, frame=number)
        return written.draw(frame, detections)

    videos.run(path, os.path.splitext(target)[0] + ".mp4", show, max_pixels)
