"""The images of a data set: the sheet of augmented examples, and the report."""

import collections

import numpy as np
import pytest
from PIL import Image

import flaxseg.data
from flaxseg.data import Augmentation, DatasetInfo, Report, Statistics
from flaxseg.data.raw.problems import Problem
from flaxseg.drawing.data_report import draw_report
from flaxseg.drawing.examples import draw_examples
from flaxseg.errors import ConfigError, WriteError
from flaxseg.programs.show_data import show_data
from flaxseg.programs.verify_data import write_report

NAMES = ("ground", "road", "car")
COLORS = ((10, 20, 30), (0, 200, 0), (200, 0, 200))

INFO = DatasetInfo(
    name="toy",
    version="1.0.0",
    description="",
    class_names=NAMES,
    class_colors=COLORS,
    label_map={0: 0, 1: 1, 2: 2},
    splits=("train",),
    split_sizes={},
    eval_split="train",
    license="",
    citation="",
    homepage="",
)


@pytest.fixture
def shapes(tmp_path_factory, monkeypatch):
    """A data_dir with the first eight images of `shapes` only, as drawing all takes a while."""
    from flaxseg.data.sets import shapes

    monkeypatch.setitem(shapes.SPLIT_SIZES, "train", 8)
    monkeypatch.setitem(shapes.SPLIT_SIZES, "val", 1)
    return tmp_path_factory.mktemp("shapes")


def is_there(canvas, color, share=0.5) -> int:
    """Number of pixels of the canvas that are near a colour."""
    return int((abs(canvas.astype(int) - color).max(axis=-1) <= 3).sum())


def test_a_sheet_shows_each_example_beside_its_label():
    image = np.full((2, 60, 80, 3), 100, np.uint8)
    image[1] = 180
    label = np.zeros((2, 60, 80), np.uint8)
    label[0, :30] = 1
    label[1, :, :40] = 255
    batch = {"image": image, "label": label, "id": np.array(["one", "two"])}
    sheet = draw_examples(batch, INFO, "what is shown")
    factor = 2  # to 160 pixels at least
    area = 60 * 80 * factor**2
    assert is_there(sheet, (100, 100, 100)) >= area, "the first image unchanged"
    assert is_there(sheet, (180, 180, 180)) >= area
    half = {index: (np.array(color) + 100) // 2 for index, color in enumerate(COLORS)}
    assert is_there(sheet, half[1]) >= 0.45 * area, "its upper half is road"
    assert is_there(sheet, half[0]) >= 0.45 * area
    assert is_there(sheet, half[2]) < 50, "there is no car"
    # Ignored pixels are striped: the mean of the image and two shades.
    striped = is_there(sheet, (172,) * 3) + is_there(sheet, (204,) * 3)
    assert striped >= 0.45 * area
    # The legend names the classes that occur: their patches have the pure colours.
    assert is_there(sheet, COLORS[1]) > 50
    assert is_there(sheet, COLORS[2]) == 0


def test_the_sheet_shows_what_a_training_would_see(shapes, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "flaxseg.drawing.examples.draw_examples",
        lambda batch, info, title: seen.append((batch, title)) or np.zeros((4, 4, 3), np.uint8),
    )
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from flaxseg.training import default_config\n"
        "def get_config(argument='x'):\n"
        "    config = default_config()\n"
        "    config.seed = 5\n"
        "    config.data.crop_size = (40, 48)\n"
        "    config.data.rotate = 20.0\n"
        "    config.data.photometric = 0.25 if argument == 'colour' else 0.0\n"
        "    return config\n"
    )
    out = tmp_path / "sheet.png"
    words = show_data("shapes", out, config=f"{recipe}:colour", data_dir=shapes, num_examples=3)
    (batch, title) = seen[0]
    assert words == f"3 examples of {title}"
    assert title == (
        "shapes train, seed 5: crop 40 x 48, scale 0.5 to 2, flip, rotate 20, photometric 0.25"
    )
    training = flaxseg.data.train_batches(
        "shapes",
        "train",
        data_dir=shapes,
        batch_size=1,
        crop_size=(40, 48),
        augmentation=Augmentation(rotate=20.0, photometric=0.25),
        seed=5,
        num_threads=2,
    )
    for number in range(3):
        wanted = next(training)
        for key in ("image", "label", "id"):
            np.testing.assert_array_equal(batch[key][number], wanted[key][0])
    training.close()
    show_data(
        "shapes", out, config=str(recipe), data_dir=shapes, num_examples=2, crop_size=(9, 9),
        flip=False, seed=1, split="val",
    )  # fmt: skip
    assert seen[1][0]["image"].shape == (2, 9, 9, 3)
    assert seen[1][1] == "shapes val, seed 1: crop 9 x 9, scale 0.5 to 2, rotate 20"
    with pytest.raises(ConfigError, match=r"nowhere\.py cannot be read"):
        show_data("shapes", out, config="nowhere.py:data=x", data_dir=shapes)
    with pytest.raises(ConfigError, match="rotate is 500"):
        show_data("shapes", out, rotate=500.0, data_dir=shapes)


