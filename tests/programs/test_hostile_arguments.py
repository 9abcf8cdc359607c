"""Arguments that no command can take are refused by their name, with exit code 2, at once."""

import pytest

from flaxseg import cli

ENOUGH = {
    "evaluate": ["m", "--data=shapes"],
    "predict": ["x.png", "--model=m", "--out=o"],
    "export": ["m", "--size", "65", "65", "--out=m.onnx"],
    "prune": ["m", "--out=o"],
    "tune-crf": ["m", "--data=shapes"],
    "learn-basis": ["shapes", "--out=o"],
    "show-data": ["shapes"],
    "verify-data": ["shapes"],
    "prepare-data": ["shapes"],
    "import": ["x.pth", "--out=o"],
    "report": ["m"],
    "results": ["m"],
}


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        *((command, "--out=s3://bucket/x") for command in ENOUGH if command != "prepare-data"),
        ("prepare-data", "--data_dir=ftp://host/x"),
        ("evaluate", "--data_dir=a\0b"),
        ("evaluate", "--batch_size=99999999999"),
        ("evaluate", "--pad_to=1e9"),
        ("evaluate", "--output_stride=0"),
        ("predict", "--pad_multiple=-1"),
        ("predict", "--top_classes=" + "9" * 5000),
        ("export", "--batch=0"),
        ("prune", "--keep=nan"),
        ("prune", "--keep=2"),
        ("tune-crf", "--w1=inf"),
        ("tune-crf", "--sigma_alpha=0"),
        ("tune-crf", "--refinements=1000000"),
        ("learn-basis", "--patch_size=100000"),
        ("learn-basis", "--seed=4294967296"),
        ("show-data", "--scale=nan"),
        ("show-data", "--rotate=1e9"),
        ("show-data", "--num_examples=99999999"),
        ("verify-data", "--num_threads=99999"),
    ],
)
def test_a_hostile_argument_is_named(command, argument, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, value = argument.lstrip("-").split("=", 1)
    assert cli.main([command, *ENOUGH[command], *_given(name, value)]) == 2
    assert name.replace("_", "") in capsys.readouterr().err.replace("_", "").replace("-", "")
    assert not list(tmp_path.iterdir())


def _given(name, value):
    """Returns the words of an argument; some have two values."""
    pairs = ("pad_to", "scale")
    return [f"--{name}", value, value] if name in pairs else [f"--{name}={value}"]
