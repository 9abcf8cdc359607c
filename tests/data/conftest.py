"""Tiny data sets in the published layout, and prepared ones."""

import pathlib

import pytest
from published_files import write_camvid

import flaxseg.data


@pytest.fixture
def camvid_folder(tmp_path) -> pathlib.Path:
    """A fresh folder in CamVid's layout, to break."""
    folder = tmp_path / "published"
    write_camvid(folder)
    return folder


@pytest.fixture(scope="session")
def camvid_dir(tmp_path_factory) -> pathlib.Path:
    """A data_dir where the tiny CamVid is prepared; not to be changed."""
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder / "published")
    flaxseg.data.prepare("camvid", folder / "data", folder / "published", progress=False)
    return folder / "data"
