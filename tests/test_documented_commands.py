"""Every command of README, docs and gin files is one: modules, flags, gin files, bindings, extras.

Each is parsed by the module's own flags and by the parser of experiments, and not run.
"""

import argparse
import configparser
import re
import runpy
import shlex
import sys

import documented_commands as documented
import pytest
from absl import app, flags
from documented_commands import REPOSITORY

import rethink_tf.experiment
import rethink_tf.pretraining.building
import rethink_tf.study.settings  # noqa: F401  all that gin files name is registered
from rethink_tf import config

BY_DOCUMENT = {
    path.relative_to(REPOSITORY).as_posix(): documented.of_document(path.read_text())
    for path in documented.documents()
}
BY_GIN_FILE = {
    path.relative_to(REPOSITORY).as_posix(): documented.of_gin_file(path.read_text())
    for path in sorted((REPOSITORY / "gin_configs").rglob("*.gin"))
}


class Parsed(Exception):
    """Carries the flags of a command, in place of what would run then."""


@pytest.fixture
def parse_flags(monkeypatch):
    """A function that returns what a module makes of arguments: {flag: value}."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop_of_argparse(parser, args=None, namespace=None):
        raise Parsed(vars(parse_args(parser, args, namespace)))

    def stop_of_absl(main, **options):
        rest = flags.FLAGS(sys.argv)[1:]
        raise Parsed(flags.FLAGS.flag_values_dict() | {"rest": rest})

    def parse(module, arguments):
        # Another test may have imported a command of Model Garden, which has flags of our names.
        others = {
            name
            for name in flags.FLAGS
            if str(flags.FLAGS.find_module_defining_flag(name)).startswith("official")
        }
        flags.FLAGS.remove_flag_values(list(others))
        before = set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.setattr(app, "run", stop_of_absl)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_of_argparse)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        except Parsed as parsed:
            return parsed.args[0]
        finally:
            flags.FLAGS.remove_flag_values(list(set(flags.FLAGS) - before))
        raise AssertionError(f"python -m {module} reads no flags")

    return parse


def check(command, parse_flags):
    """Raises what a user would meet who types the command."""
    typed = documented.without_settings(command).partition(" > ")[0]
    words = shlex.split(re.sub(r"\$\([^)]*\)", "substituted", typed))
    if words[0].startswith("launch/") or words[0] == "sbatch":
        (script,) = (word for word in words if re.fullmatch(r"launch/\w+\.\w+", word))
        assert (REPOSITORY / script).is_file()
        rest = words[words.index("--") + 1 :] if "--" in words else words[words.index(script) + 1 :]
        is_module = rest[:2] == ["python", "-m"]
        words = rest if is_module else ["python", "-m", "rethink_tf.train", *rest]
    elif words[:2] == ["pip", "install"]:
        for extras in re.findall(r"\.\[([\w,]+)\]", command):
            assert set(extras.split(",")) <= extras_of_setup()
    if words[:2] != ["python", "-m"] or not words[2].startswith(("rethink_tf", "launch", "bench")):
        return
    found = parse_flags(words[2], words[3:])
    if found.get("gin_file"):
        # Detectors do not depend on where a run would read and write: these ask for no folder.
        needs_none = ("rethink_tf.convert", "rethink_tf.predict", "benchmarks.accelerator")
        places = ["MODEL_DIR=''", "DATA_DIR=''"] if words[2] in needs_none else []
        config.parse(found["gin_file"], places + (found.get("gin_param") or []))


def extras_of_setup():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    return set(setup["options.extras_require"])


@pytest.mark.parametrize("name", [name for name, found in BY_DOCUMENT.items() if found])
def test_commands_of_a_document_parse(name, parse_flags, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    wrong = {}
    for command in BY_DOCUMENT[name]:
        try:
            check(command, parse_flags)
        except (Exception, SystemExit) as error:
            wrong[command] = error
    assert not wrong, "".join(f"\n{command}\n  {error!r}" for command, error in wrong.items())


def test_commands_in_headers_of_gin_files_parse(parse_flags, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    wrong = {}
    for name, commands in BY_GIN_FILE.items():
        for command in commands:
            try:
                check(command, parse_flags)
            except (Exception, SystemExit) as error:
                wrong[f"{name}: {command}"] = error
    assert not wrong, "".join(f"\n{command}\n  {error!r}" for command, error in wrong.items())
    assert sum(len(commands) for commands in BY_GIN_FILE.values()) > 30


def test_each_command_is_listed_and_each_entry_covers_one():
    commands = [command for found in BY_DOCUMENT.values() for command in found]
    listed = {command: documented.listed_as(command) for command in commands}
    assert [command for command, entry in listed.items() if entry is None] == []
    entries = {*documented.TRIED, *documented.NOT_TRIED}
    assert entries - set(listed.values()) == set()


def test_tests_that_try_commands_run_their_modules():
    for entry, path in documented.TRIED.items():
        text = (REPOSITORY / path).read_text()
        module = entry.removeprefix("python -m ").split()[0]
        name = "slurm.sbatch" if module == "sbatch" else module
        names = {name, name.rpartition(".")[2], name.rpartition("/")[2].partition(".")[0]}
        assert any(re.search(rf"\b{re.escape(each)}\b", text) for each in names), (entry, path)


def test_commands_are_found_in_both_kinds_of_blocks():
    text = """Text.

    python -m one --a \\
        --b && pip install c  # why

    a tree of files

```bash
export A=1
B=2 python -m two 'x#y'
```

```json
{"python -m": 3}
```
"""
    assert documented.of_document(text) == [
        "export A=1",
        "B=2 python -m two 'x#y'",
        "python -m one --a --b",
        "pip install c",
    ]
