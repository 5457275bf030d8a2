"""Looks at the data of an experiment: pictures, statistics and a suggestion, as files."""

import csv
import io
import os

import numpy as np
from absl import logging

from rethink_tf import console, files
from rethink_tf.data.input import reading
from rethink_tf.looking import (
    duplicates,
    feeding,
    measuring,
    opening,
    similar,
    suggestion,
    tables,
)
from rethink_tf.report import page, pictures

PAGE, SHEET, OVERLAY = "data.html", "contact_sheet.png", "suggested.gin"
OWN_DATA = "own_data.gin"
_LEGEND = (
    "In the pictures stripes are padding. Objects are white beside their anchors, red without one "
    "of their own; anchors are green where the RPN takes them by their IoU, orange as the best of "
    "an object."
)
_MAX_SIDE = 640  # pixels of a picture on the page
_THUMB_SIDE = 320
_MAX_PAIRS, _MAX_OF_KIND = 12, 4


def look(output, gin_files, gin_params, data_dir=None, num_pictures=12, num_images=2000):
    """Writes a page on what an experiment feeds its network, and files beside it.

    Args:
        output: a folder, or the path of the page (.html), beside which the folder of its name is
            made.
        gin_files: of the experiment; empty for own_data.gin.
        gin_params: bindings over them.
        data_dir: the data in place of what the files say, or None.
        num_pictures: int >= 1, images of the first batches that are drawn.
        num_images: int >= 0, images that are read to find near-duplicates.

    Returns:
        (path of the page, folder of the other files).

    Raises:
        ValueError: as of `opening.open_experiment`.
        OSError: the same.
    """
    folder, page_path = _places(output)
    gin_files = gin_files or [OWN_DATA]
    # The folder of a run that a binding names has its records and statistics; else they go here.
    params = [f"MODEL_DIR={os.path.abspath(folder)!r}"]
    params += [f"DATA_DIR={data_dir!r}"] if data_dir is not None else []
    opened = opening.open_experiment(gin_files, [*params, *gin_params])
    counters = reading.PipelineCounters()
    logging.info("Drawing the first %d images of the run.", num_pictures)
    images = feeding.first_images(opened, num_pictures, counters)
    logging.info("Counting %s.", opened.train.directory)
    split_tables = measuring.read_tables(opened)
    suggested = suggestion.suggest(opened, split_tables["training"])
    measured = measuring.measure(opened, split_tables, suggested)
    logging.info("Comparing up to %d images.", num_images)
    search = similar.search(measured.tables, num_images)

    shown = tables.all_tables(opened, measured, suggested, search)
    summary = _summary(opened, measured, suggested, search, counters)
    content = page.render(
        "Data: " + ", ".join(os.path.basename(name) for name in gin_files),
        [*summary, _LEGEND],
        tables.all_figures(measured),
        shown,
        galleries=_galleries(opened, images, measured, search),
    )
    flags = [f"--gin_file={name}" for name in gin_files]
    flags += [f"--gin_param={param!r}" for param in [*params[1:], *gin_params]]
    texts = {
        OVERLAY: suggestion.overlay_text(suggested, flags),
        "tables.md": "\n".join(table.markdown() for table in shown),
        "suspicious.csv": _csv(*tables.suspicious_rows(measured)),
        "near_duplicates.csv": _csv(*tables.duplicate_rows(measured, search)),
    }
    for name, text in texts.items():
        files.write_whole(os.path.join(folder, name), text)
    pictures.save_png(os.path.join(folder, SHEET), feeding.contact_sheet(images))
    files.write_whole(page_path, content)
    for line in summary:
        logging.info("%s", line.replace("**", ""), extra=console.KEPT)
    return page_path, folder


def _places(output):
    """Returns the folder of the files and the path of the page."""
    if output.endswith(".html"):
        return os.path.splitext(output)[0], output
    return output, os.path.join(output, PAGE)


