"""Tests of rethink_tf.config, on a small experiment registered here."""

import json
import pathlib

import gin
import pytest

from rethink_tf import config, config_record


# Names of their own: gin's registry is shared with all tests of the process.
@gin.configurable(module="config_test")
def toy_run(
    model_dir, batch_size, schedule=None, model=None, mode="train", log_every=20, train=True
):
    """Stands for the root; calls its builder only to train, as evaluation leaves parts uncalled."""
    if train and model is not None:
        model()
    return model_dir, batch_size, schedule


@gin.register(module="config_test")
class ToySchedule:
    def __init__(self, multiple=6, images_per_step=16):
        self.multiple = multiple


@gin.register(module="config_test")
def toy_resnet(depth, norm=None):
    return depth, norm() if norm else None


@gin.register(module="config_test")
def toy_group_norm(groups=32):
    return groups


MAIN = """\
MODEL_DIR = "/tmp/a"
BATCH_SIZE = 16
toy_run.model_dir = %MODEL_DIR
toy_run.batch_size = %BATCH_SIZE
toy_run.schedule = @ToySchedule()
toy_run.model = @toy_resnet
ToySchedule.images_per_step = %BATCH_SIZE
toy_resnet.depth = 50
toy_resnet.norm = @toy_group_norm
toy_group_norm.groups = 32
"""


@pytest.fixture
def main_gin(tmp_path):
    path = tmp_path / "main.gin"
    path.write_text(MAIN)
    return str(path)


