"""Tests of SavedModels: rethink_tf/exporting/served.py, programs.py, saved_model.py, serve.py."""

import base64
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from small_exports import command, make

from rethink_tf.exporting import comparing, exporter, serve

# What a program does that has TensorFlow and not this package.
FOREIGN = """
import sys, numpy as np, tensorflow as tf
*paths, folder = sys.argv[1:]
encoded = [open(path, "rb").read() for path in paths]
image = tf.io.decode_jpeg(encoded[0], dct_method="INTEGER_ACCURATE")
model = tf.saved_model.load(folder)
together = model.signatures["serving_default"](encoded=tf.constant(encoded))
twice = model.signatures["images"](images=tf.stack([image, image]))
found = {f"encoded/{key}": value.numpy() for key, value in together.items()}
found |= {f"images/{key}": value.numpy() for key, value in twice.items()}
found["assets"] = [open(asset.asset_path.numpy()).read() for asset in model.assets]
np.savez(folder + ".npz", **found)
assert not {"rethink_tf", "official"} & {name.split(".")[0] for name in sys.modules}
"""
FIELDS = ["keypoints", "masks", "whole_masks"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photographs):
    """Returns a run, its export, the evaluation's detections and another process's."""
    output = tmp_path_factory.mktemp("exports") / "saved_model"
    # A cascade with masks and keypoints: every kind of head.
    trained = make("syncbn", cascade=True, keypoints=True)
    exporter.export(
        trained, "# Settings.\n", str(output), command("saved_model", whole_masks=True), []
    )
    rule = exporter.size_rule(trained.pipeline)
    evaluation = comparing.Evaluation(trained.detector, trained.categories, rule)
    encoded = [path.read_bytes() for path in photographs]
    expected = [evaluation.measure(evaluation.prepare(each))[0] for each in encoded]
    # Without the environment's paths: a process of another project.
    done = subprocess.run(
        [sys.executable, "-I", "-c", FOREIGN, *map(str, photographs), str(output)],
        cwd=output.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "gradient" not in done.stderr
    with np.load(f"{output}.npz", allow_pickle=True) as found:
        return trained, output, expected, dict(found)


def test_another_process_finds_what_the_evaluation_does(exported):
    trained, _, evaluated, found = exported

    for row, expected in enumerate(evaluated):
        count = len(expected["scores"])
        assert found["encoded/num_detections"][row] == count > 3
        for key, values in expected.items():
            # Boxes to a hundred-thousandth of the image's side.
            scale = 300.0 if key in ("boxes", "keypoints") else 1.0
            np.testing.assert_allclose(
                found[f"encoded/{key}"][row, :count] / scale, values / scale, atol=1e-5, err_msg=key
            )
        names = {entry["id"]: entry["name"] for entry in trained.categories}
        labels = [label.decode() for label in found["encoded/labels"][row, :count]]
        assert labels == [names[each] for each in expected["category_ids"]]
        for key in ("boxes", "scores", "category_ids"):
            assert not found[f"encoded/{key}"][row, count:].any()


def test_pixels_give_what_their_file_does(exported):
    trained, _, _, found = exported
    keys = {"boxes", "scores", "category_ids", *(head.field for head in trained.detector.heads)}

    for key in keys:
        alone, among_others = found[f"images/{key}"], found[f"encoded/{key}"][0]
        np.testing.assert_array_equal(alone[0], alone[1])
        np.testing.assert_allclose(alone[0], among_others[: alone.shape[1]], atol=1e-3, err_msg=key)


def test_whole_masks_have_the_images_size(exported):
    *_, found = exported

    count = found["images/num_detections"][0]
    assert found["images/whole_masks"].shape == (2, count, 150, 200)
    for mask, (y1, x1, y2, x2) in zip(
        found["images/whole_masks"][0], found["images/boxes"][0], strict=True
    ):
        rows, columns = np.nonzero(mask)
        if rows.size:
            assert y1 - 1 <= rows.min() and rows.max() <= y2
            assert x1 - 1 <= columns.min() and columns.max() <= x2


def test_names_and_settings_are_inside(exported):
    trained, folder, _, found = exported

    categories, config = found["assets"]
    assert json.loads(categories) == trained.categories
    assert config == "# Settings.\n"
    record = json.loads((folder / "export.json").read_text())
    assert record["step"] == 20
    assert record["fields"] == FIELDS == sorted(key for key in FIELDS if f"encoded/{key}" in found)
    assert "tensorflow/serving" in (folder / "README.md").read_text()


def test_the_server_answers_requests_of_tensorflow_serving(exported, photographs):
    _, folder, _, found = exported
    server = serve.make_server(serve.Model(str(folder)), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}/v1/models/detector"

    def post(request):
        body = json.dumps(request).encode()
        with urllib.request.urlopen(f"{address}:predict", body) as answer:
            return json.load(answer)

    def refusal(request):
        with pytest.raises(urllib.error.HTTPError) as raised:
            post(request)
        assert raised.value.code == 400
        return json.load(raised.value)["error"]

    try:
        instances = [{"b64": base64.b64encode(path.read_bytes()).decode()} for path in photographs]
        predictions = post({"signature_name": "serving_default", "instances": instances})
        pixels = np.zeros([1, 40, 60, 3], int).tolist()
        black = post({"signature_name": "images", "instances": pixels})
        with urllib.request.urlopen(address) as answer:
            assert json.load(answer)["model_version_status"][0]["state"] == "AVAILABLE"

        assert "is none of" in refusal({"signature_name": "other", "instances": instances})
        assert "not base64" in refusal({"instances": [{"b64": "%"}]})
        assert "list with an entry" in refusal({"instances": []})
        assert "encoded:" in refusal({"instances": [{"b64": "YWJj"}]})
    finally:
        server.shutdown()
        server.server_close()

    assert len(black["predictions"]) == 1
    assert len(predictions["predictions"]) == len(photographs)
    for row, prediction in enumerate(predictions["predictions"]):
        for key, value in prediction.items():
            expected = found[f"encoded/{key}"][row]
            if key == "labels":
                assert value == [each.decode() for each in expected]
            else:
                np.testing.assert_allclose(value, expected, atol=1e-4, err_msg=key)