def report(pixels, sizes, problems=()) -> Report:
    counts = np.array(pixels, np.int64)
    counted = Statistics(
        sum(sizes.values()), counts, (counts > 0) * 3, counts * 0 + counts.sum(), 7,
        collections.Counter(sizes),
    )  # fmt: skip
    return Report(
        name="toy",
        source="/toy",
        class_names=NAMES,
        class_colors=COLORS,
        num_pairs={"train": sum(sizes.values())},
        problems=tuple(problems),
        statistics={"train": counted},
        unusable={"train": frozenset()},
    )


def test_the_bars_of_a_report_are_as_long_as_the_shares_say():
    drawn = draw_report(report([900, 99, 1], {(10, 20): 3}))
    widths = [int((abs(drawn.astype(int) - color).max(-1) == 0).any(0).sum()) for color in COLORS]
    # Logarithmic over three decades: 0.9, 0.099 and 0.001 end at 98.5, 66.5 and 0 per cent.
    assert widths[0] == pytest.approx(0.985 * 420, abs=4)
    assert widths[1] == pytest.approx(0.665 * 420, abs=4)
    assert 0 < widths[2] <= 4


def test_the_histograms_of_a_report_count_the_sizes():
    def bars(sizes):
        drawn = draw_report(report([5, 5, 5], sizes))
        blue = (abs(drawn.astype(int) - (84, 124, 178)).max(-1) == 0).sum(0)
        return blue[: drawn.shape[1] // 2]  # those of the heights

    heights = bars({(10, 99): 4, (11, 99): 2, (13, 99): 1})
    tall = [int(value) for value in heights[np.flatnonzero(np.diff(heights, append=0) < 0)]]
    assert tall == [pytest.approx(171 * share, abs=2) for share in (1.0, 0.5, 0.25)]
    # Of very many sizes no bar is lost.
    many = bars({(size, 99): 1 for size in range(10, 2000)})
    assert (many > 100).sum() > 150
    draw_report(report([0, 0, 0], {}))  # nothing at all is drawn, too


def test_a_report_is_written_as_text_json_and_image(tmp_path):
    found = report([900, 99, 1], {(10, 20): 3}, [Problem("orphan", "/toy/x.png: alone")])
    written = write_report(found, tmp_path)
    assert [path.name for path in written] == ["report.txt", "report.json", "report.png"]
    assert written[0].read_text() == found.text() + "\n"
    assert "/toy/x.png: alone" in written[1].read_text()
    with Image.open(written[2]) as image:
        np.testing.assert_array_equal(np.asarray(image), draw_report(found))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in written)
    with pytest.raises(WriteError, match="cannot write"):
        write_report(found, tmp_path / "nowhere")
