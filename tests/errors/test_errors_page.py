"""The page of errors, made from files as anybody has them, and what it says of bad ones."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from drawn_study import CATEGORIES, SIDE, make_data
from experiment_runs import REPOSITORY
from PIL import Image

from rethink_tf.errors import examples, inputs, measures, sections, tide, worst

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


OBJECT = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [0, 0, 5, 5]}
TRUTH = {"images": [{"id": 10, "height": 9, "width": 9}], "annotations": [OBJECT],
         "categories": CATEGORIES}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder with truth.json, results.json and images/, one of which is missing."""
    folder = tmp_path_factory.mktemp("errors")
    truth, results = make_data(2, 3.0)
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for entry in truth["images"]:
        entry["file_name"] = f"{entry['id']}.png"
        pixels = generator.integers(60, 120, [SIDE, SIDE, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / entry["file_name"])
    for name, content in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(content, default=bytes.decode))
    return folder


@pytest.fixture(scope="module")
def case(files):
    return inputs.read_files(*(str(files / each) for each in ("truth.json", "results.json")),
                             str(files / "images"))  # fmt: skip


@pytest.fixture(scope="module")
def page(files, case):
    """The page as the command makes it, in a process that tells whether TensorFlow came."""
    _, measured = measures.measure(case)[0]  # of boxes, and of masks
    worst_image = worst.rank(measured.errors, worst.choose_score(measured.errors), 24)[0]
    missing = files / "images" / case.truth.images[10 + int(worst_image)]["file_name"]
    missing.unlink()
    code = "import sys, runpy, atexit\n"
    code += "atexit.register(lambda: print('TensorFlow:', 'tensorflow' in sys.modules))\n"
    code += "runpy.run_module('rethink_tf.errors', run_name='__main__', alter_sys=True)"
    flags = [f"--{name}={files / path}" for name, path in
             (("annotations", "truth.json"), ("results", "results.json"), ("images", "images"),
              ("output", "page/errors.html"))]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--num_images=3"],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{missing} is missing" in done.stderr
    return files / "page" / "errors.html", done.stdout


def test_the_command_needs_no_tensorflow_and_prints_what_is_lost(page):
    _, output = page
    assert "TensorFlow: False" in output
    row = re.search(r"\| localisation \| (\S+) \| (\S+) \| (\d+) \| (\d+) \|", output)
    # As tidecv has it, see test_tide.py.
    assert row.groups() == ("37.45", "37.45", "23", "23")
    assert "| false negatives | 24.50 | 24.50 |" in output


def test_the_page_has_all_parts_and_nothing_from_elsewhere(page):
    text = page[0].read_text()
    for title in ("Kinds of errors", "AP by size of the objects", "By category (mask)",
                  "Categories taken for another", "Images that lose the most",
                  "The surest errors of each kind (orange), and objects (green)"):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    # What is lost, precision over recall and confusions; curves of 2 categories each.
    assert text.count("<svg") == 4 + 2 * 2 and text.count('src="data:image/jpeg') > 2 * 3
    places = re.findall(r"(?:src|href)=\"([^\"]*)|url\(([^)]*)\)", text)
    assert all((a or b).startswith(("#", "data:")) for a, b in places)


def test_the_numbers_of_categories_add_up(case):
    found, confusion = measures.measure(case)
    tables = {table.name: table for table in sections.all_tables(case, found, confusion)}
    mask = found[1]
    rows = [[int(cell.replace(",", "")) for cell in row[3:]]
            for row in tables["categories_mask"].rows]  # fmt: skip
    totals = np.sum(rows, 0).tolist()
    errors = mask.errors
    assert totals[0] == len(errors.object_rows) and totals[1] == (errors.found >= 0).sum()
    assert totals[2:7] == np.bincount(errors.kinds, minlength=6)[1:].tolist()
    assert totals[7] == errors.missed.sum()
    assert float(tables["sizes"].rows[0][3]) == pytest.approx(100 * mask.metrics["APs"], abs=0.06)
    assert sum(int(row[1]) for row in tables["sizes"].rows) == totals[0]


def test_each_error_is_named_in_the_pictures(case):
    mask = measures.measure(case)[0][1]
    shown = worst.choose_score(mask.errors)
    named = []
    for position in worst.rank(mask.errors, shown, 24)[:6]:
        truth, found = worst._sides(mask, shown, int(position), case.names)
        assert len(truth.notes) == len(truth.boxes) and len(found.notes) == len(found.boxes)
        assert (found.scores >= shown.score).all()
        # A mask's box, in (y1, x1, y2, x2).
        for box, outline in zip(found.boxes, found.masks, strict=True):
            y1, x1, y2, x2 = (int(each) for each in box)
            assert outline[y1:y2, x1:x2].sum() == outline.sum() > 0
        named += [*truth.notes, *found.notes]
    assert {"localisation", "missed", ""} <= set(named)


