"""Pictures of objects on photographs: boxes, translucent masks, keypoints and labels.

Pillow and NumPy only. Letters: N objects, H and W the given image's size, K the whole number by
which a small image is enlarged so that its labels can be read, P keypoints of an object.
"""

import base64
import colorsys
import io
import unicodedata
import zlib
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image, ImageDraw, ImageFont

from rethink_tf import files

_MIN_LONG_SIDE = 480  # pixels; below that a label of 13 pixels hides what it names
_MASK_OPACITY = 0.45
_MIN_KEYPOINT_SCORE = 0.05  # Detectron2's
_TITLE_COLOUR = (32, 34, 38)
# Where there is no room for labels.
FOUND_COLOUR, TRUTH_COLOUR = (255, 150, 30), (60, 230, 90)
# Hues of 20 classes, far apart first; more classes repeat them, lighter and darker.
_HUES = [(slot * 0.381966) % 1.0 for slot in range(20)]


class Objects(NamedTuple):
    """The objects of one image, as `draw_objects` takes them."""

    boxes: np.ndarray
    class_names: list
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    notes: list | None = None


def class_colours(class_names):
    """Gives every class its own colour.

    A name has the same colour in every picture, except where two of them would share one.

    Args:
        class_names: iterable of str, repeats allowed.

    Returns:
        {name: (red, green, blue)}, 0 to 255.
    """
    shades = [(0.62, 1.0), (0.45, 1.0), (0.85, 0.8), (0.4, 0.75)]  # saturation, value
    palette = [
        tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, *shade))
        for shade in shades
        for hue in _HUES
    ]
    colours, taken = {}, set()
    for name in sorted(set(class_names)):
        # Not Python's hash(), which differs from one process to the next.
        slot = zlib.crc32(name.encode()) % len(_HUES)
        while slot in taken and len(taken) < len(palette):
            slot = (slot + 1) % len(palette)
        taken.add(slot)
        colours[name] = palette[slot]
    return colours


def draw_objects(
    image,
    boxes,
    class_names,
    scores=None,
    masks=None,
    keypoints=None,
    notes=None,
    colours=None,
):
    """Draws objects with their class, score, mask and keypoints, small ones in front.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: float [N, 4], (y1, x1, y2, x2), pixels of the image; may reach out of it. N may be 0.
        class_names: N names.
        scores: float [N], 0 to 1, or None.
        masks: [N, H, W], not zero inside of the object, or None.
        keypoints: float [N, P, 3], (y, x, visibility or score), pixels of the image, or None;
            those of a score below 0.05 are not drawn.
        notes: N texts that follow in the labels, or None; an object whose note is "" has no label.
        colours: what `class_colours` returned for these names and others, or None.

    Returns:
        uint8 [K * H, K * W, 3]; K is 1 for images of at least 480 pixels along the longer side.

    Raises:
        ValueError: if the image is not uint8 [H, W, 3] or the lengths or sizes differ.
    """
    boxes = np.asarray(boxes, np.float64).reshape([-1, 4])
    _check(image, boxes, class_names, scores, masks, keypoints, notes)
    colours = colours or class_colours(class_names)
    canvas, factor = _enlarged(image)
    size = canvas.size
    # Not finite corners would stop Pillow; a detector that diverged should still be seen.
    boxes = np.nan_to_num(boxes, posinf=1e6, neginf=-1e6) * factor
    order = np.argsort(-_areas(boxes), kind="stable")

    if masks is not None:
        canvas = _blend_masks(canvas, [(masks[i], colours[class_names[i]]) for i in order])
    draw = ImageDraw.Draw(canvas)
    for i in order:
        _draw_frame(draw, boxes[i], colours[class_names[i]], size)
        for y, x, shown in [] if keypoints is None else keypoints[i]:
            if shown >= _MIN_KEYPOINT_SCORE:
                _draw_point(draw, x * factor, y * factor, colours[class_names[i]], size)
    font = font_of(size)
    # Labels keep clear of each other and of objects that one would hide.
    placed = [(x1, y1, x2, y2) for y1, x1, y2, x2 in boxes if y2 - y1 < 3 * font.size]
    # The small objects' labels first: they have the least room.
    for i in order[::-1]:
        if notes and not notes[i]:
            continue
        label = class_names[i] if scores is None else f"{class_names[i]} {scores[i]:.2f}"
        label += f": {notes[i]}" if notes else ""
        _draw_label(draw, font, label, boxes[i], colours[class_names[i]], size, placed)
    return np.asarray(canvas)


