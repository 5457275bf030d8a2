"""Pictures of what the network is fed: images of the first batches, objects, padding and anchors.

Letters: H x W the shape of a batch, M objects of an image, P anchors taken as objects, K keypoints.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from rethink_tf.data import schema
from rethink_tf.evaluation import pasting
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops.content import Content
from rethink_tf.report import pictures

# Of anchors: positive by their IoU, and as the best of an object that none overlaps so far.
BY_IOU, AS_BEST = (0, 158, 115), (230, 159, 0)
OBJECT, UNMATCHED = (255, 255, 255), (213, 94, 0)
_STRIPE = 12  # pixels, of the padding
_PANEL = 480  # pixels, longest side of a picture on the contact sheet
_GAP = 8
_DIMMED = 0.55


@dataclasses.dataclass(frozen=True, eq=False)
class FedImage:
    """One image of a training batch.

    Attributes:
        image: uint8 [H, W, 3], with its padding.
        image_id: int.
        size: (height, width) of the content, pixels.
        stored: (height, width) of the stored image, pixels.
        boxes: float32 [M, 4], (y1, x1, y2, x2), pixels.
        class_names: M texts.
        masks: M of uint8 [H, W], or None.
        keypoints: float32 [M, K, 3], or None.
        anchors: float32 [P, 4], those that the RPN's losses may take as objects.
        is_by_iou: bool [P], whether its IoU alone makes it one.
        has_anchor: bool [M], whether an anchor was taken for the object.
    """

    image: np.ndarray
    image_id: int
    size: tuple
    stored: tuple
    boxes: np.ndarray
    class_names: list
    masks: list | None
    keypoints: np.ndarray | None
    anchors: np.ndarray
    is_by_iou: np.ndarray
    has_anchor: np.ndarray

    @property
    def caption(self):
        """What is seen, in words."""
        (height, width), batch = self.size, self.image.shape
        best = int((~self.is_by_iou).sum())
        missed = int((~self.has_anchor).sum())
        return (
            f"Image {self.image_id}: stored {self.stored[0]} x {self.stored[1]}, fed "
            f"{height} x {width} in a batch of {batch[0]} x {batch[1]} (height x width). "
            f"{len(self.boxes)} objects, {len(self.anchors)} positive anchors, {best} of them as "
            f"the best of an object alone"
            + (f"; {missed} objects have no anchor of their own." if missed else ".")
        )


def first_images(opened, count, counters):
    """Returns the first images that a run trains on, in the order of its batches.

    Args:
        opened: `opening.Opened`.
        count: int, how many.
        counters: `reading.PipelineCounters`.

    Returns:
        list of `FedImage`.
    """
    names = [opened.train_names[each] for each in opened.train.category_ids]
    found = []
    for batch in opened.batches(counters):
        arrays = {key: each.numpy() for key, each in batch.items() if key != schema.PADDING}
        for row in range(len(arrays[schema.IMAGE])):
            one = {key: value[row] for key, value in arrays.items()}
            found.append(_describe(one, names, opened.model))
            if len(found) == count:
                return found
    return found


def _describe(one, names, model):
    valid = one[schema.CLASSES] > 0
    boxes, shape = one[schema.BOXES][valid], one[schema.IMAGE].shape
    masks = None
    if schema.MASKS in one:
        masks = [
            pasting.paste_mask(mask / 255.0, box, *shape[:2])
            for mask, box in zip(one[schema.MASKS][valid], boxes, strict=True)
        ]
    anchors, is_by_iou, has_anchor = positive_anchors(
        model, shape[:2], one[schema.IMAGE_SIZE], boxes
    )
    return FedImage(
        image=one[schema.IMAGE],
        image_id=int(one[schema.IMAGE_ID]),
        size=tuple(map(int, one[schema.IMAGE_SIZE])),
        stored=tuple(map(int, one[schema.ORIGINAL_SIZE])),
        boxes=boxes,
        class_names=[names[each - 1] for each in one[schema.CLASSES][valid]],
        masks=masks,
        keypoints=one[schema.KEYPOINTS][valid] if schema.KEYPOINTS in one else None,
        anchors=anchors,
        is_by_iou=is_by_iou,
        has_anchor=has_anchor,
    )


def positive_anchors(model, shape, image_size, boxes):
    """Returns the anchors of an image that the RPN's losses may take as objects.

    Args:
        model: the detector; it needs no variables.
        shape: (H, W) of the batch, pixels.
        image_size: int [2], the content, pixels.
        boxes: float32 [M, 4], pixels.

    Returns:
        anchors float32 [P, 4]; bool [P], whether the IoU alone makes it one; bool [M], whether an
        object has one.
    """
    rpn = model.rpn
    maps = {level: [-(-side // 2**level) for side in shape] for level in rpn.levels}
    every = rpn.make_anchors(maps)
    anchors = tf.concat([every[level] for level in rpn.levels], axis=0)
    content = Content.of_images(tf.constant(image_size)[tf.newaxis], model.coarsest_stride)
    inside = rpn.positions(maps, content) >= 0
    # One row at least; padding is no object.
    objects = np.zeros([max(len(boxes), 1), 4], np.float32)
    objects[: len(boxes)] = boxes
    valid = tf.constant([[row < len(boxes) for row in range(len(objects))]])
    labels, matches = rpn.match(anchors, tf.constant(objects[np.newaxis]), valid, inside)
    rows = np.flatnonzero(labels[0].numpy() > 0)
    taken, objects_of = anchors.numpy()[rows], matches[0].numpy()[rows]
    pairs = taken[:, np.newaxis], objects[objects_of][:, np.newaxis]
    iou = box_ops.pairwise_iou(*pairs).numpy()[:, 0, 0]
    return taken, iou >= rpn.positive_from, np.isin(np.arange(len(boxes)), objects_of)


def picture_of_objects(fed):
    """Draws what is fed: boxes, masks and keypoints, and stripes where there is padding.

    Args:
        fed: `FedImage`.

    Returns:
        uint8 [h, w, 3].
    """
    image = _with_stripes(fed)
    return pictures.draw_objects(
        image, fed.boxes, fed.class_names, masks=fed.masks, keypoints=fed.keypoints
    )


def picture_of_anchors(fed):
    """Draws the positive anchors of an image over its objects.

    Args:
        fed: `FedImage`.

    Returns:
        uint8 [h, w, 3]: objects white, or red without an anchor; anchors green, or orange as the
        best of an object alone.
    """
    dimmed = (_with_stripes(fed) * _DIMMED).astype(np.uint8)
    # As large as the other picture.
    whole = pictures.draw_objects(dimmed, np.zeros([0, 4]), [])
    factor = whole.shape[0] // dimmed.shape[0]
    canvas = Image.fromarray(whole)
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(whole.shape) / 400))
    for box, has_anchor in zip(fed.boxes, fed.has_anchor, strict=True):
        _frame(draw, box * factor, OBJECT if has_anchor else UNMATCHED, line)
    # The few last: they are what one looks for.
    for row in np.argsort(~fed.is_by_iou, kind="stable"):
        _frame(draw, fed.anchors[row] * factor, BY_IOU if fed.is_by_iou[row] else AS_BEST, line)
    return np.asarray(canvas)


def contact_sheet(images, columns=2):
    """Puts the pictures of images side by side, objects left and anchors right.

    Args:
        images: list of `FedImage`, not empty.
        columns: int, images a row.

    Returns:
        uint8 [h, w, 3].
    """
    tiles = [_tile(fed) for fed in images]
    width = max(tile.width for tile in tiles)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    columns = min(columns, len(tiles))
    size = columns * (width + _GAP) + _GAP, sum(heights) + _GAP * (len(rows) + 1)
    sheet = Image.new("RGB", size, (255, 255, 255))
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (width + _GAP), top))
        top += height + _GAP
    return np.asarray(sheet)


def _tile(fed):
    panels = [Image.fromarray(draw(fed)) for draw in (picture_of_objects, picture_of_anchors)]
    for panel in panels:
        panel.thumbnail((_PANEL, _PANEL))
    title = f"{fed.image_id}: {len(fed.boxes)} objects, {len(fed.anchors)} positive anchors"
    bar = 22
    width = sum(panel.width for panel in panels) + _GAP
    tile = Image.new("RGB", (max(width, 320), panels[0].height + bar), (255, 255, 255))
    ImageDraw.Draw(tile).text((0, 4), title, "black", pictures.font_of((_PANEL, _PANEL)))
    tile.paste(panels[0], (0, bar))
    tile.paste(panels[1], (panels[0].width + _GAP, bar))
    return tile


def _with_stripes(fed):
    """The image with grey stripes where the batch has padding."""
    image = fed.image.copy()
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    is_padding = (rows >= fed.size[0]) | (columns >= fed.size[1])
    stripes = np.where((rows + columns) // _STRIPE % 2, 150, 110).astype(np.uint8)
    image[is_padding] = stripes[is_padding][:, np.newaxis]
    return image


def _frame(draw, box, colour, line):
    y1, x1, y2, x2 = (float(each) for each in box)
    draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=line)
