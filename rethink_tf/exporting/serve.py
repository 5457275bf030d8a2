"""Answers requests of TensorFlow Serving's REST form by a SavedModel: a small example of a server.

    python -m rethink_tf.exporting.serve --model=/models/detector/1 --port=8501

    printf '{"signature_name": "serving_default", "instances": [{"b64": "%s"}]}' \
        "$(base64 -w0 a.jpg)" > request.json
    curl -d @request.json http://localhost:8501/v1/models/detector:predict

It needs TensorFlow alone, and may be copied. For many users take TensorFlow Serving itself, which
answers the same requests. Where it listens, everybody may ask: by default that is this machine.

Source of the form: tensorflow.org/tfx/serving/api_rest, "Predict API", row format.
"""

import argparse
import base64
import binascii
import http.server
import json
import re

MAX_BYTES = 256 * 2**20


class Model:
    """A SavedModel that answers requests."""

    def __init__(self, folder):
        """Loads it from a folder."""
        import tensorflow as tf

        self._tf, self._loaded = tf, tf.saved_model.load(folder)

    def predict(self, request):
        """Answers a request.

        Args:
            request: dict: "instances", a list with an entry an image: {"b64": text} or, of the
                signature "images", nested lists of pixels; or each as a dict by the input's name.
                "signature_name", by default "serving_default".

        Returns:
            dict: "predictions", a list with a dict an image, lists by output.

        Raises:
            ValueError: if the request is not of that form.
        """
        name = request.get("signature_name", "serving_default")
        if name not in self._loaded.signatures:
            known = ", ".join(self._loaded.signatures)
            raise ValueError(f"signature_name {name!r} is none of {known}")
        instances = request.get("instances")
        if not isinstance(instances, list) or not instances:
            raise ValueError('"instances" must be a list with an entry for each image')
        signature = self._loaded.signatures[name]
        ((key, spec),) = signature.structured_input_signature[1].items()
        values = [_value(each, key) for each in instances]
        try:
            found = signature(**{key: self._tf.constant(values, spec.dtype)})
        except (TypeError, ValueError, self._tf.errors.InvalidArgumentError) as error:
            raise ValueError(f"{key}: {str(error).splitlines()[0]}") from error
        columns = {output: value.numpy() for output, value in found.items()}
        return {
            "predictions": [
                {output: _plain(value[row]) for output, value in columns.items()}
                for row in range(len(values))
            ]
        }


def make_server(model, port, host="localhost"):
    """Returns a server that answers by a `Model`, to be run by `serve_forever`; port 0 for any."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            """Says that the model is there."""
            status = {"version": "1", "state": "AVAILABLE"}
            self._answer(200, {"model_version_status": [status]})

        def do_POST(self):
            """Answers a prediction."""
            if not re.fullmatch(r"/v1/models/[^/:]+(/versions/\d+)?:predict", self.path):
                self._answer(404, {"error": f"{self.path} is not /v1/models/NAME:predict"})
                return
            length = int(self.headers.get("Content-Length", 0))
            if length > MAX_BYTES:
                self._answer(413, {"error": f"{length:,} bytes are more than {MAX_BYTES:,}"})
                return
            try:
                request = json.loads(self.rfile.read(length))
                if not isinstance(request, dict):
                    raise ValueError("the request must be a JSON object")
                self._answer(200, model.predict(request))
            except (ValueError, RecursionError) as error:
                self._answer(400, {"error": str(error)})

        def _answer(self, code, content):
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return http.server.ThreadingHTTPServer((host, port), Handler)


def _value(instance, key):
    """Returns an entry of the instances as bytes or nested lists."""
    if isinstance(instance, dict) and key in instance:
        instance = instance[key]
    if isinstance(instance, dict):
        if set(instance) != {"b64"}:
            raise ValueError(f'an instance has {sorted(instance)}, and must have "b64" or "{key}"')
        try:
            return base64.b64decode(instance["b64"], validate=True)
        except (TypeError, binascii.Error) as error:
            raise ValueError(f'"b64" is not base64: {error}') from error
    return instance


def _plain(value):
    """Returns an array as lists, bytes within as text."""
    if value.dtype != object:
        return value.tolist()
    return [each.decode() for each in value.ravel()]


def main():
    """Parses the flags and serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the SavedModel")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--host", default="localhost", help="0.0.0.0 for other machines, too")
    flags = parser.parse_args()
    server = make_server(Model(flags.model), flags.port, flags.host)
    print(f"Serving {flags.model} at http://{flags.host}:{flags.port}/v1/models/detector:predict")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
