"""Tests of rethink_tf/data/records/keypoint_sides.py: which keypoints are left and right."""

import pytest

from rethink_tf.data.records import keypoint_sides
from rethink_tf.data.records.keypoints import KeypointLayout


@pytest.mark.parametrize(
    "names",
    [
        "left_eye right_eye nose",
        "Left_Eye Right_Eye Nose",
        "LEFT_EYE RIGHT_EYE NOSE",
        "L_Eye R_Eye Nose",
        "l_eye r_eye nose",
        "eye_l eye_r nose",
        "eye.L eye.R nose",
        "eye-l eye-r nose",
        "leftEye rightEye nose",
        "LeftEye RightEye Nose",
        "eyeLeft eyeRight nose",
        "EyeL EyeR Nose",
        "lEye rEye nose",
        "LEye REye Nose",
        "leye reye nose",
        "eyel eyer nose",
        "lefteye righteye nose",
        "L1 R1 C1",
        "bl br top",
        "TL TR centre",
        "front_lh front_rh tail",
        "左眼 右眼 鼻",
    ],
)
def test_usual_spellings_are_paired(names):
    names = names.split()
    assert keypoint_sides.find_pairs(names) == [(0, 1)]
    assert KeypointLayout.from_names(names).flip_order == [1, 0, 2]
    assert keypoint_sides.find_one_sided(names, [(0, 1)]) == []


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Left Eye", "Right Eye"], [(0, 1)]),
        ("fl fr rl rr".split(), [(0, 1), (2, 3)]),
        ("lf rf lr rr".split(), [(0, 1), (2, 3)]),
        ("bl tl br tr".split(), [(0, 2), (1, 3)]),
        ("L_F_Paw R_F_Paw L_B_Paw R_B_Paw".split(), [(0, 1), (2, 3)]),
        ("top_left bottom_left top_right bottom_right".split(), [(0, 2), (1, 3)]),
        ("nose ear tail withers throat".split(), []),
        ("p0 p1 p2".split(), []),
        # The same side twice, or a word that only looks like one.
        ("rear lower upper".split(), []),
        ("tail_l ear_r".split(), []),
    ],
)
def test_pairs_of_several(names, pairs):
    assert keypoint_sides.find_pairs(names) == pairs


def test_what_looks_one_sided_is_said():
    names = ["L_Eye", "R_Eye", "tail_l", "bl", "nose", "rear", "Left Ear"]
    pairs = keypoint_sides.find_pairs(names)
    assert keypoint_sides.find_one_sided(names, pairs) == ["tail_l", "bl", "Left Ear"]
    line = keypoint_sides.summary_line(names, pairs)
    assert "mirrored image: L_Eye and R_Eye; one-sided" in line
    assert "tail_l, bl, Left Ear (state pairs by --flip_pairs" in line
    # "left" in full without its partner is no doubt a mistake, unless pairs are stated.
    with pytest.raises(ValueError, match="'Left Ear' has no 'Right Ear' beside it.*--flip_pairs"):
        KeypointLayout.from_names(names)
    assert KeypointLayout.from_names(names, flip_pairs=[]).flip_pairs == ((0, 1),)
    stated = KeypointLayout.from_names(names, ["tail_l:bl", "Left Ear:rear"])
    assert stated.flip_pairs == ((0, 1), (2, 3), (5, 6))
    # What is stated wins over what the names tell.
    assert KeypointLayout.from_names(["l", "r", "c"], ["l:c"]).flip_pairs == ((0, 2),)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (["a"], "'a' is no pair; write NAME:NAME"),
        (["a:a"], "is no pair"),
        (["a:d"], "there is no keypoint 'd'; there are a, b, c"),
        (["a:b", "b:c"], "'b' is in two pairs"),
    ],
)
def test_bad_pairs_are_one_clear_error(stated, message):
    with pytest.raises(ValueError, match=f"flip_pairs: .*{message}"):
        KeypointLayout.from_names(["a", "b", "c"], stated)


def test_stated_pairs_are_in_the_manifest(coco_source):
    coco_source.dataset["categories"][1]["keypoints"] = ["head", "wing one", "wing two"]
    coco_source.dataset["annotations"][0]["keypoints"] = [4, 5, 2, 10, 3, 1, 0, 0, 0]
    manifest = coco_source.convert(flip_pairs=["wing one:wing two"])[1]
    assert manifest["keypoints"]["flip_pairs"] == [[1, 2]]
