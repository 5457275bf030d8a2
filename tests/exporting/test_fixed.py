"""Tests of TensorFlow Lite and ONNX: rethink_tf/exporting/fixed.py, tflite.py, onnx_file.py."""

import json

import numpy as np
import pytest
import tensorflow as tf
from small_exports import command, make
from toy_head import SizeHead

from rethink_tf.exporting import conversion, exporter

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")


class GammaHead(SizeHead):
    """A head by an operation that the other formats lack."""

    def describe_rois(self, rois, classes):
        return tf.math.igamma(2.0, tf.abs(self(rois)))


@pytest.fixture(scope="module")
def trained():
    return make("gn")


@pytest.fixture(scope="module")
def encoded(photographs):
    return [path.read_bytes() for path in photographs]


@pytest.mark.parametrize("output_format", ["tflite", "onnx"])
def test_detections_are_the_evaluations(output_format, trained, encoded, tmp_path):
    plan, folder = trained.detector.plan, tmp_path / "export"

    comparison = exporter.export(trained, "", str(folder), command(output_format), encoded)

    assert comparison.detections > 10
    assert comparison.missing == comparison.further == 0
    assert comparison.differences.keys() == {"boxes", "scores", "masks"}
    for field, difference in comparison.differences.items():
        assert difference < (1e-5 * 300 if field == "boxes" else 1e-5)
    record = json.loads((folder / "export.json").read_text())
    assert (record["input"]["height"], record["input"]["width"]) == (128, 128)
    assert record["part"] == "detections" and not record["not_converted"]
    assert trained.detector.plan is plan


def test_what_does_not_convert_is_named_and_the_boxes_are_there(encoded, tmp_path):
    trained, folder = make("gn", masks=False, further_heads=[GammaHead]), tmp_path / "export"
    comparison = exporter.export(trained, "", str(folder), command("tflite"), encoded)

    assert comparison.missing == comparison.further == 0
    assert comparison.differences.keys() == {"boxes", "scores"}
    record = json.loads((folder / "export.json").read_text())
    assert record["part"] == "raw" and record["not_converted"] == ["Igamma"]
    assert "Igamma" in (folder / "README.md").read_text()


def test_a_part_that_does_not_convert_leaves_nothing(tmp_path):
    trained = make("gn", masks=False, further_heads=[GammaHead])

    with pytest.raises(conversion.NotConvertibleError, match="does not have Igamma$"):
        exporter.export(
            trained, "", str(tmp_path / "export"), command("onnx", part="detections"), []
        )

    assert not list(tmp_path.iterdir())


def test_the_input_holds_every_image_or_takes_smaller_ones(trained):
    assert exporter.input_shape(trained) == (128, 128)
    assert exporter.input_shape(trained, [64, 96]) == (64, 96)
    with pytest.raises(ValueError, match="multiples of 32.*such as 96x128"):
        exporter.input_shape(trained, [90, 128])
    rule = exporter.size_rule(trained.pipeline, (64, 96))
    stored = [[200, 300], [300, 200], [100, 400]]
    np.testing.assert_array_equal(rule.resized(tf.constant(stored)), [[64, 96], [64, 43], [24, 96]])
