"""Detection on files: which are read, what is written, and what is said of the others."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from experiment_runs import REPOSITORY
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import rethink_tf
from rethink_tf.data.sources import image_files
from rethink_tf.predicting import inputs, outputs, run, videos

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")


def draw(height, width, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, [height, width, 3]).astype(np.uint8)
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several kinds, two that are none, and a large one."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    draw(60, 80).save(folder / "a.jpg")
    draw(60, 80, 1).save(folder / "a.png")
    draw(50, 90).convert("P").save(folder / "deeper" / "b.png")
    exif = Image.Exif()
    exif[0x112] = 6
    draw(40, 100).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.full([30, 40], 40_000, np.uint16)).save(folder / "sixteen.png")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("no image")
    Image.new("L", (900, 900)).save(folder / "large.png")
    (folder / "notes.txt").write_text("not asked for")
    return folder


def test_the_command_on_a_folder(run_dir, photos, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rethink_tf.predict", f"--model_dir={run_dir}",
         f"--input={photos}", f"--output={tmp_path}", "--score=0", "--batch_size=3",
         "--max_pixels=500000"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "4 files were left out: 1 image_huge, 1 image_sixteen_bit, 2 image_unreadable" in (
        done.stderr
    )
    for name in ("cut.jpg", "text.png", "large.png", "sixteen.png"):
        assert f"{name} is left out" in done.stderr
    pictures = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")}
    assert pictures == {"a.jpg.jpg", "a.png.jpg", "deeper/b.jpg", "turned.jpg"}
    found = COCO(tmp_path / "detections.json")
    sizes = {each["file_name"]: (each["height"], each["width"]) for each in found.imgs.values()}
    # EXIF's orientation 6 turns it by a quarter.
    assert sizes == {"a.jpg": (60, 80), "a.png": (60, 80), "deeper/b.png": (50, 90),
                     "turned.jpg": (100, 40)}  # fmt: skip
    assert [each["name"] for each in found.cats.values()][:2] == ["circle", "rectangle"]
    annotations = list(found.anns.values())
    assert annotations and all(0 <= each["score"] <= 1 for each in annotations)
    for each in annotations[:5]:
        image = found.imgs[each["image_id"]]
        assert coco_mask.decode(each["segmentation"]).shape == (image["height"], image["width"])
    # What pycocotools takes as results.
    assert len(found.loadRes(annotations).anns) == len(annotations)
    with Image.open(tmp_path / "turned.jpg") as picture:
        assert picture.height > picture.width


def test_a_video_comes_back_drawn(run_dir, tmp_path):
    av = pytest.importorskip("av", reason="PyAV, the extra `video`, is not installed")
    path = tmp_path / "walk.mp4"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for seed in range(3):
            frame = av.VideoFrame.from_ndarray(np.asarray(draw(64, 96, seed)), format="rgb24")
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    (tmp_path / "broken.mp4").write_bytes(path.read_bytes()[:200])
    detector, options = rethink_tf.load(run_dir), image_files.Options()
    skipped = run.predict(detector, str(tmp_path), str(tmp_path / "out"), 0.5, 1, options, 10**6)
    assert skipped == {"image_unreadable": 1}
    with av.open(str(tmp_path / "out" / "walk.mp4")) as found:
        assert sum(1 for _ in found.decode(video=0)) == 3
    assert [each.name for each in (tmp_path / "out").glob("*.mp4")] == ["walk.mp4"]
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [each["frame"] for each in written["images"]] == [0, 1, 2]


def test_no_input_is_lost(run_dir, tmp_path):
    draw(20, 30).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ValueError, match="would replace the input"):
        run.predict(None_detector(), str(tmp_path), str(tmp_path), 0.5, 1, None, 10**6)
    assert (tmp_path / "a.jpg").read_bytes() == before
    with pytest.raises(ValueError, match="names no file"):
        run.predict(None_detector(), str(tmp_path / "none"), str(tmp_path), 0.5, 1, None, 10**6)


class None_detector:
    categories = [{"id": 1, "name": "a"}]


def test_which_files_are_meant(tmp_path):
    for name in ("b.JPG", "c/d.png", "c/e.txt", "v.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    root = str(tmp_path)

    def names(source):
        paths, folder = inputs.find(source)
        return [str(pathlib.Path(path).relative_to(folder)) for path in paths]

    assert names(root) == ["b.JPG", "c/d.png", "v.mov"]
    assert names(f"{root}/**/*.png") == ["d.png"]
    assert names(f"{root}/b.JPG") == ["b.JPG"]
    paths = [f"{root}/x/a.png", f"{root}/x/a.jpg", f"{root}/x/b.png"]
    assert list(outputs.picture_names(paths, root).values()) == [
        "x/a.png.jpg", "x/a.jpg.jpg", "x/b.jpg"]  # fmt: skip


def test_without_pyav_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(image_files.UnusableError, match="video") as error:
        videos.run("a.mp4", str(tmp_path / "b.mp4"), None, 10)
    assert error.value.args[0] == "no_reader_of_videos" and not list(tmp_path.iterdir())
