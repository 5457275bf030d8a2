"""The files of a run, read once and only when a cause asks for them; no TensorFlow but for weights.

Letters: N records of a record directory.
"""

import functools
import io
import json
import os
import zipfile

import numpy as np

from rethink_tf import config_record, files, gin_values, metrics_file
from rethink_tf.data.records import categories
from rethink_tf.report import event_files, run_data

# An AP below it says that next to nothing was found.
LOW_AP = 0.01
HEADLINES = ("box/AP", "mask/AP", "keypoints/AP", "voc/mAP")
# Of larger files it would take too long: detections are read up to there, others not at all.
MAX_BYTES = 64 * 2**20
# As `records.store`, which needs TensorFlow, writes them.
_MANIFEST, _INDEX, _TRUTH = "manifest.json", "index.npz", "ground_truth.json"


class RunFiles:
    """What the folder of a run holds.

    Attributes:
        folder: str, its MODEL_DIR.
        reads_weights: bool, whether causes may read checkpoints, which takes TensorFlow.
        unread: {path: why it was not read} of what was asked for so far.
    """

    def __init__(self, folder, reads_weights=False, settings=None):
        """Looks whether the folder is one of a run.

        Args:
            folder: str.
            reads_weights: bool.
            settings: str, gin text of the values in force; None for the run's `config.gin`.

        Raises:
            ValueError: if it holds no run of `rethink_tf.train`, or its settings are damaged.
        """
        self.folder, self.reads_weights, self.unread = str(folder), reads_weights, {}
        text = settings or files.read_text(self.path("config.gin"))
        if text is None:
            raise ValueError(
                f"{folder} holds no config.gin: give MODEL_DIR of a run of rethink_tf.train, such "
                "as runs/quickstart (of a study, a folder with a config.gin in its runs/)."
            )
        # What only evaluates leaves no record.
        self.record = config_record.read(folder) or {}
        self._values = gin_values.Values([], [text])
        if self.value("run.batch_size") is None:
            raise ValueError(f"{folder} is of another command: only detectors are diagnosed.")

    def path(self, *names):
        """Returns the path of a file of the run."""
        return os.path.join(self.folder, *names)

    def value(self, binding, default=None):
        """Returns the value in force of a binding such as "run.batch_size", from `config.gin`."""
        return self._values.get(binding, default)

    def values_of(self, parameter):
        """Returns {binding: value} of a parameter of whichever part has it, such as "freeze_at"."""
        return {
            name: self.value(name)
            for name in self._values.names()
            if name.endswith(f".{parameter}")
        }

    @property
    def plan(self):
        """How the run executed, a dict of `execution.ExecutionPlan`'s fields."""
        return self.record.get("plan") or {}

    @property
    def schedule(self):
        """The learning rate's numbers, as of `branching.describe`."""
        return self.record.get("schedule") or {}

    @functools.cached_property
    def evaluations(self):
        """Lines of `metrics.jsonl`, those of plain evaluations alone, the oldest first."""
        lines = metrics_file.read_evaluations(self.folder)
        return [line for line in lines if not line.get("test_augmentation")]

    @functools.cached_property
    def events(self):
        """What else happened, the lines of `metrics.jsonl` with "event"."""
        return metrics_file.read_events(self.folder)

    @property
    def last(self):
        """The metrics of the last evaluation; {} where there was none."""
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def headlines(self):
        """{name: AP} of the last evaluation: of boxes, and what else the run finds."""
        return {name: self.last[name] for name in HEADLINES if name in self.last}

    @property
    def is_low(self):
        """Whether one of them is below `LOW_AP`."""
        return any(value < LOW_AP for value in self.headlines.values())

    @property
    def step(self):
        """The step of the last evaluation or, where there was none, of the last summary."""
        steps = self.curves.get("train/total", ([0], []))[0]
        return self.last.get("step", steps[-1])

    @functools.cached_property
    def curves(self):
        """{name: (steps, values)} of the training's summaries; empty where they cannot be read."""
        found = event_files.read_scalars(self.folder, ("train/",))
        if not found:
            self.unread[self.path("tensorboard")] = "no summaries on a local disk"
        return found

    def curve(self, name):
        """Returns the values of a summary such as "rpn_positives", the oldest first."""
        return self.curves.get(f"train/{name}", ([], []))[1]

    def recent(self, name):
        """Returns the mean of a summary over the last fifth of its values; None without any."""
        values = self.curve(name)
        return float(np.mean(values[-max(len(values) // 5, 1) :])) if values else None

    @functools.cached_property
    def data(self):
        """What `data.json` says of the images, by "training" and "evaluation"."""
        return run_data.read(self.folder)

    @functools.cached_property
    def categories(self):
        """Path and entries of the classes that the weights were trained on; None without."""
        return categories.read(self.folder)

    @functools.cached_property
    def splits(self):
        """{"training" or "evaluation": `SplitFiles`} of the record directories that are there."""
        found = {}
        for use, described in self.data.items():
            split = SplitFiles(described["directory"], self.unread)
            if split.manifest is not None:
                found[use] = split
        return found

    @property
    def results_path(self):
        """The path of the last evaluation's detections."""
        return self.path("results", f"detections-{self.last.get('step')}.json")

    @functools.cached_property
    def detections(self):
        """Detections of the last evaluation in COCO's form, [] where there are none.

        Of a large file only the first: they are sorted by image.
        """
        content = files.read_bytes(self.results_path) if self.last else None
        if content is None:
            if self.last:
                self.unread[self.results_path] = "missing"
            return []
        text = content[:MAX_BYTES].decode(errors="replace")
        if len(content) > MAX_BYTES:
            text = text[: text.rfind('}, {"image_id"')] + "}]"
        try:
            return json.loads(text)
        except ValueError as error:
            self.unread[self.results_path] = f"not JSON ({error})"
            return []


class SplitFiles:
    """A record directory of a run.

    Attributes:
        directory: str.
        manifest: dict, None where it is missing.
    """

    def __init__(self, directory, unread):
        """Reads the manifest; `unread` is that of `RunFiles`."""
        self.directory, self._unread = directory, unread
        path = self.path(_MANIFEST)
        self.manifest = None
        if files.exists(path):
            self.manifest = files.read_json(path, "convert the data set again")
        else:
            unread[path] = "missing"

    def path(self, name):
        """Returns the path of a file in it."""
        return os.path.join(self.directory, name)

    @functools.cached_property
    def num_objects(self):
        """int32 [N], the objects of each record; None where the index cannot be read."""
        path = self.path(_INDEX)
        content = files.read_bytes(path)
        try:
            return np.load(io.BytesIO(content or b""), allow_pickle=False)["num_objects"]
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            self._unread[path] = "missing" if content is None else f"no index ({error})"
            return None

    @functools.cached_property
    def truth(self):
        """The ground truth in COCO's form; None where it is missing or very large."""
        path = self.path(_TRUTH)
        content = files.read_bytes(path)
        if content is None or len(content) > MAX_BYTES:
            self._unread[path] = "missing" if content is None else "too large to be read in seconds"
            return None
        return json.loads(content)

    @property
    def images(self):
        """{id: entry} of the images of the ground truth; {} without one."""
        return {each["id"]: each for each in (self.truth or {}).get("images", ())}

    @property
    def objects(self):
        """The annotations of the ground truth that are no crowds; [] without one."""
        found = (self.truth or {}).get("annotations", ())
        return [each for each in found if not each.get("iscrowd")]
