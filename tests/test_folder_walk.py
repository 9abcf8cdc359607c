"""Folders are searched once each, without what is hidden."""

import doctest

import pytest

from flaxseg import folder_walk
from flaxseg.errors import DataError
from flaxseg.folder_walk import files_below, walk


def below(root, **options):
    found = (folder / name for folder, _, names in walk(root, **options) for name in names)
    return [str(path.relative_to(root)) for path in found]


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_examples():
    assert doctest.testmod(folder_walk).failed == 0


def test_hidden_folders_and_files_are_left_out_and_said(tmp_path):
    make(tmp_path, "a", ".b", "._a", ".git/c", "@eaDir/d", "__MACOSX/e", "sub/f")
    hidden = []
    assert below(tmp_path, on_hidden=hidden.append) == ["a", "sub/f"]
    assert [path.name for path in hidden] == [".git", "@eaDir", "__MACOSX"]


def test_links_are_followed_once_and_a_folder_keeps_its_own_path(tmp_path):
    make(tmp_path, "in/z/a", "elsewhere/b")
    assert below(tmp_path / "in") == ["z/a"]
    (tmp_path / "in/a-link").symlink_to("z")
    (tmp_path / "in/back").symlink_to("..")
    (tmp_path / "in/z/loop").symlink_to(".")
    (tmp_path / "in/z/nowhere.txt").symlink_to("gone")
    assert below(tmp_path / "in") == ["z/a", "z/nowhere.txt", "back/elsewhere/b"]
    assert [path.name for path in files_below(tmp_path / "in/back")][:1] == ["b"]


def test_a_folder_that_cannot_be_read_is_never_passed_over(tmp_path, monkeypatch):
    make(tmp_path, "a", "sub/b")
    scandir = folder_walk.os.scandir

    def denied(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(DataError, match=r"sub: Permission denied"):
        list(files_below(tmp_path))
    errors = []
    assert below(tmp_path, on_error=errors.append) == ["a"]
    assert [error.filename for error in errors] == [str(tmp_path / "sub")]
    assert list(files_below(tmp_path / "missing")) == []


def test_a_link_that_may_be_one_to_a_folder_is_never_passed_over(tmp_path):
    make(tmp_path, "a")
    (tmp_path / "more").symlink_to("unmounted")
    with pytest.raises(DataError, match="more: is a link to unmounted, which does not exist"):
        list(files_below(tmp_path))
    errors = []
    assert below(tmp_path, on_error=errors.append) == ["a"]
    assert len(errors) == 1