def failure(function, *args, **kwargs):
    with pytest.raises(config.ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# parse


def test_files_then_bindings_later_ones_win(tmp_path, main_gin):
    overlay = tmp_path / "overlay.gin"
    overlay.write_text("toy_resnet.depth = 18\nBATCH_SIZE = 2\n")
    config.parse([main_gin, str(overlay)], ["BATCH_SIZE=4"])
    assert gin.query_parameter("toy_resnet.depth") == 18
    model_dir, batch_size, schedule = toy_run()
    assert (model_dir, batch_size, schedule.multiple) == ("/tmp/a", 4, 6)
    assert gin.config_is_locked()


def test_parsing_again_forgets_the_first_experiment(tmp_path, main_gin):
    config.parse([main_gin], [])
    other = tmp_path / "other.gin"
    other.write_text("toy_run.batch_size = 1\n")
    config.parse([str(other)], [])
    assert list(config_record.canonical_bindings()) == ["config_test.toy_run.batch_size"]


def test_includes_and_shipped_files_are_found_from_a_foreign_folder(tmp_path, monkeypatch):
    root = tmp_path / "shipped"
    (root / "base").mkdir(parents=True)
    (root / "base" / "model.gin").write_text("toy_resnet.depth = 101\n")
    (root / "scratch.gin").write_text("include 'base/model.gin'\n")
    foreign = tmp_path / "elsewhere"
    foreign.mkdir()
    monkeypatch.chdir(foreign)
    # Earlier tests have added the real root to gin's search path.
    monkeypatch.setattr(config.gin_config, "_LOCATION_PREFIXES", [""])
    monkeypatch.setattr(config, "configs_root", lambda: root)
    for name in (
        "scratch.gin",
        "gin_configs/scratch.gin",
        str(root / "scratch.gin"),
        "../shipped/scratch.gin",
    ):
        config.parse([name], [])
        assert gin.query_parameter("toy_resnet.depth") == 101


def test_configs_root_is_the_repositorys():
    root = config.configs_root()
    assert root == pathlib.Path(__file__).resolve().parents[1] / "gin_configs"


def test_missing_file_lists_the_shipped_ones(tmp_path, monkeypatch):
    (tmp_path / "quickstart.gin").write_text("")
    monkeypatch.setattr(config, "configs_root", lambda: tmp_path)
    message = failure(config.parse, ["gin_configs/quickstrat.gin"], [])
    assert "quickstrat.gin" in message and "did you mean quickstart.gin" in message
    assert "The shipped experiments are: quickstart.gin" in message
    assert "No gin file was given. The shipped experiments" in failure(config.parse, [], [])


@pytest.mark.parametrize("param", ["BATCH_SIZE", "BATCH_SIZE 4", "=4", "a==4"])
def test_a_parameter_must_be_a_binding(main_gin, param):
    assert f"--gin_param={param!r} is not a binding" in failure(config.parse, [main_gin], [param])


def test_unquoted_text_says_how_to_quote(main_gin):
    message = failure(config.parse, [main_gin], ["MODEL_DIR=/tmp/x"])
    assert "quotes of its own" in message and "MODEL_DIR=/tmp/x" in message


def test_unclosed_bracket(main_gin):
    message = failure(config.parse, [main_gin], ["BATCH_SIZE=[1, 2"])
    assert "not closed" in message and "BATCH_SIZE=[1, 2" in message


@pytest.mark.parametrize("line", ["include 'base/nope.gin'", "import nope", "resnet depth"])
def test_bad_line_is_named_with_its_file(tmp_path, line):
    path = tmp_path / "bad.gin"
    path.write_text(f"A = 3\n{line}\n")
    message = failure(config.parse, [str(path)], [])
    assert "bad.gin" in message and "line 2" in message and line in message


def test_unknown_parameter_is_named_with_file_line_and_nearest(tmp_path, main_gin):
    overlay = tmp_path / "overlay.gin"
    overlay.write_text("toy_resnet.depth = 18\ntoy_resnet.dept = 34\n")
    message = failure(config.parse, [main_gin, str(overlay)], [])
    assert "'toy_resnet' doesn't have a parameter named 'dept' (did you mean depth?)" in message
    assert f'In file "{overlay}", line 2' in message


def test_unknown_configurable_is_named_with_its_place_and_nearest(main_gin):
    message = failure(config.parse, [main_gin], ["BATCH_SIZE=4", "toy_group_nrm.groups=8"])
    assert "'toy_group_nrm' (did you mean toy_group_norm" in message
    assert "In --gin_param=toy_group_nrm.groups=8" in message


@pytest.mark.parametrize("value", ["@ToyShedule()", "@train/ToyShedule"])
def test_unknown_reference_is_named_with_nearest(main_gin, value):
    message = failure(config.parse, [main_gin], [f"toy_run.schedule={value}"])
    assert "ToyShedule" in message and "did you mean ToySchedule" in message


def test_macro_that_no_file_defines(main_gin):
    message = failure(config.parse, [main_gin], ["toy_resnet.depth=%BATCHSIZE"])
    assert "toy_resnet.depth = %BATCHSIZE" in message and "did you mean BATCH_SIZE?" in message


def test_macros_and_includes_that_go_in_circles_are_named(tmp_path, main_gin):
    message = failure(config.parse, [main_gin], ["A=%B", "B=[%C]", "C=%A", "toy_run.schedule=%A"])
    assert message == "The macros are defined in a circle: A = %B = %C = %A."
    one, other = tmp_path / "one.gin", tmp_path / "other.gin"
    one.write_text(f"include '{other}'\n")
    other.write_text(f"A = 1\ninclude '{one}'\n")
    message = failure(config.parse, [str(one)])
    assert message.endswith(f"in a circle: {one} includes {other} includes {one}.")


def test_all_required_values_are_listed_at_once(tmp_path, main_gin):
    overlay = tmp_path / "overlay.gin"
    overlay.write_text(
        "MODEL_DIR = %gin.REQUIRED\ntoy_resnet.depth = %gin.REQUIRED\nBATCH_SIZE = %gin.REQUIRED\n"
    )
    files = [main_gin, str(overlay)]
    message = failure(config.parse, files, ["BATCH_SIZE=2"])
    assert "--gin_param='MODEL_DIR=\"/a/folder\"'" in message
    assert "--gin_param='toy_resnet.depth=...'" in message
    assert "BATCH_SIZE" not in message
    config.parse(files, ["BATCH_SIZE=2", "MODEL_DIR='/tmp/b'", "toy_resnet.depth=18"])


# check_all_used


def test_everything_used_passes(main_gin):
    config.parse([main_gin], ["BATCH_SIZE=4"])
    toy_run()
    config.check_all_used()


def test_misspelt_macro_is_named_with_the_right_one(main_gin):
    config.parse([main_gin], ["BATCHSIZE=4"])
    toy_run()
    message = failure(config.check_all_used)
    assert "BATCHSIZE = 4 (did you mean BATCH_SIZE?)" in message
    assert message.count("\n") == 1


def test_binding_of_something_not_built_is_named(main_gin):
    config.parse([main_gin], ["toy_resnet.norm=None"])
    toy_run()
    assert "toy_group_norm.groups = 32" in failure(config.check_all_used)


def test_value_that_the_caller_gives_is_without_effect(main_gin):
    config.parse([main_gin], [])
    toy_run(batch_size=8)
    assert "toy_run.batch_size = %BATCH_SIZE" in failure(config.check_all_used)


def test_binding_that_every_inner_scope_overrides_is_without_effect(main_gin):
    config.parse(
        [main_gin], ["toy_resnet.norm=@head/toy_group_norm", "head/toy_group_norm.groups=8"]
    )
    toy_run()
    message = failure(config.check_all_used)
    assert "toy_group_norm.groups = 32 (did you mean head/toy_group_norm.groups" in message


def test_inner_scope_takes_what_it_does_not_override_from_outside(main_gin):
    config.parse([main_gin], ["toy_resnet.norm=@head/toy_group_norm"])
    toy_run()
    config.check_all_used()


def test_bindings_of_a_part_that_is_not_built_have_no_effect(main_gin):
    config.parse([main_gin], [])
    toy_run(train=False)
    assert "toy_resnet.depth = 50" in failure(config.check_all_used)


@pytest.fixture
def overlay(tmp_path):
    """The path of an overlay that shrinks a part which `without_norm` does not build."""
    path = tmp_path / "overlays" / "small.gin"
    path.parent.mkdir()
    path.write_text("toy_resnet.depth = 18\ntoy_group_norm.groups = 4\n")
    return str(path)


@pytest.fixture
def without_norm(tmp_path):
    path = tmp_path / "without_norm.gin"
    path.write_text("\n".join(line for line in MAIN.splitlines() if "norm" not in line))
    return str(path)


def test_an_overlay_may_bind_a_part_that_is_not_built(without_norm, main_gin, overlay):
    config.parse([without_norm, overlay])
    toy_run()
    config.check_all_used()
    config.parse([main_gin, overlay])
    toy_run()
    config.check_all_used()
    assert "toy_group_norm.groups = 4" in config_record.operative_config()


def test_an_experiment_may_not_bind_what_only_its_overlay_may(without_norm, main_gin, overlay):
    config.parse([without_norm, overlay], ["toy_group_norm.groups = 8"])
    toy_run()
    assert "toy_group_norm.groups = 8" in failure(config.check_all_used)
    # What an experiment binds after the overlay is the experiment's again.
    config.parse([overlay, main_gin], ["toy_resnet.norm=None"])
    toy_run()
    assert "toy_group_norm.groups = 32" in failure(config.check_all_used)


def test_an_overlay_is_forgotten_with_the_next_experiment(main_gin, without_norm, overlay):
    config.parse([without_norm, overlay])
    config.parse([main_gin], ["toy_resnet.norm=None"])
    toy_run()
    assert "toy_group_norm.groups = 32" in failure(config.check_all_used)


@pytest.mark.parametrize("line", ["EXTRA = 4", "toy_run.batch_size = 4"])
def test_an_overlay_must_bind_parts_that_are_built_as_any_file(without_norm, overlay, line):
    with open(overlay, "a") as file:
        file.write(line + "\n")
    config.parse([without_norm, overlay])
    toy_run(batch_size=8)
    assert line in failure(config.check_all_used)


# the record in the folder


def test_operative_config_is_written_and_can_be_run_again(tmp_path, main_gin):
    config.parse([main_gin], ["BATCH_SIZE=4"])
    toy_run()
    folder = tmp_path / "new" / "run"
    config_record.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.gin", "config.json"]
    assert "toy_run.log_every = 20" in (folder / "config.gin").read_text()  # a default
    before = config_record.operative_config()
    config.parse([str(folder / "config.gin")], [])
    toy_run()
    config.check_all_used()
    assert config_record.operative_config() == before


def test_canonical_bindings_resolve_macros_and_ways_to_write():
    gin.parse_config(
        [
            "A = %B",
            "B = (8, 2.0)",
            "DATA_DIR = '/data'",
            "toy_run.batch_size = %A",
            "toy_run.model_dir = {'x': %DATA_DIR, 'a': 'b'}",
            "toy_run.schedule = @ToySchedule()",
            "eval/toy_run.model = @part/toy_resnet",
        ]
    )
    assert config_record.canonical_bindings() == {
        "config_test.toy_run.batch_size": "[8, 2]",
        "config_test.toy_run.model_dir": "{'a': 'b', 'x': %DATA_DIR}",
        "config_test.toy_run.schedule": "@config_test.ToySchedule()",
        "eval/config_test.toy_run.model": "@part/config_test.toy_resnet",
    }


def test_folder_of_the_same_experiment_may_differ_in_operation_only(tmp_path, main_gin):
    folder = tmp_path / "run"
    config.parse([main_gin], [])
    config_record.compare(folder)  # not there yet
    config_record.write(folder)
    config.parse([main_gin], ["MODEL_DIR='/tmp/b'", "BATCH_SIZE=16.0"])
    config_record.compare(folder)
    config.parse([main_gin], ["toy_run.log_every=1"])
    assert "toy_run.log_every" in failure(config_record.compare, folder)


def test_operational_parameters_of_the_root_may_differ(tmp_path, main_gin):
    there = {
        "experiment.run.mode": "'train'",
        "experiment.run.log_every": "20",
        "experiment.run.seed": "1",
    }
    (tmp_path / "config.json").write_text(json.dumps({"version": 1, "bindings": there}))
    other = tmp_path / "empty.gin"
    other.write_text("")
    config.parse([str(other)], [])
    message = failure(config_record.compare, tmp_path)
    assert "experiment.run.seed: 1 there, not given now" in message
    assert "1 of its bindings differ" in message


def test_an_evaluation_may_differ_in_its_augmentation_only(tmp_path, main_gin):
    tta = "rethink_tf.evaluation.test_time_augmentation.TestTimeAugmentation"
    there = {
        "experiment.run.test_augmentation": f"@{tta}",
        f"{tta}.flip": "False",
        "experiment.run.seed": "1",
    }
    (tmp_path / "config.json").write_text(json.dumps({"version": 1, "bindings": there}))
    other = tmp_path / "empty.gin"
    other.write_text("")
    config.parse([str(other)], [])
    assert "3 of its bindings differ" in failure(config_record.compare, tmp_path)
    message = failure(config_record.compare, tmp_path, False)
    assert "1 of its bindings differ" in message and "run.seed: 1 there" in message
    assert f"run.init_checkpoint={tmp_path}/checkpoints" in message


def test_what_an_overlay_binds_of_a_part_not_built_is_not_compared(tmp_path, without_norm, overlay):
    folder = tmp_path / "run"
    config.parse([without_norm, overlay])
    toy_run()
    config_record.write(folder)
    config_record.compare(folder)
    config.parse([str(folder / "config.gin")])
    config_record.compare(folder)
    config.parse([without_norm, overlay], ["toy_group_norm.groups = 8"])  # no overlay's any more
    assert "toy_group_norm.groups: 32 there, 8 now" in failure(config_record.compare, folder)
    pathlib.Path(overlay).write_text("toy_resnet.depth = 34\n")
    config.parse([without_norm, overlay])
    assert "toy_resnet.depth: 18 there, 34 now" in failure(config_record.compare, folder)


def test_folder_of_another_experiment_is_refused_with_both_values(tmp_path, main_gin):
    config.parse([main_gin], ["toy_resnet.norm=None"])
    config_record.write(tmp_path)
    config.parse([main_gin], ["BATCH_SIZE=8", "toy_run.train=False"])
    message = failure(config_record.compare, tmp_path)
    assert str(tmp_path) in message
    assert "config_test.toy_run.batch_size: 16 there, 8 now" in message
    assert "config_test.ToySchedule.images_per_step: 16 there, 8 now" in message
    assert "config_test.toy_resnet.norm: None there, @config_test.toy_group_norm now" in message
    assert "config_test.toy_run.train: True there, False now" in message
    assert "4 of its bindings differ" in message


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"bindings": 3})])
def test_damaged_record_is_named(tmp_path, main_gin, text):
    (tmp_path / "config.json").write_text(text)
    config.parse([main_gin], [])
    assert f"{tmp_path / 'config.json'} is damaged" in failure(config_record.compare, tmp_path)
