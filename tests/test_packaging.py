"""Tests of what is shipped: setup.cfg, the source distribution, the wheel, and the citation."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

import rethink_tf
from rethink_tf import config

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("rethink_tf", "launch")


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    return setup


def folders_of_code():
    return {path.parent for name in FOLDERS for path in (REPOSITORY / name).rglob("*.py")}


def test_every_package_is_listed():
    """An editable install does not tell."""
    listed = read_setup()["options"]["packages"].split()
    folders = [path.relative_to(REPOSITORY) for path in folders_of_code()]
    gin_folders = {path.parent for path in (REPOSITORY / "gin_configs").rglob("*.gin")}
    folders += [pathlib.Path("rethink_tf", path.relative_to(REPOSITORY)) for path in gin_folders]
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)


def test_every_package_of_gin_files_ships_them():
    setup = read_setup()
    packages = [name for name in setup["options"]["packages"].split() if "gin_configs" in name]
    data = setup["options.package_data"]
    assert {name: data[name] for name in packages} == dict.fromkeys(packages, "*.gin")


def test_every_folder_of_code_is_a_package():
    folders = folders_of_code()
    assert [str(path) for path in folders if not (path / "__init__.py").exists()] == []


BUILD = "import sys, setuptools.build_meta as meta; getattr(meta, sys.argv[1])(sys.argv[2])"


def build(source, kind, output):
    """Builds "sdist" or "wheel" by the backend of pyproject.toml, and returns its path."""
    output.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("packaging")
    # From a copy: setuptools leaves folders beside what it builds, and takes lists from them.
    ignored = shutil.ignore_patterns(
        ".git", "*.egg-info", "__pycache__", ".*_cache", "build", "dist", "runs", "site", ".venv"
    )
    shutil.copytree(REPOSITORY, folder / "copy", ignore=ignored)
    source = build(folder / "copy", "sdist", folder / "sdist")
    with tarfile.open(source) as archive:
        names = archive.getnames()
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build(unpacked, "wheel", folder / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return {name.partition("/")[2] for name in names}, folder / "site"


def test_the_source_distribution_has_what_the_repository_has(distributions):
    names, _ = distributions
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no checkout: git cannot tell what the repository has")
    there = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).exists()]
    assert sorted(set(there) - names) == []


AWAY = """
import pathlib, sys
import launch.vertex, launch.jobset, launch.skypilot, launch.local_workers
import rethink_tf
from rethink_tf import config

site = pathlib.Path(sys.argv[1]).resolve()
for module in (rethink_tf, launch.vertex):
    assert pathlib.Path(module.__file__).resolve().is_relative_to(site), module.__file__
assert config.configs_root().is_relative_to(site), config.configs_root()
print(rethink_tf.__version__, *config.shipped_experiments())
found = {path.relative_to(site / "rethink_tf") for path in (site / "rethink_tf").rglob("*.gin")}
print(*sorted(map(str, found)))
print(*sorted(path.name for path in (site / "launch").iterdir() if path.suffix != ".py"))
"""


def test_an_installed_package_away_from_the_repository_has_launchers_and_experiments(
    distributions, tmp_path
):
    _, site = distributions
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*arguments):
        command = [sys.executable, *arguments]
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, **options, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, gin_files, scripts = run("-c", AWAY, str(site)).splitlines()
    assert first.split() == [rethink_tf.__version__, *config.shipped_experiments()]
    there = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "gin_configs").rglob("*.gin")}
    assert gin_files.split() == sorted(map(str, there))
    assert scripts.split() == ["local_workers.sh", "slurm.sbatch", "tpu_vm.sh"]
    manifest = run(
        "-m", "launch.jobset", "--name=r50", "--image=registry/rethink_tf",
        "--gin_file=scratch_r50.gin", "--workers=2", "--gpus=8",
        "--gin_param=MODEL_DIR='gs://bucket/r50'", "--gin_param=DATA_DIR='gs://bucket/coco'",
    )  # fmt: skip
    assert "rethink_tf.train" in manifest and "scratch_r50.gin" in manifest


# Of the Citation File Format 1.2.0: what must be there, and what may.
OF_SOFTWARE = {"cff-version", "message", "title", "authors"}
FURTHER = set(
    "abstract commit contact date-released doi identifiers keywords license license-url "
    "preferred-citation references repository repository-artifact repository-code type url version"
    .split()
)  # fmt: skip
OF_A_PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "orcid", "alias"}
OF_AN_ENTITY = {"name", "website", "email", "alias", "address", "city", "country", "orcid"}


def check_authors(authors):
    assert authors
    for each in authors:
        allowed = OF_AN_ENTITY if "name" in each else OF_A_PERSON
        assert each.keys() <= allowed and all(isinstance(value, str) for value in each.values())


def test_the_citation_is_cff_1_2_0_and_of_this_version():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited.keys() >= OF_SOFTWARE and cited.keys() <= OF_SOFTWARE | FURTHER
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert str(cited["version"]) == rethink_tf.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", cited["date-released"])
    assert cited["license"] == read_setup()["metadata"]["license"]
    check_authors(cited["authors"])
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    check_authors(paper["authors"])
    assert paper["url"].endswith("1811.08883") and paper["doi"].endswith("arXiv.1811.08883")
    assert [each["family-names"] for each in paper["authors"]] == ["He", "Girshick", "Dollár"]


def test_the_newest_entry_of_the_changelog_is_this_version():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+), (\S+)$", text, re.MULTILINE)
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (newest[1], newest[2]) == (rethink_tf.__version__, cited["date-released"])
