"""The report of a study: its numbers by hand, and the page as a browser reads it."""

import csv
import html.parser
import json
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree

import pytest
from experiment_runs import REPOSITORY

from rethink_tf.report import collecting, study_tables

# Box AP of the last checkpoint, by arm and schedule, a value a seed.
LAST = {
    ("random", "short"): {1: 0.30, 2: 0.32},
    ("random", "long"): {1: 0.40, 2: 0.42},
    ("<b>trained", "short"): {1: 0.35, 2: 0.38},
    ("<b>trained", "long"): {1: 0.40, 2: None},  # the second one collapses
}
STEPS = {"short": 40, "long": 80}
PUBLISHED = {"a paper": {"short": 33.0, "long": 41.0}}


def write_study(folder):
    runs = []
    for (arm, schedule), values in LAST.items():
        for seed, value in values.items():
            name = f"{arm}/all/{schedule}/seed-{seed}"
            model_dir = folder / "runs" / name.replace("<b>", "")
            model_dir.mkdir(parents=True)
            is_tail = schedule == "short"
            parent = f"{arm}/all/long/seed-{seed}"
            runs.append(
                {"name": name, "arm": arm, "subset": "all", "schedule": schedule, "seed": seed,
                 "gin_files": [], "gin_params": [], "model_dir": str(model_dir), "batch_size": 2,
                 "num_steps": STEPS[schedule], "start_step": 30 if is_tail else 0,
                 "parent": parent if is_tail else None}
            )  # fmt: skip
            # The best is not the last.
            lines = [{"step": 20, "box/AP": 0.9, "box/AP50": 0.95}] if not is_tail else []
            if value is None:
                lines.append({"event": "not_finite", "step": 50, "time": 0})
            else:
                last = {"step": STEPS[schedule], "box/AP": value, "box/AP50": -1}
                lines.append(last | {"test_augmentation": True, "box/AP": 0.99})
                lines.append(last)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (model_dir / "metrics.jsonl").write_text(text)
            bound = {"run.init_checkpoint": f"'{arm}'", "run.seed": str(seed), "FPN.channels": "64"}
            if arm != "random":
                bound["FPN.channels"] = "32"
            (model_dir / "config.json").write_text(json.dumps({"bindings": bound}))
    runs.sort(key=lambda run: -run["num_steps"])
    (folder / "study.json").write_text(json.dumps({"runs": runs, "references": PUBLISHED}))
    (folder / "times.jsonl").write_text(
        '{"run": "random/all/long/seed-1", "images": 80, "seconds": 1800}\n'
        '{"run": "random/all/long/seed-1", "images": 80, "seconds": 1800}\n{"run": "ra'
    )
    return str(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


def test_tables_have_the_numbers_of_the_last_checkpoints(study):
    runs = collecting.read_study(study)
    tables = {table.name: table for table in study_tables.all_tables(runs)}
    short, long = tables["box_AP"].rows
    assert short[:4] == ["all", "short", "31.00 ± 1.41 (30.00, 32.00)",
                         "36.50 ± 2.12 (35.00, 38.00)"]  # fmt: skip
    # 5 and 6: mean 5.5, deviation 0.7071, t of one degree of freedom 12.706.
    assert short[4:] == ["+5.50 [-0.85, +11.85]", "no difference shown (2 seeds)"]
    assert long[3] == "40.00 (40.00); 1 collapsed"
    assert long[4:] == ["+0.00 (one seed)", "one seed, below 0.3 points: nothing can be said"]
    # AP50 of the last checkpoints says that there was nothing to measure.
    assert "box_parts" not in tables
    costs = {row[0]: row[1:] for row in tables["runs"].rows}
    assert costs["random/all/long/seed-1"] == ["done", "the start", "80", "160", "1.000"]
    tail = ["done", "random/all/long/seed-2 at 30", "10", "20", "?"]
    assert costs["random/all/short/seed-2"] == tail
    settings = {row[0]: row[1:] for row in tables["settings"].rows}
    assert settings["FPN.channels"] == ["64", "32", "**no**"]
    assert settings["run.init_checkpoint"][-1] == "yes" and "run.seed" not in settings

    curves = {run.name: [line["step"] for line in run.evaluations] for run in runs}
    assert curves["random/all/short/seed-1"] == [20, 40]


class Page(html.parser.HTMLParser):
    """What a browser would fetch, and the names of marks."""

    def __init__(self):
        super().__init__()
        self.fetched, self.names, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.fetched.append(value)
            if name == "id":
                self.names.append(value)


def test_the_page_stands_alone(study, tmp_path):
    code = "import runpy, sys\n"
    code += f"sys.argv = ['report', {study!r}, '--output={tmp_path / 'report.html'}']\n"
    code += "try: runpy.run_module('rethink_tf.report', run_name='__main__', alter_sys=True)\n"
    code += "finally: assert 'tensorflow' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr

    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.fetched and all(each.startswith(("#", "data:")) for each in page.fetched)
    assert len(page.names) == len(set(page.names)) and page.tags.count("svg") == 3
    assert "b" not in page.tags  # names are texts
    assert "&lt;b&gt;trained" in text and "@import" not in text and "script" not in page.tags
    for path in (tmp_path / "report").glob("*.svg"):
        marks = ElementTree.fromstring(path.read_text())
        words = {element.text for element in marks.iter() if element.text}
        if path.name.startswith("samples_seen"):
            assert {"random long", "<b>trained short"} <= words
            continue
        assert {"random", "<b>trained"} <= words
        assert ("a paper" in words) == path.name.startswith("by_schedule")
    with open(tmp_path / "report" / "box_AP.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["subset", "schedule", "random"] and len(rows) == 3
    assert "## box/AP in percent" in (tmp_path / "report" / "tables.md").read_text()


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no study.json"):
        collecting.read_study(str(tmp_path))
    (tmp_path / "study.json").write_text('{"runs": [{"name": 1}]}')
    with pytest.raises(ValueError, match=r"study.json is no plan of a study"):
        collecting.read_study(str(tmp_path))


def test_subsets_are_compared_at_a_length_that_all_have():
    runs = [
        types.SimpleNamespace(subset=subset, num_steps=steps)
        for subset, steps in [("all", 100), ("all", 200), ("all", 800), ("few", 100), ("few", 200)]
    ]
    found = [(run.subset, run.num_steps) for run in study_tables.of_shared_length(runs)]
    assert found == [("all", 200), ("few", 200)]
    # Where they share none, each one's longest.
    runs[-1].num_steps, runs[-2].num_steps = 300, 50
    found = [(run.subset, run.num_steps) for run in study_tables.of_shared_length(runs)]
    assert found == [("all", 800), ("few", 300)]


def test_a_study_that_was_moved_is_read_where_it_is(tmp_path):
    model_dir = tmp_path / "moved" / "runs" / "a" / "all" / "1x" / "seed-1"
    model_dir.mkdir(parents=True)
    (model_dir / "metrics.jsonl").write_text('{"step": 4, "box/AP": 0.5}\n')
    run = {"name": "a/all/1x/seed-1", "arm": "a", "subset": "all", "schedule": "1x", "seed": 1,
           "model_dir": "runs/study/runs/a/all/1x/seed-1", "num_steps": 4, "start_step": 0,
           "batch_size": 2, "parent": None}  # fmt: skip
    (tmp_path / "moved" / "study.json").write_text(json.dumps({"runs": [run]}))
    (found,) = collecting.read_study(str(tmp_path / "moved"))
    assert found.model_dir == str(model_dir) and found.last["box/AP"] == 0.5
