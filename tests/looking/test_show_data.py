"""The command on a folder with faults and odd shapes, and what its suggestion does in a run."""

import contextlib
import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from drawn_records import pixels
from experiment_runs import REPOSITORY
from PIL import Image

from rethink_tf import building, config
from rethink_tf.data import schema
from rethink_tf.data.input import reading
from rethink_tf.data.sources import shapes
from rethink_tf.looking import feeding, look, measuring, opening, suggestion
from rethink_tf.own_data import deriving
from rethink_tf.settings import Settings

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

HEIGHT, WIDTH = 128, 160
NUM_TRAIN, NUM_VAL = 20, 6


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write_split(folder, first_id, images, further=()):
    """Writes images of two thin objects each, and further (image, box, category, mask)."""
    folder.mkdir(parents=True)
    objects = []
    for number, image in enumerate(images):
        image.save(folder / f"{number}.jpg", quality=95)
        at = 4 * (number % 8)
        objects += [
            (number, [10 + at, 60, 96, 12], 1, None),
            (number, [120, 8 + at, 11, 80], 2, None),
        ]
    truth = {
        "categories": [
            {"id": 1, "name": "rod"},
            {"id": 2, "name": "pole"},
            {"id": 3, "name": "no"},
        ],
        "images": [
            {"id": first_id + k, "file_name": f"{k}.jpg", "height": HEIGHT, "width": WIDTH}
            for k in range(len(images))
        ],
        "annotations": [
            {
                "id": first_id + k,
                "image_id": first_id + number,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": rectangle(*(mask or box)),
            }
            for k, (number, box, category, mask) in enumerate([*objects, *further])
        ],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(truth))


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder as an annotation tool exports it, with what should be found in it."""
    folder = tmp_path_factory.mktemp("mine") / "mine"
    train = [Image.fromarray(pixels(k, HEIGHT, WIDTH)) for k in range(NUM_TRAIN)]
    val = [Image.fromarray(pixels(1000 + k, HEIGHT, WIDTH)) for k in range(NUM_VAL - 1)]
    val.append(train[4].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    faults = [
        (0, [0, 0, WIDTH, HEIGHT], 1, None),
        (1, [30, 20, 40, 1], 1, None),
        (2, [10 + 8, 60, 96, 12], 2, None),  # the box of its rod
        (3, [20, 90, 60, 10], 1, [90, 20, 10, 60]),
        (3, [100, 100, 40, 9], 1, [10, 20, 40, 9]),
    ]
    write_split(folder / "train", 1, train, faults)
    write_split(folder / "valid", 1001, val)
    return folder


@pytest.fixture(scope="module")
def shown(mine, tmp_path_factory):
    """What the command leaves: the page and the folder beside it."""
    output = tmp_path_factory.mktemp("shown") / "data.html"
    command = [sys.executable, "-m", "rethink_tf.show_data", f"--data_dir={mine}", "--pictures=3"]
    done = subprocess.run(
        [*command, f"--output={output}"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert f"Wrote {output};" in done.stdout
    return output.parent


def rows_of(path):
    with open(path) as file:
        return list(csv.reader(file))[1:]


def table(shown, title):
    """The rows of a table of tables.md, by their first cell."""
    text = (shown / "data" / "tables.md").read_text()
    part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines[2:]}


def test_what_was_planted_is_found_and_counted(shown):
    found = {(row[1], row[2], row[4]) for row in rows_of(shown / "data" / "suspicious.csv")}
    assert found == {
        ("whole image", "1", "rod"),
        ("one pixel", "2", "rod"),
        ("two classes", "3", "rod"),
        ("x and y swapped", "4", "rod"),
        ("mask elsewhere", "4", "rod"),
    }
    (pair,) = rows_of(shown / "data" / "near_duplicates.csv")
    assert pair[0] == "evaluation and training" and {pair[1], pair[3]} == {"5", str(1000 + NUM_VAL)}
    assert pair[-1] == "yes"

    splits = table(shown, "The splits")
    # 2 an image and 5 further ones; the fullest image has 4.
    assert splits["training"][:6] == ["20", "45", "0", "0", "2.2", "4"]
    assert splits["evaluation"][:6] == ["6", "12", "0", "0", "2.0", "2"]
    classes = table(shown, "Classes")
    assert classes["rod"][:3] == ["24", "20", "6"] and classes["pole"][:3] == ["21", "20", "6"]
    assert classes["no"][:3] == ["0", "0", "0"]
    # 128 x 160 is fed as it is: sqrt(96 * 12) = 33.9 and sqrt(11 * 80) = 29.7.
    assert classes["rod"][3:5] == ["33.9", "0.125"] and classes["pole"][3:5] == ["29.7", "7.27"]


def test_the_page_holds_all_that_it_shows(shown):
    text = (shown / "data.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*', text) == []
    assert text.count("data:image/jpeg") == 2 * 3 + 2 + 5
    sheet = np.asarray(Image.open(shown / "data" / "contact_sheet.png"))
    assert sheet.shape[2] == 3 and sheet.std() > 10


def test_the_suggestion_is_what_own_data_derives(mine, shown, tmp_path):
    overlay = str(shown / "data" / "suggested.gin")
    params = [f"DATA_DIR={str(mine)!r}", f"MODEL_DIR={str(shown / 'data')!r}"]
    derived = []
    for gin_files in (["own_data.gin"], ["own_data.gin", overlay]):
        config.parse(gin_files, params)
        deriving.bind_settings()
        found = config.bindings()
        derived.append({key: found[key] for key in found if key[1].endswith(("Pipeline", "RPN"))})
        steps = config.value_of("StepwiseSchedule.num_steps")
    assert derived[0] == derived[1] and steps == 600
    ratios = config.value_of("RPN.aspect_ratios")
    assert ratios[0] < 0.2 and ratios[-1] > 5


@pytest.mark.parametrize("gin_file", ["quickstart.gin", "scratch_r50.gin"])
def test_the_suggestion_fits_another_experiment_and_reaches_more_objects(shown, tmp_path, gin_file):
    data_dir, output = shown / "data" / "records", tmp_path / "suggested.gin"
    splits = ["run.evaluation_split='valid'", "run.prepare_data=None"]
    params = [f"DATA_DIR={str(data_dir)!r}", f"MODEL_DIR={str(tmp_path / 'run')!r}", *splits]
    opened = opening.open_experiment([gin_file, "overlays/tiny.gin"], params)
    split_tables = measuring.read_tables(opened)
    before = suggestion.suggest(opened, split_tables["training"])
    output.write_text(suggestion.overlay_text(before, ["--gin_file=" + gin_file]))
    first, *_ = measuring.measure(opened, split_tables, before).reaches

    files = [gin_file, "overlays/tiny.gin", str(output)]
    opened = opening.open_experiment(files, params)
    then, *_ = measuring.measure(opened, split_tables, before).reaches
    # From a third or less of the objects to all but the odd ones.
    assert (first.ious >= 0.5).mean() < 0.5 and (then.ious >= 0.5).mean() > 0.85
    assert opened.settings.schedule.num_steps == (600 if gin_file == "quickstart.gin" else 9000)

    # A run is built of it, every binding has an effect, and it is fed what was shown.
    if gin_file == "scratch_r50.gin":
        config.parse(files, params)
        with contextlib.ExitStack() as resources:
            experiment = building.build(Settings(), resources)
            of_run = next(experiment.trainer._batches)
        of_page = feeding.first_images(opened, 2, reading.PipelineCounters())
        assert [each.image_id for each in of_page] == of_run[schema.IMAGE_ID].numpy().tolist()
        for number, each in enumerate(of_page):
            np.testing.assert_array_equal(each.image, of_run[schema.IMAGE][number])
            boxes = of_run[schema.BOXES][number].numpy()[: len(each.boxes)]
            np.testing.assert_array_equal(each.boxes, boxes)


def test_keypoints_are_shown(tmp_path):
    shapes.make_shapes(str(tmp_path / "shapes"), num_train=16, num_val=4, num_shards=2)
    page, folder = look.look(
        str(tmp_path / "page"),
        ["keypoints_r50.gin", "overlays/tiny.gin"],
        [],
        str(tmp_path / "shapes"),
        num_pictures=2,
    )
    text = (tmp_path / "page" / "data.html").read_text()
    assert page == str(tmp_path / "page" / "data.html") and folder == str(tmp_path / "page")
    assert "0 suspicious boxes, 0 near-duplicates between training and evaluation" in text
    # Four keypoints a shape.
    assert re.search(r"<td>training</td><td>16</td><td>(\d+)</td>", text)


def test_an_error_names_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="DATA_DIR .*nowhere is not a folder"):
        look.look(str(tmp_path / "out"), [], [], str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []
