"""The command learn-basis: what it writes and prints, how it fails, and that a model takes the
file."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from random_weights import shapes_of

import flaxseg
from flaxseg import cli, data
from flaxseg.errors import ConfigError, WeightsError
from flaxseg.weights import load_bases, read_bases

NAMES = ("ground", "wall", "car")


class Labels(list):
    """Records of a split."""

    def __init__(self, split, seed):
        rng = np.random.default_rng(seed)
        self.split = split
        for number in range(4):
            label = np.zeros((70, 90), np.uint8)
            label[:, : rng.integers(30, 60)] = 1
            if number == 0:
                label[20:30, 70:85] = 2
            self.append({"label": label, "image": None, "id": str(number)})


@pytest.fixture
def info(monkeypatch):
    """A data set with three classes and the splits train and val."""
    info = data.DatasetInfo(
        name="mine",
        version="1.0.0",
        description="",
        class_names=NAMES,
        class_colors=((0, 0, 0), (200, 0, 0), (0, 200, 0)),
        label_map={i: i for i in range(3)},
        splits=("train", "val"),
        split_sizes={},
        eval_split="val",
        license="",
        citation="",
        homepage="",
    )

    def open_split(name, split, data_dir=None):
        if split not in info.splits:
            raise ConfigError(f"data set {name!r} has no split {split!r}")
        return Labels(split, info.splits.index(split))

    monkeypatch.setattr(data, "dataset_info", lambda name: info)
    monkeypatch.setattr(data, "open_split", open_split)
    return info


def run(capsys, *arguments):
    code = cli.main(["learn-basis", "mine", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_writes_bases_that_a_model_takes_and_an_image(info, tmp_path, capsys):
    out = tmp_path / "bases"
    code, stdout, stderr = run(
        capsys,
        "--num_bases=3",
        "--num-patches=60",
        "--patch_size=16",
        "--scale=unit",
        "--seed=2",
        f"--out={out}",
    )
    assert code == 0, stderr
    assert "patches of train: 4 of 4 images" in stderr
    assert {path.name for path in out.iterdir()} == {"bases.npz", "bases.png", "report.json"}
    report = json.loads((out / "report.json").read_text())
    assert (report["num_bases"], report["seed"], report["held_out"]) == (3, 2, "val")
    assert report["patches"] == dict.fromkeys(NAMES, 60)
    shares = report["reconstruction"]["classes"]["wall"]["wrong"]
    assert f"{100 * shares[2]:.2f}" in stdout
    assert str(out / "bases.npz") in stdout
    with Image.open(out / "bases.png") as image:
        assert image.mode == "RGB"
        assert image.width > 2 * 3 * 64
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50

    filters, names = read_bases(out)
    assert (filters.shape, names) == ((3, 3, 8, 8), NAMES)
    np.testing.assert_allclose(np.linalg.norm(filters, axis=(2, 3)), 1, rtol=1e-5)
    # The wall ends at a vertical line, so that its first basis changes along rows alone, but for
    # the windows with a car in them.
    first = filters[1, 0]
    assert 10 * np.abs(np.diff(first, axis=0)).max() < np.abs(np.diff(first, axis=1)).max()

    model = flaxseg.create_model(
        "lrr",
        3,
        num_bases=3,
        backbone="resnet18",
        backbone_options={"width": 0.125},
        dilation_erosion=True,
    )
    shapes = shapes_of(model)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    loaded, paths = load_bases(variables, out / "bases.npz", class_names=NAMES)
    assert len(paths) == 6
    kernel = loaded["params"]["reconstruction_8x"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 0, 1 * 3 + 2], filters[1, 2])
    assert not np.any(loaded["params"]["coefficients_8x"]["kernel"])
    assert not np.any(variables["params"]["reconstruction_8x"]["kernel"])
    _, paths = load_bases(variables, out, parts="reconstruction_4x")
    assert paths == ("params/reconstruction_4x/kernel",)
    for wrong, message in (
        ({"class_names": ("a", "wall", "car")}, "0 \\('a' in the data, 'ground' in the file\\)"),
        ({"class_names": NAMES[:2]}, "of 3 classes and the data set has 2"),
        ({"parts": "decoder"}, "no layer 'decoder'"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_bases(variables, out, **wrong)
    variables["params"]["reconstruction_4x"]["kernel"] = np.zeros((8, 8, 1, 30))
    with pytest.raises(WeightsError, match="make the model with num_bases=3"):
        load_bases(variables, out)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--held_out=train"], 2, "learned from and measured on 'train'"),
        (["--split=test"], 2, "has no split 'test'"),
        (["--num_bases=65"], 2, "num_bases is 65; filters of 8 x 8 have at most 64"),
        (["--num_bases=0"], 2, "must be at least 1, got 0"),
        (["--patch_size=71", "--num_patches=50"], 1, "smaller than 71 x 71 pixels"),
        (["--scale=large"], 2, "large"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(info, tmp_path, capsys, arguments, code, words):
    got, _, stderr = run(capsys, *arguments, f"--out={tmp_path / 'out'}")
    assert got == code, stderr
    assert words in stderr
    assert "Traceback" not in stderr


def test_files_that_hold_no_bases_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"there are no bases at .*learn-basis"):
        read_bases(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(WeightsError, match="holds no bases"):
        read_bases(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", filters=np.zeros((2, 3, 8, 8)), class_names=["a"])
    with pytest.raises(WeightsError, match="for 1 classes"):
        read_bases(tmp_path / "other.npz")
