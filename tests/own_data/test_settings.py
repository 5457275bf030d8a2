"""The settings that statistics give, by hand values."""

import pytest

from rethink_tf.own_data.settings import anchor_sizes, own_data_settings

STATISTICS = {
    "num_images": 210,
    "num_held_out": 0,
    "held_out": 0.0,
    "height": 600,
    "width": 800,
    "aspect_ratio": 1.25,
    "object_sizes": [0.1, 0.2, 0.4],
    "max_objects": 13,
    "has_masks": True,
    "has_keypoints": False,
}


def settings(statistics=(), batch_size=2, **macros):
    return own_data_settings(
        data_dir="/data",
        statistics=STATISTICS | dict(statistics),
        batch_size=batch_size,
        **macros,
    )


@pytest.mark.parametrize(
    ("statistics", "macros", "sides"),
    [
        # 24 / 0.1 = 240 pixels show the small objects: 8 * 32 = 256, and 256 * 1.25 = 320.
        ({}, {}, (256, 320)),
        ({"object_sizes": [0.02, 0.2, 0.4]}, {}, (416, 520)),  # would need 1200
        ({"height": 300, "width": 300, "object_sizes": [0.02, 0.2, 0.4]}, {}, (300, 375)),
        ({"object_sizes": [0.5, 0.5, 0.5]}, {}, (128, 160)),
        ({"height": 28, "width": 28}, {}, (128, 160)),
        ({"aspect_ratio": 9.0}, {}, (256, 427)),  # 256 * 1333 / 800
        ({}, {"side": 512}, (512, 640)),
        ({}, {"model": "r50"}, (600, 750)),
        ({"height": 3000, "width": 4000}, {"model": "r50"}, (800, 1000)),
    ],
)
def test_sides(statistics, macros, sides):
    found = settings(statistics, **macros)
    assert (found["Pipeline.min_side"], found["Pipeline.max_side"]) == sides


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        # A ratio of 16 in four doublings.
        ([0.05, 0.2, 0.8], 640, (32, 64, 128, 256, 512)),
        # Nothing is below two cells: 8 to 128 by doubling.
        ([0.001, 0.1, 1.0], 128, (8, 16, 32, 64, 128)),
        # Of one size, around it: 100 / 1.25 ** 2 = 64.
        ([0.25, 0.25, 0.25], 400, (64, 80, 100, 125, 156)),
    ],
)
def test_anchors_go_from_the_small_objects_to_the_large_ones(sizes, side, expected):
    found = anchor_sizes(STATISTICS | {"object_sizes": sizes}, side)
    assert found == tuple((size,) for size in expected)


@pytest.mark.parametrize(
    ("statistics", "macros", "steps", "drops", "interval"),
    [
        ({}, {}, 1260, (945, 1159), 210),  # 12 epochs of 105 steps
        ({"num_images": 14}, {}, 600, (450, 552), 100),  # 84 steps would not learn
        ({"num_images": 14}, {"epochs": 10}, 70, (52, 64), 50),  # as it was asked for
        ({}, {"epochs": 0.1, "steps": 4}, 4, (3, 4), 4),
        ({"num_images": 120_000}, {"model": "r50", "batch_size": 16}, 540_000, None, 90_000),
    ],
)
def test_the_schedule_follows_from_epochs_and_images(statistics, macros, steps, drops, interval):
    found = settings(statistics, **macros)
    assert found["StepwiseSchedule.num_steps"] == steps
    assert found["StepwiseSchedule.drop_steps"] == (drops or (480_000, 520_000))
    assert found["StepwiseSchedule.warmup_steps"] == min(500, steps // 10)
    assert found["run.evaluate_every"] == interval
    assert found["run.checkpoint_every"] == min(interval, 1000)


def test_rate_and_proposals():
    assert settings()["StepwiseSchedule.peak_learning_rate"] == pytest.approx(0.01)
    paper = settings(model="r50", batch_size=16)
    assert paper["StepwiseSchedule.peak_learning_rate"] == pytest.approx(0.02)
    few, some, many = (settings({"max_objects": count}) for count in (1, 50, 5000))
    keys = ("Pipeline.max_objects", "RPN.train_proposals", "RPN.test_proposals")
    assert [few[key] for key in keys] == [8, 200, 100]
    assert [some[key] for key in keys] == [50, 500, 250]
    assert [many[key] for key in keys] == [300, 2000, 1000]


def test_masks_where_the_data_have_them_and_what_is_held_out():
    boxes = settings({"has_masks": False, "num_held_out": 4, "held_out": 0.25})
    assert boxes["MaskRCNN.mask_head"] is None and boxes["Pipeline.include_masks"] is False
    assert not [name for name in boxes if name.startswith("MaskHead.") or "mask_size" in name]
    assert boxes["Pipeline.held_out"] == 0.25
    masks = settings(normalizer="syncbn")
    assert masks["MaskHead.normalizer"] == masks["FPN.normalizer"] == "syncbn"
    assert masks["MaskRCNN.mask_head"] == "@MaskHead" and masks["Pipeline.include_masks"] is True
    assert "Pipeline.held_out" not in masks


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"model": "r500"}, "MODEL = 'r500': choose one of 'small', 'r50'"),
        ({"epochs": 0}, "EPOCHS = 0: it must be above 0"),
        ({"side": -1}, "SIDE = -1: it must be above 0"),
    ],
)
def test_macros_that_cannot_be(macros, message):
    with pytest.raises(ValueError, match=message):
        settings(**macros)
