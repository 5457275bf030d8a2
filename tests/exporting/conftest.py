"""Photographs for exports."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Paths of a landscape, a portrait and a large square photograph: JPEG, PNG, JPEG."""
    shared = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_tiny"
    found = sorted(shared.rglob("*.jpg"))
    folder, contents = tmp_path_factory.mktemp("photographs"), []
    for number, (height, width) in enumerate([(150, 200), (220, 130), (300, 300)]):
        if found:
            image = tf.io.decode_jpeg(found[number].read_bytes(), channels=3)
        else:
            rng = np.random.default_rng(number)
            image = rng.integers(0, 256, [12, 16, 3])
        image = tf.cast(tf.image.resize(image, [height, width]), tf.uint8)
        encode = tf.io.encode_png if number == 1 else tf.io.encode_jpeg
        path = folder / f"{number}.{'png' if number == 1 else 'jpg'}"
        path.write_bytes(encode(image).numpy())
        contents.append(path)
    return contents