def side_by_side(image, truth, detections):
    """Draws the ground truth at the left and the detections at the right, with titles.

    Args:
        image: uint8 [H, W, 3], RGB.
        truth: `Objects`, in pixels of the image.
        detections: `Objects`, in pixels of the image.

    Returns:
        uint8 [h, w, 3]; a class has one colour on both sides.

    Raises:
        ValueError: as `draw_objects`.
    """
    colours = class_colours([*truth.class_names, *detections.class_names])
    left = draw_objects(image, *truth, colours=colours)
    right = draw_objects(image, *detections, colours=colours)
    height, width = left.shape[:2]
    font = font_of((width, height), 1.25)
    margin = max(6, width // 80)
    bar = font.getbbox("Ag")[3] + 2 * margin
    titles = [f"Ground truth ({len(truth.boxes)})", f"Detections ({len(detections.boxes)})"]
    # A narrow picture gets as much room as its title needs.
    panel = max(width, *(round(font.getlength(title)) + 2 * margin for title in titles))
    canvas = Image.new("RGB", (2 * panel + margin, height + bar), _TITLE_COLOUR)
    draw = ImageDraw.Draw(canvas)
    for title, picture, x in zip(titles, (left, right), (0, panel + margin), strict=True):
        canvas.paste(Image.fromarray(picture), (x, bar))
        draw.text((x + margin, margin), title, "white", font)
    return np.asarray(canvas)


def draw_proposals(image, truth, proposals):
    """Draws proposals in orange, and the objects that they are to cover in green in front.

    Args:
        image: uint8 [H, W, 3], RGB.
        truth: float [N, 4], (y1, x1, y2, x2), pixels of the image.
        proposals: float [R, 4], the same; those without area are none.

    Returns:
        uint8 [K * H, K * W, 3], as of `draw_objects`.
    """
    canvas, factor = _enlarged(image)
    draw = ImageDraw.Draw(canvas)
    proposals = proposals[_areas(proposals) > 0]
    for boxes, colour in ((proposals, FOUND_COLOUR), (truth, TRUTH_COLOUR)):
        for box in np.nan_to_num(boxes, posinf=1e6, neginf=-1e6) * factor:
            # The dark lines of so many proposals would be all that is seen.
            _draw_frame(draw, box, colour, canvas.size, is_set_off=boxes is truth)
    return np.asarray(canvas)


def sides(picture):
    """Returns what `side_by_side` has put together, the ground truth and the detections.

    Args:
        picture: uint8 [h, w, 3].

    Returns:
        (left, right): uint8 [h, w // 2, 3] each; the margin between them is halved.
    """
    half = picture.shape[1] // 2
    return picture[:, :half], picture[:, -half:]


def jpeg_uri(picture, max_side):
    """Returns a picture as a `data:` URI that a page can hold.

    Args:
        picture: uint8 [h, w, 3], RGB.
        max_side: int, pixels of the longer side at most; a larger picture is made smaller.
    """
    image = Image.fromarray(picture)
    image.thumbnail((max_side, max_side))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, 80)).decode()


