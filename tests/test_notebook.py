"""The notebook, top to bottom, with fewer steps; what it needs of Jupyter is the display alone."""

import json

import matplotlib
import pytest
from experiment_runs import REPOSITORY

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, untraced):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    notebook = json.loads((REPOSITORY / "docs" / "first_steps.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert all(cell["outputs"] == [] for cell in cells)
    parameters["source"] = [
        "GIN_FILES = ['quickstart.gin', 'overlays/tiny.gin']\n",
        "STEPS = 2\n",
        "FOLDER = 'small'\n",
    ]
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert set(names["results"]) == {"gn", "none"}
    assert names["found"].size == (128, 160)
    assert (tmp_path / "small" / "gn" / "checkpoints").is_dir()
