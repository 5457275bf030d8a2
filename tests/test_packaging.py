"""Tests that setup.cfg ships every package and gin file: an editable install does not tell."""

import configparser
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    return setup


def test_every_package_is_listed():
    listed = read_setup()["options"]["packages"].split()
    with_code = {path.parent for path in (REPOSITORY / "rethink_tf").rglob("*.py")}
    folders = [path.relative_to(REPOSITORY) for path in with_code]
    gin_folders = {path.parent for path in (REPOSITORY / "gin_configs").rglob("*.gin")}
    folders += [pathlib.Path("rethink_tf", path.relative_to(REPOSITORY)) for path in gin_folders]
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)


def test_every_package_of_gin_files_ships_them():
    setup = read_setup()
    packages = [name for name in setup["options"]["packages"].split() if "gin_configs" in name]
    data = setup["options.package_data"]
    assert {name: data[name] for name in packages} == dict.fromkeys(packages, "*.gin")


def test_every_folder_of_code_is_a_package():
    with_code = {path.parent for path in (REPOSITORY / "rethink_tf").rglob("*.py")}
    assert [str(path) for path in with_code if not (path / "__init__.py").exists()] == []
