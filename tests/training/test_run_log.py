"""What a run writes about itself."""

import io
import json
import struct

import numpy as np
import pytest
from test_log_file import no_file_beyond

from flaxseg.errors import WriteError
from flaxseg.training.run_log import MetricsFile, TensorBoard
from flaxseg.training.run_progress import RunProgress, format_seconds


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_restored_step_are_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (10, 20, 30):
        first.write("train", step, {"loss": float(step)})
    first.write("eval", 20, {"miou": np.float64(0.5)})
    first.close()
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    again = MetricsFile(path, from_step=20)
    again.write("train", 30, {"loss": 3.0})
    again.close()
    assert [(line["kind"], line["step"]) for line in read(path)] == [
        ("train", 10),
        ("train", 20),
        ("eval", 20),
        ("train", 30),
    ]
    assert read(path)[-1]["loss"] == 3.0
    MetricsFile(path).close()  # from the beginning: nothing of before is left
    assert read(path) == []


def test_numbers_that_are_not_finite_are_null(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write("eval", 1, {"iou": {"sky": float("nan")}, "list": [float("inf"), np.float32(1)]})
    file.close()
    (line,) = read(tmp_path / "metrics.jsonl")
    assert line == {"kind": "eval", "step": 1, "iou": {"sky": None}, "list": [None, 1.0]}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"metrics.jsonl"):
        MetricsFile(tmp_path / "missing" / "metrics.jsonl")


def test_a_damaged_line_is_dropped_and_named(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (10, 20, 30):
        file.write("train", step, {"loss": 1.5})
    file.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"1.5", b"1\xff5")
    path.write_bytes(b"".join(lines))
    again = MetricsFile(path, from_step=30)
    again.write("train", 40, {"loss": 1.5})
    assert [line["step"] for line in read(path)] == [10, 30, 40]
    assert "metrics.jsonl: line 2 damaged and left out" in caplog.text


def test_a_full_disk_does_not_hold_up_tensorboard(tmp_path, caplog):
    board = TensorBoard(tmp_path)
    with no_file_beyond(100):
        for step in range(50):
            board.scalars("train", step, {"loss": 0.5})
        board.close()
    board.scalars("train", 50, {"loss": 0.5})
    found = [event.step for event in events(tmp_path) for _ in event.summary.value]
    assert found == list(range(51))
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1


def events(folder):
    """The events of a folder, read without TensorFlow: length, its sum, content, its sum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_event_files_hold_scalars_and_images(tmp_path):
    board = TensorBoard(tmp_path, from_step=5)
    board.scalars("train", 7, {"loss": 0.25, "bad": float("nan"), "text": "x"})
    board.image("images/000", 7, np.full((4, 6, 3), 200, np.uint8))
    board.close()
    found = events(tmp_path)
    values = {value.tag: (event.step, value) for event in found for value in event.summary.value}
    assert values.keys() == {"train/loss", "images/000"}
    assert values["train/loss"][0] == 7
    assert values["train/loss"][1].simple_value == 0.25
    assert (values["images/000"][1].image.height, values["images/000"][1].image.width) == (4, 6)
    # What an earlier start wrote after step 5 is purged by TensorBoard.
    assert any(event.HasField("session_log") and event.step == 6 for event in found)


VALUES = {"loss": 1.5, "learning_rate": 0.01, "images_per_second": 12.34, "data_wait": 0.25}


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = RunProgress(100, stream=stream)
    progress.start(40)
    progress.advance(50)
    progress.report(50, VALUES)
    progress.close()
    assert stream.getvalue().startswith(
        "step 50/100: loss 1.5000, lr 1.00e-02, 12.3 images/s, data wait 25%, ETA 00:0"
    )
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_not_known_yet_is_left_out(terminal):
    """At a log point right after the step that was compiled there is no speed and no ETA."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    progress = RunProgress(100, stream=stream)
    progress.start(0)
    progress.restart_clock(1)
    unknown = {"images_per_second": float("nan"), "data_wait": float("nan")}
    progress.report(1, VALUES | unknown)
    progress.close()
    assert "loss 1.5000, lr 1.00e-02" in stream.getvalue()
    for word in ("nan", "images/s", "data wait", "ETA"):
        assert word not in stream.getvalue()


def test_a_bar_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = RunProgress(100, stream=stream)
    progress.start(40)
    progress.advance(50)
    progress.report(50, VALUES)
    progress.say("hello")
    progress.close()
    for part in ("50/100", "loss 1.5000", "12.3 images/s", "data wait 25%", "hello\n", "<"):
        assert part in stream.getvalue()


def test_other_processes_are_silent():
    stream = io.StringIO()
    progress = RunProgress(100, stream=stream, enabled=False)
    progress.start(0)
    progress.report(50, VALUES)
    assert stream.getvalue() == ""


def test_times():
    assert [format_seconds(s) for s in (5, 65, 3723)] == ["00:05", "01:05", "1:02:03"]
