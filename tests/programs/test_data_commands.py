"""`verify-data`, `show-data` and `prepare-data` as a user runs them, with one's own images."""

import json

import numpy as np
import pytest
from own_folder import write_folder
from PIL import Image

from flaxseg import cli, data


def run(capsys, *arguments):
    """(exit code, stdout, stderr)."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "toy")


def test_verify_data_prints_everything_and_fails_where_something_is_wrong(folder, tmp_path, capsys):
    out = tmp_path / "report"
    command = ("verify-data", "folder", "--manual_dir", folder, "--out", out)
    code, stdout, stderr = run(capsys, *command)
    assert code == 0
    assert "No problem found in 6 pairs." in stdout
    assert "checking toy: 6 of 6 images" in stderr
    assert json.loads((out / "report.json").read_text())["ok"] is True
    with Image.open(out / "report.png") as image:
        assert image.width > 500
    (folder / "images" / "train" / "000.jpg").write_bytes(b"")
    (folder / "masks" / "val" / "004.png").unlink()
    code, stdout, stderr = run(capsys, *command)
    assert code == 1
    assert "2 problems:" in stdout
    assert "000.jpg: the file is empty" in stdout
    assert "error: toy has 2 problems" in stderr
    assert json.loads((out / "report.json").read_text())["num_errors"] == 2
    code, stdout, _ = run(capsys, *command[:4], "--json")
    assert code == 1
    assert [problem["kind"] for problem in json.loads(stdout)["problems"]] == [
        "missing_file",
        "undecodable",
    ]
    assert not (tmp_path / "data").exists(), "nothing is prepared"


def test_prepare_and_show_refuse_what_fails_unless_told_otherwise(folder, tmp_path, capsys):
    (folder / "images" / "train" / "001.jpg").write_bytes(b"")
    where = ("--manual_dir", folder, "--data_dir", tmp_path / "data")
    for command in ("prepare-data", "show-data"):
        code, _, stderr = run(capsys, command, "folder", *where)
        assert code == 1
        assert "1 problem:" in stderr
        assert "--allow_problems=undecodable" in stderr
    code, stdout, _ = run(capsys, "prepare-data", "folder", *where, "--allow_problems=undecodable")
    assert code == 0
    assert "train 3, val 2" in stdout
    assert "unusable pairs left out: 1" in stdout
    out = tmp_path / "sheet.png"
    settings = ("--crop_size", 16, 24, "--no-flip", "--num_examples", 2, "--out", out)
    code, stdout, _ = run(capsys, "show-data", "folder", *where, *settings)
    assert code == 0
    assert "2 examples of toy train, seed 0: crop 16 x 24, scale 0.5 to 2\n" in stdout
    with Image.open(out) as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 100
    code, _, stderr = run(capsys, "show-data", "folder", *where, "--photometric=7")
    assert (code, "photometric is 7.0" in stderr) == (2, True)


def test_mistakes_are_told_in_words(tmp_path, capsys):
    code, _, stderr = run(capsys, "verify-data", "folder")
    assert code == 2
    assert "--manual_dir=FOLDER" in stderr
    code, _, stderr = run(capsys, "verify-data", "folder", "--manual_dir", tmp_path)
    assert code == 1
    assert "has no dataset.toml" in stderr
    assert "[[classes]]" in stderr
    code, _, stderr = run(capsys, "verify-dat", "camvid")
    assert (code, "Did you mean 'verify-data'" in stderr) == (2, True)
    code, stdout, _ = run(capsys, "models")
    assert "folder: your own images" in stdout
    assert data.list_datasets()
