"""What an export says of itself: the README.md beside it, for people without this package."""

_INPUT = """\
## Input

`image` uint8 [1, {height}, {width}, 3], RGB, and `image_size` int32 [1, 2]. Resize the photograph,
bilinearly at pixel centres (with antialias where it shrinks, as PIL does), by the scale

    {min_side} / shorter side, at most {max_side} / longer side

and at most what fits into {limit} (height x width). Round the sides. Put it into the
upper left corner of `image`, zero elsewhere, and give its height and width after resizing as
`image_size`. What lies beyond changes nothing. The program normalizes the pixels itself.
"""

_OUTPUTS = {
    "detections": """\
- `boxes` float32 [1, D, 4], (y1, x1, y2, x2), pixels of `image`: divide by the scale
- `scores` float32 [1, D], falling; 0 is padding
- `classes` int32 [1, D]: the n-th of `categories` in export.json counted from 1; 0 is padding
""",
    "raw": """\
The boxes before the suppression of those that overlap, and without what the heads say of objects:

- `boxes` float32 [1, D, 4], (y1, x1, y2, x2), pixels of `image`: divide by the scale
- `scores` float32 [1, D], falling; 0 is padding
- `classes` int32 [1, D]: the n-th of `categories` in export.json counted from 1; 0 is padding

Of each class, go through the boxes by falling score and drop those that overlap a kept one by an
IoU above {nms_threshold}. Keep the {max_detections} of the highest scores of all classes.
""",
}

_SERVED_OUTPUTS = """\
## Outputs

B images; D is the most detections of one of them. Rows from `num_detections` on are padding.

- `num_detections` int32 [B]
- `boxes` float32 [B, D, 4], (y1, x1, y2, x2), pixels of the given image
- `scores` float32 [B, D], falling
- `category_ids` int64 [B, D] and `labels` string [B, D], of the data set
"""

_FIELDS = {
    "masks": """\
- `masks` float32 [{rows}, S, S], probabilities within the box. To paste one, resize it
  bilinearly from its box to the image (cell centres; zero outside), and cut at 0.5. In Python:

      def weights(low, high, length, cells):
          step = (high - low) / cells
          position = (np.arange(length) + 0.5 - low) / step - 0.5
          return np.maximum(0, 1 - abs(position[:, None] - np.arange(cells)))

      y1, x1, y2, x2 = box
      rows, columns = weights(y1, y2, height, S), weights(x1, x2, width, S)
      pixels = rows @ mask @ columns.T >= 0.5
""",
    "keypoints": "- `keypoints` float32 [{rows}, K, 3], (y, x, score), pixels as the boxes\n",
    "whole_masks": """\
- `whole_masks` uint8 [{rows}, height, width], 1 inside of the object; of the largest height and
  width of the batch
""",
}

_RUN = {
    "saved_model": """\
## Run

    import tensorflow as tf
    model = tf.saved_model.load("{name}")
    found = model.signatures["serving_default"](encoded=tf.constant([open("a.jpg", "rb").read()]))
    found = model.signatures["images"](images=images)  # uint8 [B, height, width, 3], RGB

`serving_default` takes the bytes of JPEG or PNG files of any sizes, `images` pixels of one size.
Both resize and normalize by themselves. The orientation in a file's EXIF data is not looked at.

TensorFlow Serving takes the folder as a version, such as /models/detector/1:

    docker run -p 8501:8501 -v /models/detector:/models/detector -e MODEL_NAME=detector \\
        tensorflow/serving
    printf '{{"signature_name": "serving_default", "instances": [{{"b64": "%s"}}]}}' \\
        "$(base64 -w0 a.jpg)" > request.json
    curl -d @request.json http://localhost:8501/v1/models/detector:predict
""",
    "tflite": """\
## Run

    from ai_edge_litert.interpreter import Interpreter
    run = Interpreter("{name}/model.tflite").get_signature_runner()
    found = run(image=image, image_size=image_size)
""",
    "onnx": """\
## Run

    import onnxruntime
    session = onnxruntime.InferenceSession("{name}/model.onnx")
    names = [each.name for each in session.get_outputs()]
    found = dict(zip(names, session.run(names, {{"image": image, "image_size": image_size}})))
""",
}


def readme(record, name):
    """Returns the text of README.md.

    Args:
        record: dict of `export.json`.
        name: str, of the folder.
    """
    output_format, part = record["command"]["format"], record["part"]
    is_served = output_format == "saved_model"
    parts = [f"# Detector as {output_format}", _origin(record)]
    if is_served:
        outputs = _SERVED_OUTPUTS
    else:
        parts.append(_INPUT.format(**record["input"], limit=_limit(record["input"])))
        outputs = "## Outputs\n\n" + _OUTPUTS[part].format(**record["suppression"])
    rows = "B, D" if is_served else "1, D"
    for field in record["fields"]:
        outputs += _FIELDS.get(field, f"- `{field}` [{rows}, ...]\n").format(rows=rows)
    parts += [outputs, _RUN[output_format].format(name=name)]
    if record["comparison"]:
        parts.append(f"## Comparison\n\n{record['comparison']['summary']}\n")
    return "\n".join(parts)


def _origin(record):
    names = ", ".join(each["name"] for each in record["categories"][:20])
    more = len(record["categories"]) - 20
    left_out = ""
    if record["not_converted"]:
        lacking = ", ".join(record["not_converted"])
        left_out = f"The detections themselves do not convert: {lacking} is not there.\n"
    return (
        f"Of the checkpoint {record['checkpoint']}, step {record['step']}.\n"
        f"{len(record['categories'])} categories: {names}{f' and {more} more' * (more > 0)}.\n"
        f"All of it, for programs: export.json.\n{left_out}"
    )


def _limit(described):
    return " or ".join(f"{height} x {width}" for height, width in described["buckets"])