def _summary(opened, measured, suggested, search, counters):
    """Returns paragraphs: what is fed, and what is to be looked at first."""
    run, table = opened.settings, measured.tables["training"]
    sampled = measured.fills[0]
    lines = [
        f"**{len(table.index):,} images with {len(table.row):,} objects** of {len(table.names)} "
        f"classes are trained on ({opened.train.directory}), "
        f"{len(measured.tables['evaluation'].index):,} are evaluated. {run.batch_size} images a "
        f"step, seed {run.seed}: the pictures are the first ones that the run sees. Images fill "
        f"{sampled.content:.0%} of their batches.",
    ]
    best = measured.reaches[0].ious
    if len(best):
        lines.append(
            f"Of the training objects no anchor reaches **{(best < 0.5).mean():.1%} at IoU 0.5** "
            f"and {(best < 0.7).mean():.1%} at 0.7."
            + "".join(
                f" With the suggested sizes: {(each.ious < 0.5).mean():.1%} and "
                f"{(each.ious < 0.7).mean():.1%}."
                for each in measured.reaches[1:]
                if each.grid
            )
        )
    count = sum(map(len, measured.findings.values()))
    lines.append(
        f"**{count:,} suspicious boxes, {search.num_between:,} near-duplicates between training "
        f"and evaluation**, {len(search.pairs) - search.num_between:,} within a split. "
        f"{search.said}"
    )
    lines += [f"**{text}**" for text in measured.warnings]
    counted = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in counters.as_dict().items() if count
    )
    if counted:
        lines.append(f"While the pictures were read: {counted}.")
    if all(each.now == each.text for each in suggested.bindings):
        lines.append("The suggested settings are those that the experiment has.")
    if not any(each.get("skipped") or each.get("noted") for each in measured.manifests.values()):
        lines.append("The conversion left nothing out.")
    return lines


def _galleries(opened, images, measured, search):
    draws = {"what is fed": feeding.picture_of_objects, "anchors": feeding.picture_of_anchors}
    fed = []
    for each in images:
        uris = [(what, pictures.jpeg_uri(draw(each), _MAX_SIDE)) for what, draw in draws.items()]
        fed.append((each.caption, uris))
    found = [("The first images of the run", fed)]
    if pairs := [_shown_pair(measured, search, each) for each in search.pairs[:_MAX_PAIRS]]:
        found.append((f"Near-duplicates, {len(pairs)} of {len(search.pairs):,} pairs", pairs))
    if suspects := _suspects(opened, measured):
        found.append((f"Suspicious boxes, up to {_MAX_OF_KIND} of a kind", suspects))
    return found


def _shown_pair(measured, search, pair):
    shown = []
    for split, row in (search.images[pair.first], search.images[pair.second]):
        index = measured.tables[split].index
        title = f"{split}: image {index.image_id[row]}"
        shown.append((title, pictures.jpeg_uri(_stored(index, row), _THUMB_SIDE)))
    mirrored = ", mirrored" if pair.is_mirrored else ""
    return f"{search.between(pair)}, correlation {pair.correlation:.3f}{mirrored}", shown


def _suspects(opened, measured):
    """Pictures of the first suspicious objects of each kind and split, side by side."""
    names, found = opened.train_names, {}
    for split, findings in measured.findings.items():
        table = measured.tables[split]
        for each in findings:
            shown = found.setdefault(f"{split}: {each.kind}", [])
            if len(shown) == _MAX_OF_KIND:
                continue
            row, objects = table.row[each.objects[0]], list(each.objects)
            image_id = f"image {table.index.image_id[row]}"
            try:
                image = _stored(table.index, row)
            except (ValueError, OSError):
                logging.warning("%s, %s does not decode and is not drawn.", split, image_id)
                continue
            classes = [names[table.category[one]] for one in objects]
            drawn = pictures.draw_objects(image, table.boxes[objects], classes)
            shown.append((image_id, pictures.jpeg_uri(drawn, _THUMB_SIDE)))
    return [each for each in found.items() if each[1]]


def _stored(index, row):
    """Returns the stored image of a record, uint8 [h, w, 3]."""
    return np.asarray(duplicates.read_record_image(index, row).convert("RGB"))


def _csv(header, rows):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()
