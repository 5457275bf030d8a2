"""Categories by id and name: between splits, and between data and the weights of a run."""

import json

import pytest

from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import categories, splits


def entries(*names, first=1):
    return [{"id": key, "name": name} for key, name in enumerate(names, first)]


def test_a_permutation_says_how_to_renumber():
    places = "/data/train", "/data/val"
    assert categories.difference(entries("cat", "dog"), entries("cat", "dog"), places) is None
    found = categories.difference(
        entries("cat", "dog", "owl", "emu"), entries("owl", "dog", "emu", "cat"), places
    )
    assert "1 is 'cat' in /data/train and 'owl' in /data/val" in found and "  2 is" not in found
    assert "annotation file of /data/val" in found
    assert found.endswith("1 (owl) becomes 3, 3 (emu) becomes 4, 4 (cat) becomes 1")
    # Other ids altogether are a permutation, too.
    shifted = categories.difference(entries("cat", "dog"), entries("cat", "dog", first=0), places)
    assert shifted.endswith("0 (cat) becomes 1, 1 (dog) becomes 2")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (("cat", "wolf"), "2 is 'dog' in a and 'wolf' in b"),
        (("cat",), "2 is 'dog' in a and missing in b"),
        (("cat", "dog", "owl"), "3 is missing in a and 'owl' in b"),
        (("dog", "Cat"), "1 is 'cat' in a and 'dog' in b"),
    ],
)
def test_other_names_are_named_without_a_renumbering(other, line):
    found = categories.difference(entries("cat", "dog"), entries(*other), ("a", "b"))
    assert line in found and "becomes" not in found


def test_splits_are_compared_by_id_and_name(coco_source):
    coco_source.convert("train")
    ants, cats = coco_source.dataset["categories"]
    ants["name"], cats["name"] = cats["name"], ants["name"]
    coco_source.convert("val")
    train, val = splits.open_splits(
        "train_and_evaluate", str(coco_source.root), "train", "val", Pipeline()
    )
    with pytest.raises(ValueError, match="(?s)train and .*val have different categories.*20 .ant."):
        splits.check_splits([train, val])


def test_a_run_is_held_to_the_categories_of_its_weights(tmp_path):
    run = tmp_path / "run"
    categories.write(str(run), entries("cat", "dog"))
    swapped = entries("dog", "cat")
    # Without weights, nothing has learnt a class yet.
    categories.check_run(str(run), swapped, "val", None, trains=False)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-2.index").touch()
    categories.check_run(str(run), entries("cat", "dog"), "val", None, trains=False)
    for trains in (True, False):
        with pytest.raises(ValueError, match="(?s)was trained on other categories.*becomes"):
            categories.check_run(str(run), swapped, "val", None, trains)


@pytest.mark.parametrize("checkpoint", ["run", "run/checkpoints", "run/best/step-7"])
def test_weights_of_another_run_are_compared_where_they_are_only_evaluated(tmp_path, checkpoint):
    categories.write(str(tmp_path / "run"), entries("cat", "dog"))
    path, other = str(tmp_path / checkpoint), str(tmp_path / "new")
    categories.check_run(other, entries("cat", "dog"), "val", path, trains=False)
    with pytest.raises(ValueError, match="init_checkpoint, .*was trained on other categories"):
        categories.check_run(other, entries("dog", "cat"), "val", path, trains=False)
    # As a start for other classes they are a choice.
    categories.check_run(other, entries("owl"), "val", path, trains=True)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / categories.FILE).write_text(json.dumps({"categories": [{"id": 1}]}))
    with pytest.raises(ValueError, match="categories.json is damaged"):
        categories.check_run(str(tmp_path), entries("cat"), "val", None, trains=True)
