"""The comparisons of speed with PyTorch run, at small shapes; nobody looks at what they measure."""

import json
import os
import subprocess
import sys

import peers
import pytest


@pytest.fixture
def run(repository):
    def run(script, *arguments):
        path = os.pathsep.join(filter(None, [str(repository), os.environ.get("PYTHONPATH", "")]))
        result = subprocess.run(
            [sys.executable, str(repository / "benchmarks" / script), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            timeout=900,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


@pytest.mark.peer
@pytest.mark.slow
def test_a_system_beside_its_peer(run, tmp_path):
    peers.import_torchvision()
    pytest.importorskip("segmentation_models_pytorch")
    name = "deeplabv3plus_mobilenet_v2"
    files = ["--json", tmp_path / "speed.json", "--chart", tmp_path / "speed.svg"]
    out = run("systems.py", name, "--size", 48, "--rounds", 2, *files)
    assert out.count(name) == 2
    report = json.loads((tmp_path / "speed.json").read_text())
    (row,) = report["rows"]
    assert row["size"] == [48, 48]
    assert {"jax", "device"} <= set(row["facts"]["flaxseg"]["versions"])
    assert "torch" in row["facts"]["peer"]["versions"]
    for kind, batch in (("train", 2), ("infer", 1)):
        ours, theirs = (row[kind][program]["seconds"] for program in ("flaxseg", "peer"))
        assert row[kind]["speed_over_peer"] == pytest.approx(theirs / ours)
        assert row[kind]["flaxseg"]["images_per_second"] == pytest.approx(batch / ours)
    assert f"{name}, infer" in (tmp_path / "speed.svg").read_text()


@pytest.mark.slow
def test_one_kind_of_a_system_alone(run, tmp_path):
    files = ["--json", tmp_path / "speed.json", "--chart", tmp_path / "speed.svg"]
    kind = ["--alone", "--kinds", "infer"]
    run("systems.py", "deeplabv3plus_mobilenet_v2", "--size", 48, "--rounds", 1, *kind, *files)
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["infer"]["flaxseg"]["seconds"] > 0
    assert "train" not in row
    assert "speed_over_peer" not in row["infer"]


@pytest.mark.parametrize(
    ("layers", "count"), [(["pointwise"], 1), pytest.param([], 11, marks=pytest.mark.slow)]
)
def test_the_forms_of_every_layer(run, tmp_path, layers, count):
    run("layers.py", *layers, "--shrink", 16, "--rounds", 1, "--json", tmp_path / "layers.json")
    rows = json.loads((tmp_path / "layers.json").read_text())["rows"]
    assert len(rows) >= count
    for row in rows:
        values = row["milliseconds"]
        assert {"native", "products"} <= set(values)
        assert all(ms > 0 for own in values.values() for ms in own)


def test_a_layer_that_is_not_there(repository):
    result = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "layers.py"), "atrous"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
        timeout=300,
    )
    assert result.returncode == 2
    assert "there is no layer atrous; there are pointwise" in result.stderr


@pytest.mark.slow
def test_kills_of_a_run(run, tmp_path):
    arguments = ["--kills", 1, "--steps", 12, "--within", 8, "--out", tmp_path]
    out = run("kills.py", *arguments)
    assert "| of them equal to the undisturbed run | 1 |" in out
    assert "| starts that found damage | 0 |" in out
    assert run("kills.py", *arguments) == out  # there is nothing left to do
