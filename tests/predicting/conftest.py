"""A tiny run that both files use."""

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes") / "shapes"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, data_dir):
    from loaded_run import train  # TensorFlow is imported with the first test that needs it

    return train(tmp_path_factory.mktemp("run"), data_dir)
