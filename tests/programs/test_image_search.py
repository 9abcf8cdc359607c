"""Which images are meant by the arguments of `predict`, what is said of the rest, and the names."""

import os

import pytest

from flaxseg.errors import ConfigError, DataError
from flaxseg.programs.prediction.image_search import find_images
from flaxseg.programs.prediction.prediction_record import PredictionRecord, Stamp


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w"):
            pass


def names(*inputs, listed=(), out="out", root=None):
    found = find_images(inputs, listed, out, root)
    return {os.path.relpath(source): str(name) for source, name in found.names.items()}


def predicted(out, *files, of="photos/a.png"):
    """Leaves files, and a record that lists them."""
    touch(*(f"{out}/{file}" for file in files))
    record = PredictionRecord(out, {})
    source = (record.folder / of).absolute()
    record.claim(source, Stamp(0, 0), {file: record.folder / file for file in files})


def test_names_depend_on_the_image_and_how_it_is_given(folder):
    touch("day1/img.png", "day2/img.png", "day2/sub/x.tar.png")
    both = {"day1/img.png": "day1/img", "day2/img.png": "day2/img"}
    assert names("day1/img.png") == {"day1/img.png": "img"}
    assert names("day2") == {"day2/img.png": "img", "day2/sub/x.tar.png": "sub/x.tar"}
    assert names("day?/*.png") == names("day[12]/*") == both
    assert names("day1/img.png", "day2/img.png", root=".") == both
    assert names(listed=["day2/img.png", "day1/img.png"], root=folder) == both
    assert names("./day2/../day1/img.png", str(folder / "day1")) == {"day1/img.png": "img"}


def test_neither_order_nor_overlap_changes_names(folder):
    touch("a/b/x.png", "a/y.png")
    inputs = ["a", "a/b", "a/b/x.png", "a/**/*.png"]
    wanted = {"a/b/x.png": "b/x", "a/y.png": "y"}
    assert names(*inputs) == names(*reversed(inputs)) == wanted


def test_patterns_match_as_those_of_a_shell(folder):
    touch("a/1.png", "a/b/2.PNG", "a/b/c/3.png", "a/.h/4.png", "a/[x].png")
    assert set(names("a/*.png")) == {"a/1.png", "a/[x].png"}
    assert set(names("a/**/*.png")) == {"a/1.png", "a/[x].png", "a/b/c/3.png"}
    assert set(names("a/*/*")) == {"a/b/2.PNG"}
    assert set(names("a/**")) == {"a/1.png", "a/[x].png", "a/b/2.PNG", "a/b/c/3.png"}
    assert set(names("a/[x].png")) == {"a/[x].png"}
    with pytest.raises(DataError, match=r"no image matches 'a/\*\.jpg'"):
        names("a/*.jpg")


def test_linked_folders_are_searched_once(folder):
    touch("in/a.png", "elsewhere/b.png")
    os.symlink("../elsewhere", "in/more")
    os.symlink("..", "in/more/back")
    assert names("in") == {"in/a.png": "a", "in/more/b.png": "more/b"}
    assert set(names("in/**/*.png")) == {"in/a.png", "in/more/b.png"}


def test_predictions_and_hidden_folders_are_left_out_and_said(folder):
    touch("ph/a.png", "ph/.ipynb_checkpoints/a.png", "ph/@eaDir/a.png", "ph/m2/own.png")
    predicted("ph/m1", "a_mask.png", "sub/a_mask.png")
    predicted("ph/m2", "a_mask.png")
    found = find_images(["ph"], [], "ph/m3")
    assert [source.name for source in found.names] == ["a.png", "own.png"]
    assert found.left_out == [
        f"left out, as predictions that {folder}/ph/m1/predictions.jsonl lists: 2",
        f"left out, as predictions that {folder}/ph/m2/predictions.jsonl lists: 1",
        f"left out, as hidden folders: {folder}/ph/.ipynb_checkpoints, {folder}/ph/@eaDir",
    ]
    # However they are named.
    everything = ["ph/a.png", "ph/m1/a_mask.png", "ph/m1/sub/a_mask.png"]
    assert set(names(*everything)) == set(names(listed=everything)) == {"ph/a.png"}
    assert set(names("ph/**/*.png")) == {"ph/a.png", "ph/m2/own.png"}
    with pytest.raises(DataError, match=r"no image is left to predict:\nleft out, as predictions"):
        names("ph/m1/sub")
    assert not find_images(["ph/a.png"], [], "out").left_out
    assert not find_images(["ph/*.png"], [], "out").left_out


def test_what_looks_like_an_image_and_is_not_taken_is_named(folder):
    touch("in/a.jpg", "in/b.HEIC", "in/c.avif", "in/d.jp2", "in/a.CR2", "in/notes.txt")
    os.symlink("gone.jpg", "in/e.jpg")
    os.symlink("/unmounted/folder", "in/more")
    os.symlink("gone.txt", "in/f.txt")
    found = find_images(["in"], [], "out")
    assert [source.name for source in found.names] == ["a.jpg", "e.jpg"], "e.jpg fails when read"
    (nowhere, unread) = found.missed
    assert (
        f"{folder}/in/more cannot be searched: is a link to /unmounted/folder, which does not exist"
        in nowhere
    )
    assert "images of formats that are not read (.avif, .heic, .jp2): 3 (" in unread
    assert f"{folder}/in/b.HEIC" in unread
    assert "a.CR2" not in unread
    assert found.left_out == [
        f"left out, as not read and beside an image of the same name: 1 ({folder}/in/a.CR2)"
    ]
    assert not find_images(["in/*.jpg"], [], "out").missed, "no folder is asked for"
    assert len(find_images(["in/**/*.jpg"], [], "out").missed) == 1
    os.makedirs("linked")
    os.symlink("unmounted", "linked/more")
    with pytest.raises(DataError, match=r"linked has no images in it.*\n.*is a link to unmounted"):
        names("linked")
    touch("raw/x.dng")
    with pytest.raises(DataError, match=r"no image is left.*\n.*not read \(\.dng\): 1"):
        names("raw")


def test_what_is_wrong_with_arguments_is_said_at_once(folder):
    touch("a/1.png", "empty/notes.txt")
    os.symlink("gone.png", "link.png")
    with pytest.raises(DataError) as error:
        names("none.png", "a", "empty", "*.gif", "link.png")
    assert [line.partition(" (")[0] for line in str(error.value).splitlines()] == [
        "none.png does not exist; check the path.",
        "empty has no images in it",
        "no image matches '*.gif'; check the pattern and the folder",
        "link.png is a link to gone.png, which does not exist; check the path.",
    ]
    with pytest.raises(ConfigError, match=r"a/1\.png is not below --root=.*/empty"):
        names("a", root="empty")
    with pytest.raises(ConfigError, match="is an input folder too"):
        names("a", out="a")
