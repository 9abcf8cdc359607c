"""Files of JSON lines, some of them damaged."""

from flaxseg.json_lines import read_json_lines, read_run_log


def test_damaged_lines_are_left_out_and_named(tmp_path, caplog):
    path = tmp_path / "lines"
    good = b'{"a": 1}'
    bad = [b'{"a": 1\xff}', b"", b"[1]", b'{"b": 2}', b"[" * 100_000, b"\x00\x00"]
    path.write_bytes(b"\n".join([good, *bad, good, b'{"a": 3']))
    assert read_json_lines(path, lambda entry: entry["a"]) == [1, 1]
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: lines 2, 4, 5, 6, 7 damaged and left out"


def test_half_a_last_line_is_no_damage(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    assert read_run_log(path) == [{"kind": "train", "step": 1}]
    assert not caplog.records
