"""The commands of README and docs: where they are found, and what tries each of them.

A new command needs a line in TRIED or in NOT_TRIED, unless one there covers it.
"""

import pathlib
import re

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# What a command begins with -> the test that runs its module, with smaller numbers or in dry form.
TRIED = {
    "python -m rethink_tf.train --gin_file": "tests/test_output.py",
    "python -m rethink_tf.train --mode=evaluate": "tests/test_output.py",
    "python -m rethink_tf.data.coco": "tests/data/sources/test_coco.py",
    "python -m rethink_tf.data.voc": "tests/data/sources/test_voc.py",
    "python -m rethink_tf.data.serve": "tests/data/input/test_service.py",
    "python -m rethink_tf.study": "tests/study/test_study_run.py",
    "python -m rethink_tf.report": "tests/report/test_page_in_browser.py",
    "python -m rethink_tf.convert": "tests/test_convert.py",
    "python -m rethink_tf.pretrain": "tests/pretraining/test_pretraining_run.py",
    "python -m rethink_tf.export": "tests/test_export.py",
    "python -m rethink_tf.show_data": "tests/looking/test_show_data.py",
    "python -m rethink_tf.errors": "tests/errors/test_errors_page.py",
    "python -m rethink_tf.doctor": "tests/diagnosis/test_causes.py",
    "python -m rethink_tf.predict": "tests/predicting/test_predict.py",
    "python -m launch.vertex": "tests/launch/test_vertex.py",
    "python -m launch.jobset": "tests/launch/test_jobset.py",
    "python -m launch.skypilot": "tests/launch/test_scripts.py",
    "launch/local_workers.sh": "tests/launch/test_local_workers.py",
    "launch/tpu_vm.sh": "tests/launch/test_scripts.py",
    "sbatch": "tests/launch/test_scripts.py",
}
# What a command begins with -> why no test runs it; .ci/run runs some of them.
NOT_TRIED = {
    "pip install": "network: .ci/run installs in a fresh environment",
    "python -m pytest": "long: it is what runs the tests",
    "ruff": "a check of .ci/run",
    "lint-imports": "a check of .ci/run",
    "python -m build": "network: tests/test_packaging.py builds without it",
    "python -m benchmarks.": "long: minutes on an idle machine; tests/benchmarks run their parts",
    "export": "a setting of the shell",
    "docker build": "network, and some GB",
    "docker run": "network: TensorFlow Serving's image",
    "printf": "a request for TensorFlow Serving; tests/exporting has the same",
    "curl": "a request for TensorFlow Serving; tests/exporting has the same",
    "tensorboard": "a server that does not end; tests/test_monitoring.py runs it",
    "kubectl": "hardware: a cluster",
    "sky": "hardware: a cloud",
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BEGINS = ("python -m", "pip ", "launch/", "sbatch ", "ruff ")


def documents():
    """The documents whose commands are checked."""
    pages = sorted((REPOSITORY / "docs").rglob("*.md"))
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *pages]


def of_document(text):
    """Returns the commands of a document: of its bash blocks, and of its indented blocks."""
    blocks = [block for language, block in _FENCE.findall(text) if language == "bash"]
    indented = re.findall(r"(?:^    .*\n)+", _FENCE.sub("", text), re.MULTILINE)
    blocks += [block for block in indented if block.strip().startswith(_BEGINS)]
    return [command for block in blocks for command in _commands(block)]


def of_gin_file(text):
    """Returns the commands in the header of a gin file, which all begin with python -m."""
    header = re.match(r"(?:#.*\n)+", text)
    lines = re.findall(r"^#   (.*)$", header[0] if header else "", re.MULTILINE)
    return [each for each in _commands("\n".join(lines)) if each.startswith("python -m")]


def _commands(block):
    """Returns the commands of a block, each in one line and without a comment."""
    whole = re.sub(r"\\\n\s*", "", block)
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in whole.splitlines()]
    return [part.strip() for line in lines if line for part in line.split(" && ")]


def without_settings(command):
    """Returns a command without what it sets for itself, such as PROJECT=mine."""
    return re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command)


def listed_as(command):
    """Returns the longest entry of the tables that a command begins with, None for none."""
    bare = without_settings(command)
    found = [entry for entry in [*TRIED, *NOT_TRIED] if bare.startswith(entry)]
    return max(found, key=len, default=None)
