"""Each file of a folder of predictions belongs to one image, whatever is predicted, and when."""

import os

import pytest

from flaxseg.errors import ConfigError
from flaxseg.programs.prediction.image_search import find_images
from flaxseg.programs.prediction.output_names import check_names, plan_tasks
from flaxseg.programs.prediction.prediction_record import PredictionRecord, Stamp


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(name):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w") as file:
        file.write(name)


def plan(*inputs, out="out", root=None, kinds=("mask",), settings=()):
    """Plans what `predict` would do, and checks it."""
    tasks = plan_tasks(find_images(inputs, [], out, root).names, out, kinds)
    record = PredictionRecord(out, dict(settings))
    check_names(tasks, record)
    return tasks, record


def predict(*inputs, out="out", finish=True, **options):
    """Stands in for `predict`: writes the path of the image into its files."""
    tasks, record = plan(*inputs, out=out, **options)
    done = [task for task in tasks if record.is_done(task.source, task.files)]
    os.makedirs(out, exist_ok=True)
    for task in tasks:
        if task not in done:
            stamp = Stamp.of(task.source)
            record.claim(task.source, stamp, task.files)
            for file in task.files.values():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(str(task.source))
            if finish:
                record.finish(task.source, stamp, task.files)
    return len(done)


def test_a_second_image_of_a_name_never_replaces_the_first(folder):
    for day in (1, 2, 3):
        image(f"day{day}/img.png")
    predict("day1/img.png")
    for kinds in (["mask"], ["overlay"]):  # nor do the files of two images share a name
        with pytest.raises(ConfigError) as error:
            predict("day2/img.png", kinds=kinds)
        assert f"out/img_mask.png is the result of {folder}/day1/img.png" in str(error.value)
        assert f"that of {folder}/day2/img.png would replace it" in str(error.value)
        assert f"--root={folder}: results" in str(error.value)
        assert "(day2/img_mask.png)" in str(error.value)
    # The way out that is named is one.
    predict("day2/img.png", root=folder)
    with pytest.raises(ConfigError, match=r"day2/img.png and .*day3/img.png would both become"):
        plan("day2/img.png", "day3/img.png", out="other")
    assert predict("day*/img.png", out="m") == 0
    assert predict("day3/img.png", "day1/img.png", out="m", root=".") == 2
    assert (folder / "out/img_mask.png").read_text() == str(folder / "day1/img.png")


@pytest.mark.parametrize("other", ["a.jpg", "A.png"])
def test_names_that_differ_in_suffix_or_case_alone_are_refused(folder, other):
    image("in/a.png")
    image(f"in/{other}")
    with pytest.raises(ConfigError, match="would both become"):
        plan("in")
    predict("in/a.png")
    if other == "a.jpg":
        with pytest.raises(ConfigError, match=r"is the result of .*a\.png") as error:
            plan("in/a.jpg")
        assert "--root" not in str(error.value), "it would not help"
    predict(f"in/{other}", out="out2")


def test_a_file_that_is_in_no_record_is_never_replaced(folder):
    image("in/a.png")
    image("out/a_mask.png")
    with pytest.raises(ConfigError, match=r"a_mask\.png exists, and no predictions\.jsonl says"):
        plan("in")
    image("in/a_mask.png")  # such as the label
    with pytest.raises(ConfigError, match=r"a_mask\.png exists"):
        plan("in/a.png", out="in")


def test_many_conflicts_are_counted(folder):
    for number in range(9):
        image(f"a/{number}.png")
        image(f"b/{number}.png")
    predict("a")
    with pytest.raises(ConfigError, match="and 4 more"):
        plan("b")


def test_reordered_and_overlapping_calls_do_what_is_missing(folder):
    for name in ("x", "y", "sub/x", "z"):
        image(f"in/{name}.png")
    assert predict("in/x.png", "in/y.png") == 0
    assert predict("in/y.png", "in/z.png", "in/x.png") == 2
    assert predict("in") == 3
    assert predict("in/**/*.png") == 4
    assert predict("in", settings={"model": 2}) == 0, "other settings are no other image"
    assert predict("in", settings={"model": 2}) == 4


def test_a_killed_program_goes_on(folder):
    """Its files are there, but it had no time to note that they are done."""
    image("in/a.png")
    image("b/a.png")
    predict("in", finish=False)
    with pytest.raises(ConfigError, match=r"is the result of .*in/a\.png"):
        predict("b")
    assert predict("in") == 0
    assert predict("in") == 1
    # Not even if its settings were others, and the file has the same size.
    predict("in", settings={"model": 2}, finish=False)
    assert predict("in") == 0


def test_images_and_results_can_be_moved_together(folder):
    image("old/in/a.png")
    predict("old/in", out="old/out")
    os.rename("old", "new")
    assert predict("new/in", out="new/out") == 1
    os.symlink("new", "mounted")
    assert predict("mounted/in", out="mounted/out") == 1
    image("old/in/a.png")  # there is another image of the name that is recorded
    with pytest.raises(ConfigError, match=r"is the result of .*old/in/a\.png"):
        plan("new/in", out="new/out")


def test_an_image_whose_result_is_gone_holds_no_name(folder):
    image("a/x.png")
    image("b/x.png")
    predict("a")
    os.remove("out/x_mask.png")
    assert predict("b") == 0
    with pytest.raises(ConfigError, match=r"is the result of .*b/x\.png"):
        plan("a")
