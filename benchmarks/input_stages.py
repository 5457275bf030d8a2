"""Where the time of our input pipeline goes: its stages one by one, in one thread.

    python -m benchmarks.input_stages
    python -m benchmarks.input_stages --data=DIR    (made by python -m rethink_tf.data.coco)

Times are CPU times an image, medians over rounds in which all stages take turns. Stages that
include others are marked by the indentation of these. Every image is mirrored here, and half of
them in training.
"""

import argparse
import time

import numpy as np
import tensorflow as tf

from benchmarks import harness, photographs
from rethink_tf.data import schema
from rethink_tf.data.input import augment, decode, order
from rethink_tf.data.records import store, tfrecord_files

_IMAGE = tf.TensorSpec([None, None, 3], tf.uint8)
_PAIR = tf.TensorSpec([2], tf.int32)
_BYTES = tf.TensorSpec([], tf.string)
_FLAG = tf.TensorSpec([], tf.bool)


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "input_stages")
    photographs.add_arguments(parser)
    parser.add_argument("--min_side", type=int, default=800, help="pixels")
    parser.add_argument("--max_side", type=int, default=1333, help="pixels")
    return parser


def read(flags):
    """Returns a list of (serialized, stored size, resized size, shape), and the category ids."""
    index = store.load_index(flags.data).select(slice(flags.photographs))
    ids = [category["id"] for category in store.load_categories(flags.data)]
    sizes = order.resized_shapes(index.height, index.width, flags.min_side, flags.max_side)
    shapes = -(-sizes // 32) * 32
    payloads = {}
    for shard, path in enumerate(index.paths):
        payloads |= {
            (shard, offset): payload for offset, payload in tfrecord_files.read_frames(path)
        }
    examples = [
        (
            tf.constant(payloads[index.shard[row], index.offset[row]]),
            tf.constant([index.height[row], index.width[row]], tf.int32),
            tf.constant(sizes[row], tf.int32),
            tf.constant(shapes[row], tf.int32),
        )
        for row in range(len(index))
    ]
    return examples, tf.constant(ids, tf.int64)


def make_stages(category_ids):
    """Returns {name: (function, element specs of its inputs, names of its inputs)}."""
    mirrored = tf.constant(True)

    def place_of(stored, size):
        return {
            "image_id": tf.constant(1, tf.int64), "flip": mirrored, "stored": stored, "size": size
        }  # fmt: skip

    def parse(serialized):
        return decode.parse_image_and_objects(serialized, with_masks=True)

    def image(serialized, stored, size, shape):
        encoded = decode.parse_image(serialized)["image/encoded"]
        return decode.decode_image(encoded, place_of(stored, size), shape)

    def objects(serialized, stored, size):
        scale = tf.cast(size / stored, tf.float32)
        return decode.decode_objects(
            parse(serialized),
            place_of(stored, size),
            scale,
            category_ids,
            schema.MAX_OBJECTS,
            schema.MASK_SIZE,
        )

    def masks(serialized):
        encoded = parse(serialized)["image/object/mask"]
        return tf.map_fn(
            lambda png: tf.shape(tf.io.decode_png(png, channels=1)),
            encoded,
            fn_output_signature=tf.TensorSpec([3], tf.int32),
        )

    def jpeg(encoded):
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")

    return {
        "image": (image, [_BYTES, _PAIR, _PAIR, _PAIR], ("record", "stored", "size", "shape")),
        "  decode JPEG": (jpeg, [_BYTES], ("encoded",)),
        "  mirror": (augment.flip_image, [_IMAGE, _FLAG], ("pixels", "mirrored")),
        "  resize, round, pad": (
            augment.resize_and_pad, [_IMAGE, _PAIR, _PAIR], ("pixels", "size", "shape")
        ),
        "objects": (objects, [_BYTES, _PAIR, _PAIR], ("record", "stored", "size")),
        "  parse the record": (parse, [_BYTES], ("record",)),
        "  parse, decode mask PNGs": (masks, [_BYTES], ("record",)),
        "copy to a batch": (lambda image: tf.stack([image]), [_IMAGE], ("padded",)),
    }  # fmt: skip


def measure(examples, category_ids, rounds):
    """Times every stage on every example.

    Args:
        examples: of `read`.
        category_ids: int64 [C].
        rounds: int, that the medians are taken over.

    Returns:
        {stage: CPU seconds an image}.
    """
    values = []
    for record, stored, size, shape in examples:
        encoded = decode.parse_image(record)["image/encoded"]
        pixels = tf.io.decode_jpeg(encoded, channels=3)
        values.append(
            {
                "record": record,
                "stored": stored,
                "size": size,
                "shape": shape,
                "encoded": encoded,
                "pixels": pixels,
                "mirrored": tf.constant(True),
                "padded": tf.zeros([*shape.numpy(), 3], tf.uint8),
            }  # fmt: skip
        )
    stages = {
        name: (tf.function(function, input_signature=specs), inputs)
        for name, (function, specs, inputs) in make_stages(category_ids).items()
    }
    seconds = {name: [] for name in stages}
    for turn in range(1 + rounds):
        for name, (function, inputs) in stages.items():
            start = time.process_time()
            for value in values:
                function(*(value[key] for key in inputs))
            if turn:
                seconds[name].append((time.process_time() - start) / len(values))
    return {name: float(np.median(found)) for name, found in seconds.items()}


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with photographs.records_of(flags) as flags.data:
        examples, category_ids = read(flags)
    seconds = measure(examples, category_ids, flags.repetitions)
    whole = sum(value for name, value in seconds.items() if not name.startswith(" "))
    rows = [[name, 1e3 * value, value / whole] for name, value in seconds.items()]
    rows.append(["all", 1e3 * whole, 1.0])
    harness.print_table(
        f"Stages of the input, {flags.min_side}/{flags.max_side}, {len(examples)} images, 1 thread",
        ["stage", "CPU ms an image", "share"],
        rows,
    )
    harness.write_json(flags.output, {"seconds": seconds})


if __name__ == "__main__":
    main()