def jpeg(image, quality):
    """Returns a Pillow image as the bytes of a JPEG file of a quality, 1 to 95."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def drawable_names(names):
    """Gives every class a name that pictures can show.

    Pillow's own font has ASCII's letters alone, and draws others as empty boxes.

    Args:
        names: {category id: name}.

    Returns:
        {category id: name}, without its accents where that helps, else "class <id>"; each of these
        is logged.
    """
    font = font_of((_MIN_LONG_SIDE, _MIN_LONG_SIDE))
    shown = {}
    for key, name in names.items():
        letters = unicodedata.normalize("NFKD", name)
        plain = "".join(each for each in letters if not unicodedata.combining(each))
        candidates = (name, plain, f"class {key}")
        shown[key] = next(each for each in candidates if _has_glyphs(font, each))
    replaced = [f"{shown[key]} is {name}" for key, name in names.items() if shown[key] != name]
    if replaced:
        logging.info("Pictures have no letters for some classes: %s.", ", ".join(replaced))
    return shown


def save_png(path, image):
    """Writes an image as PNG, whole or not at all.

    Args:
        path: the file; its folder is made where it is missing.
        image: uint8 [H, W, 3], RGB.
    """
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    files.write_whole(path, encoded.getvalue())


def _check(image, boxes, class_names, scores, masks, keypoints, notes):
    """Raises ValueError where the parts do not belong together."""
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if not is_image or image.shape[2] != 3 or not image.size:
        found = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"image must be uint8 [H, W, 3], found {found} {np.shape(image)}")
    named = {"class_names": class_names, "scores": scores, "masks": masks, "keypoints": keypoints}
    named["notes"] = notes
    for name, values in named.items():
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{name} has {len(values)} entries for {len(boxes)} boxes")
    for mask in [] if masks is None else masks:
        if np.shape(mask) != image.shape[:2]:
            raise ValueError(
                f"a mask has shape {np.shape(mask)}, the image {image.shape[:2]}; paste it first"
            )


def _enlarged(image):
    """Returns an image to draw on, and K."""
    height, width = image.shape[:2]
    factor = max(1, -(-_MIN_LONG_SIDE // max(height, width)))
    size = (factor * width, factor * height)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), factor


def _areas(boxes):
    """Returns float [N], square pixels."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def _blend_masks(canvas, masks_and_colours):
    """Returns the picture with coloured masks; their outlines are drawn full."""
    picture = np.asarray(canvas).astype(np.float32)
    for mask, colour in masks_and_colours:
        small = Image.fromarray(np.where(np.asarray(mask) != 0, 255, 0).astype(np.uint8))
        inside = np.asarray(small.resize(canvas.size, Image.Resampling.BILINEAR)) > 127
        # A pixel of the mask with a neighbour outside of it.
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        colour = np.array(colour, np.float32)
        picture[inside] += _MASK_OPACITY * (colour - picture[inside])
        picture[inside & ~core] = colour
    return Image.fromarray(np.round(picture).astype(np.uint8))


def _draw_frame(draw, box, colour, size, is_set_off=True):
    """Draws a box in its colour, by default on a dark line that sets it off from the image."""
    y1, x1, y2, x2 = box
    line = max(2, round(max(size) / 320))
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = min(x2, size[0]) - 1, min(y2, size[1]) - 1
    if right < left or bottom < top:
        return
    if is_set_off:
        draw.rectangle((left, top, right, bottom), outline=(0, 0, 0), width=line + 1)
    draw.rectangle((left, top, right, bottom), outline=colour, width=line)


def _draw_point(draw, x, y, colour, size):
    """Draws a keypoint in its object's colour, on a dark rim."""
    radius = max(3, round(max(size) / 200))
    around = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(around, colour, outline=(0, 0, 0))


def _draw_label(draw, font, label, box, colour, size, placed):
    """Draws a label at its box, where it hides least of `placed`, and adds its place there."""
    left, top, right, bottom = font.getbbox(label)
    width, height = right - left + 6, bottom - top + 6
    y1, x1, y2, x2 = box
    # Above the box, below it, beside it, inside of it, further above.
    spots = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)]
    spots += [(x2, y1), (x1 - width, y1), (x1, y1), (x2 - width, y1), (x1, y2 - height)]
    spots += [(x2 - width, y2 - height), (x1, y1 - 2 * height), (x1, y2 + height)]
    rectangles = []
    for x, y in spots:
        x = min(max(x, 0), max(size[0] - width, 0))
        y = min(max(y, 0), max(size[1] - height, 0))
        rectangles.append((x, y, x + width, y + height))
    # The first of those that hide least (min keeps the order).
    x, y, _, _ = best = min(rectangles, key=lambda one: sum(_overlap(one, p) for p in placed))
    placed.append(best)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    # Black or white, by the brightness that the eye sees (ITU-R BT.601).
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 120
    draw.text((x + 3 - left, y + 3 - top), label, "black" if bright else "white", font)


def _overlap(one, other):
    """Returns the area that two rectangles (x1, y1, x2, y2) share, square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _has_glyphs(font, text):
    """Whether a font has a glyph of its own for every letter of a text."""
    missing = _glyph(font, "\uffff")  # no font has this one
    return all(letter.isspace() or _glyph(font, letter) != missing for letter in text)


def _glyph(font, letter):
    """A letter as it is drawn, to be compared."""
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def font_of(size, scale=1.0):
    """Returns Pillow's own font in a size that suits a picture.

    Args:
        size: (width, height) of the picture, pixels.
        scale: float, of the letters.
    """
    return ImageFont.load_default(round(scale * max(13, max(size) / 45)))
