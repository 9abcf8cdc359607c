"""The data that runs of the train program are tested on."""

import pathlib

import pytest

import flaxseg.data


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> pathlib.Path:
    """A data_dir where `shapes` is prepared; not to be changed."""
    folder = tmp_path_factory.mktemp("shapes")
    flaxseg.data.prepare("shapes", folder, progress=False)
    return folder
