"""The table of results, from the files that runs and evaluations write."""

import csv
import json

import pytest
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import cli
from flaxseg.training.run_directory import RunDirectory
from flaxseg.training.run_log import MetricsFile


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)


def make_run(folder, scores, steps=300, *, protocol=None, speeds=(2.0, 90.0, 4.0), extra=None):
    """A run with evaluations {step: mIoU} of a planned number of steps."""
    directory = RunDirectory(folder)
    directory.create()
    config = {"steps": steps, "data": {"name": "shapes", "eval_split": "val"}, "eval": {}}
    if protocol is not None:
        config["eval"] = {"protocol": protocol, "pad_to": [0, 0]}
    directory.write_config(config)
    log = MetricsFile(directory.metrics_file)
    for step, speed in enumerate(speeds, 1):
        log.write("train", step, {"loss": 1.0, "images_per_second": speed})
    for step, miou in scores.items():
        log.write("eval", step, {"miou": miou, "pixel_accuracy": 0.9, "iou": {"a": miou}})
    log.close()
    flaxseg.save_model(
        directory.model,
        init(create_tiny("tiny", 3)),
        name="tiny",
        num_classes=3,
        options={},
        extra=extra,
    )
    return folder


def make_evaluation(folder, **values):
    """What `evaluate --out` writes, as far as the table reads it."""
    folder.mkdir(parents=True)
    report = {
        "model": "tiny",
        "backbone": None,
        "parameters": 35,
        "step": 200,
        "data": "shapes",
        "split": "val",
        "protocol": "whole(flip=True)",
        "output_stride": None,
        "crf": None,
        "miou": 0.55,
        "pixel_accuracy": 0.91,
    }
    (folder / "metrics.json").write_text(json.dumps(report | values))


def run(capsys, *arguments):
    code = cli.main(["results", *map(str, arguments)])
    return code, *capsys.readouterr()


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names, _, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(names, row, strict=True)) for row in cells]


def test_a_run_and_its_evaluation_are_two_rows(tmp_path, capsys):
    make_run(tmp_path / "a", {100: 0.3, 200: 0.5, 300: 0.4})
    make_evaluation(tmp_path / "a" / "ms", output_stride=8, crf="deeplab_v2_vgg16(w1=5)")
    code, out, _ = run(capsys, tmp_path)
    assert code == 0
    first, second = rows(out)
    assert second == {
        "data": "shapes/val",
        "model": "tiny",
        "backbone": "",
        "steps": "300, best at 200",
        "protocol": "`whole`",
        "mIoU": "50.0 %",
        "pixel accuracy": "90.0 %",
        "images/s in training": "4",  # the median
        "parameters": "0.0 M",
        "from": str(tmp_path / "a"),
    }
    assert first["mIoU"] == "55.0 %"
    assert first["protocol"] == "`whole(flip=True), output stride 8, CRF deeplab_v2_vgg16(w1=5)`"
    assert first["steps"] == "300, best at 200"  # known from the run around it
    assert "Not in the table" not in out


def test_a_data_set_of_ones_own_has_its_own_name(tmp_path, capsys):
    config = make_run(tmp_path / "a", {300: 0.5}, extra={"data": "holes/val"}) / "config.json"
    settings = json.loads(config.read_text())
    settings["data"]["name"] = "folder"
    config.write_text(json.dumps(settings))
    _, out, _ = run(capsys, tmp_path)
    assert [row["data"] for row in rows(out)] == ["holes/val"]


def test_unfinished_and_broken_runs_are_named(tmp_path, capsys, caplog):
    with open(make_run(tmp_path / "good", {300: 0.4}) / "metrics.jsonl", "ab") as log:
        log.write(b'{"kind": "eval", "step": 300, "miou": 0.9\xff}\n')  # one byte of it was hit
        log.write(b'{"kind": "ev')  # killed while it wrote
    make_run(tmp_path / "unfinished", {3: 0.2}, protocol="whole(flip=True)")
    make_run(tmp_path / "early", {}, speeds=(1.0,))
    (make_run(tmp_path / "damaged", {300: 0.4}) / "metrics.jsonl").write_text('{"kind": "ev\n')
    (make_run(tmp_path / "no_config", {300: 0.4}) / "config.json").unlink()
    (make_run(tmp_path / "no_card", {300: 0.4}) / "model" / "config.json").write_text("{}")
    make_evaluation(tmp_path / "other", miou=None)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text('{"miou": 0.1}')
    code, out, err = run(capsys, tmp_path, "--sort=miou")
    assert (code, err) == (0, "")
    table = rows(out)
    assert [(row["from"].rsplit("/", 1)[1], row["mIoU"]) for row in table] == [
        ("good", "40.0 %"),
        ("unfinished", "20.0 %"),
        ("other", ""),
    ]
    assert table[1]["steps"] == "3 of 300"
    assert table[1]["protocol"] == "`whole(flip=True)`"
    notes = dict(
        line.removeprefix(f"* {tmp_path}/").split(": ", 1)
        for line in out.splitlines()
        if line.startswith("* ")
    )
    assert notes.keys() == {"early", "damaged", "no_config", "no_card", "old"}
    assert notes["early"] == "no evaluation yet, step 1 of 300"
    assert notes["damaged"] == "no evaluation yet, step 0 of 300"
    said = [record.getMessage().removeprefix(f"{tmp_path}/") for record in caplog.records]
    damaged = [line for line in said if "damaged" in line]
    assert damaged[0] == "damaged/metrics.jsonl: line 1 damaged and left out"
    assert damaged[1].startswith("good/metrics.jsonl: line ")
    assert len(damaged) == 2
    assert "No such file" in notes["no_config"]
    assert notes["old"] == "'model' is missing in its files"


def test_csv_and_json_hold_the_exact_numbers(tmp_path, capsys):
    make_run(tmp_path / "b", {300: 1 / 3})
    make_run(tmp_path / "a", {3: 0.5}, speeds=())
    code, out, _ = run(capsys, tmp_path, "--format=csv", "--sort=path")
    assert code == 0
    first, second = csv.DictReader(out.splitlines())
    assert (first["source"], second["source"]) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert float(second["miou"]) == 1 / 3
    assert (first["unfinished"], second["unfinished"]) == ("True", "False")
    assert first["images_per_second"] == ""
    # A folder that is given twice is there once, and a link to one above it is no endless way.
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    code, out, _ = run(capsys, tmp_path / "b", tmp_path, "--format=json", "--sort=steps")
    result = json.loads(out)
    assert [row["miou"] for row in result["results"]] == [0.5, 1 / 3]
    assert result["not_in_table"] == []


def test_order_by_speed_puts_the_fastest_first_and_the_unknown_last(tmp_path, capsys):
    make_run(tmp_path / "slow", {300: 0.4}, speeds=(1.0,))
    make_run(tmp_path / "fast", {300: 0.3}, speeds=(9.0,))
    make_run(tmp_path / "unknown", {300: 0.5}, speeds=())
    _, out, _ = run(capsys, tmp_path, "--sort=images_per_second")
    assert [row["from"].rsplit("/", 1)[1] for row in rows(out)] == ["fast", "slow", "unknown"]


def test_folders_without_results_are_an_error(tmp_path, capsys):
    code, _, err = run(capsys, tmp_path / "absent")
    assert code == 1
    assert "there is no folder" in err
    code, _, err = run(capsys, tmp_path)
    assert code == 1
    assert "no metrics.jsonl" in err
