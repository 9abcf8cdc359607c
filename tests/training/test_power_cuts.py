"""Power cuts while a run writes: each thing it writes is afterwards the old one or the new one."""

from power_cuts import PowerCuts
from test_checkpoint import content, make_state, meta, saved

from flaxseg.files import write_text
from flaxseg.training.checkpoint import Checkpoints


def check_checkpoints(images, states):
    """Checks that each image has a good checkpoint, and that none of a later one is older."""
    known = [content(state) for state in states]
    for kind, folders in images.items():
        found = []
        for folder in folders:
            restored = Checkpoints(folder / "checkpoints").restore(states[0])
            assert restored is not None, f"{folder} has no checkpoint"
            found.append(known.index(content(restored.state)))
        assert found == sorted(found), kind
        assert (found[0], found[-1]) == (0, len(states) - 1), kind
        assert len(folders) >= {"synced": 2, "journal": 8}[kind]


def test_the_next_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoints = saved(folder, (1,), keep_last=1)
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        checkpoints.save(2, make_state(2), meta())
        checkpoints.finish()
    assert checkpoints.steps() == [2]
    check_checkpoints(cuts.images, [make_state(1), make_state(2)])


def test_a_checkpoint_in_place_of_one_of_the_same_step(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoints = saved(folder, (1,), keep_last=1)
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        checkpoints.save(1, make_state(5), meta())
        checkpoints.finish()
    check_checkpoints(cuts.images, [make_state(1), make_state(5)])


def test_a_file_that_is_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    write_text(folder / "config.json", "old")
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        write_text(folder / "config.json", "new")
    for folders in cuts.images.values():
        found = [(image / "config.json").read_text() for image in folders]
        assert found == sorted(found, reverse=True)
        assert {found[0], found[-1]} == {"old", "new"}