def test_the_surest_errors_are_cut_out(case):
    mask = measures.measure(case)[0][1]
    rows = dict(examples.draw(case, mask))
    captions = [f"{name}: {meaning}." for name, meaning in tide.KINDS.values()]
    counts = dict(zip(captions, np.bincount(mask.errors.kinds, minlength=6)[1:], strict=True))
    assert set(rows) == {name for name, count in counts.items() if count} | {
        f"{tide.MISSED}: {tide.MISSED_MEANS}."
    }
    for row in rows.values():
        images = [title.rpartition("image ")[2] for title, _ in row]
        assert 0 < len(images) == len(set(images)) <= 4
    assert all(", object: " in title for title, _ in rows[captions[0]])
    # A square around the box, moved where it would leave the image, cut where that has no room.
    assert examples._frame(np.array([[20.0, 30, 40, 40]]), (64, 64)) == (14, 19, 46, 51)
    assert examples._frame(np.array([[0.0, 60, 10, 64]]), (64, 64)) == (0, 32, 32, 64)
    assert examples._frame(np.array([[0.0, 0, 10, 60]]), (20, 64)) == (0, 0, 20, 64)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed here")
def test_a_phone_shows_the_page(page, tmp_path):
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--enable-logging=stderr", "--v=0", "--window-size=390,3200",
         f"--screenshot={picture}", page[0].as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    pixels = np.asarray(Image.open(picture).convert("L"), np.float32)
    assert all(part.std() > 3 for part in np.split(pixels, 4))


def test_keypoints_are_measured_and_the_kinds_are_of_boxes(shared_dir, tmp_path):
    data = shared_dir / "data" / "coco_tiny"
    truth = data / "annotations" / "person_keypoints_val2017.json"
    entries = json.loads(truth.read_text())["annotations"]
    results = [{"image_id": e["image_id"], "category_id": 1, "bbox": e["bbox"], "score": 0.9,
                "keypoints": e["keypoints"]} for e in entries if not e["iscrowd"]]  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    case = inputs.read_files(str(truth), str(path), None)
    found, confusion = measures.measure(case)
    assert [each.name for each in found] == ["box", "keypoints"]
    assert found[1].metrics["AP"] > 0.5 and found[1].errors is None
    assert "those of the boxes" in " ".join(sections.summary(case, found, None))
    assert sections.all_tables(case, found, confusion)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"results": "{}"}, r"results\.json must hold a list of COCO results, found dict"),
        ({"results": '[{"image_id"'}, r"results\.json is not JSON .*: write the results again"),
        ({"results": '[{"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}]'},
         r"results\.json: result 0 .* no image with id 99; the detections belong to other images"),
        ({"results": '[{"image_id": 10, "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1}]'},
         r"no category with id 0; class indices must be mapped"),
        ({"truth": "[]"}, r"truth\.json is not in COCO form: it has no list 'images'"),
        ({"truth": json.dumps(TRUTH | {"annotations": []})}, r"truth\.json has no object to find"),
        ({"truth": json.dumps(TRUTH | {"annotations": [OBJECT | {"bbox": None}]})},
         r"truth\.json: annotation 1 of image 10 has no 'bbox'"),
        ({"truth": "nonsense"}, r"truth\.json is not JSON: "),
        ({"images": None}, r"--images: there is no folder .*images"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_named(tmp_path, change, message):
    contents = {"truth": json.dumps(TRUTH), "results": "[]"} | change
    paths = {name: tmp_path / f"{name}.json" for name in ("truth", "results")}
    for name, path in paths.items():
        path.write_text(contents[name])
    images = str(tmp_path / "images") if "images" in change else None
    with pytest.raises(ValueError, match=message):
        inputs.read_files(str(paths["truth"]), str(paths["results"]), images)


def test_no_detection_at_all_is_a_page_that_says_so(tmp_path):
    for name, content in (("truth", TRUTH), ("results", [])):
        (tmp_path / name).write_text(json.dumps(content))
    case = inputs.read_files(str(tmp_path / "truth"), str(tmp_path / "results"), None)
    found, confusion = measures.measure(case)
    lines = sections.summary(case, found, worst.choose_score(found[0].errors))
    assert lines == ["1 images, 0 detections. Box: AP 0.0, AP50 0.0."]
    (kinds, *_) = sections.all_tables(case, found, confusion)
    # Without the missed object, there is none.
    assert [row[1:3] for row in kinds.rows][5:] == [["-", "1"], ["0.00", ""], ["-", ""]]
    assert sections.all_figures(case, found, confusion)


def test_images_that_do_not_fit_their_annotations_are_named(tmp_path):
    entry = {"id": 10, "width": 30, "height": 20, "file_name": "a.jpg"}
    folder = inputs._from_folder(str(tmp_path))
    Image.new("RGB", (31, 20)).save(tmp_path / "a.jpg")
    with pytest.raises(inputs.NoImageError, match="is of 31 x 20 pixels, its annotations of 30 x"):
        folder(entry)
    (tmp_path / "a.jpg").write_bytes(b"nonsense")
    with pytest.raises(inputs.NoImageError, match="a.jpg is no image that reads"):
        folder(entry)
    # Upright where the annotations are so: stored lying, turned by its note.
    lying, exif = Image.new("RGB", (20, 30)), Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.jpg", exif=exif)
    assert folder(entry).shape == (20, 30, 3)


def test_a_folder_without_evaluations_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds no evaluation .* or --annotations and --results"):
        inputs.read_run(str(tmp_path), None, None)
