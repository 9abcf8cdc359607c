"""Prepared folders that anyone may have written: what their manifest says is checked before use."""

import json
import shutil

import pytest
from own_folder import write_folder

from flaxseg import data
from flaxseg.errors import FlaxsegError
from flaxseg.json_text import has_form


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    source = write_folder(folder / "toy", {"train": 2, "val": 1})
    return data.prepare("folder", folder / "data", source, progress=False)


def test_a_prepared_folder_is_a_data_set(prepared):
    assert len(data.open_split(f"folder:{prepared}", "train")) == 2


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "splits", None),
        ("", "splits", {"train": 10**12, "val": 1}),
        ("", "splits", {"train": -1, "val": 1}),
        ("", "splits", {"train": 2.5, "val": 1}),
        ("", "files", {"a": ["many", "digits"]}),
        ("", "files", [["a", 1]]),
        ("", "name", 7),
        ("", "info", []),
        ("info", "class_names", {"a": 1}),
        ("info", "class_colors", [[1, 2, 3], [4, 5, 10**9], [7, 8, 9]]),
        ("info", "class_colors", [[1, 2, 3]]),
        ("info", "label_map", [[0, 10**12]]),
        ("info", "label_map", [[[], 0]]),
        ("info", "splits", [["train"], "val"]),
        ("info", "combined", {"trainval": 3}),
    ],
)
def test_an_impossible_manifest_is_refused(prepared, tmp_path, section, field, value):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    content = json.loads((folder / "flaxseg.json").read_text())
    (content[section] if section else content)[field] = value
    (folder / "flaxseg.json").write_text(json.dumps(content))
    with pytest.raises(FlaxsegError):
        data.open_split(f"folder:{folder}", "train")
    with pytest.raises(FlaxsegError):
        data.verify_data(f"folder:{folder}", progress=False)


def test_a_deeply_nested_manifest_is_refused(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    (folder / "flaxseg.json").write_text("[" * 200_000)
    with pytest.raises(FlaxsegError, match="nested too deeply"):
        data.dataset_info(f"folder:{folder}")


def test_forms_of_json_values():
    assert has_form({"a": [[1, "x"]]}, {"": [(int, str)]})
    assert not has_form({"a": [[1, "x", 2]]}, {"": [(int, str)]})
    assert not has_form(True, int)
    assert has_form([], [int])
    assert not has_form({}, [int])
