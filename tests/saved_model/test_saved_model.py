"""Saved models: what is saved is what is loaded, and whatever is wrong is said by name."""

import hashlib
import json
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from power_cuts import PowerCuts
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import json_text
from flaxseg.errors import WeightsError, WriteError
from flaxseg.layers import ImageNormalization
from flaxseg.models import registry
from flaxseg.saved_model import model_folder
from flaxseg.saved_model.tensors import expected_tensors

KERNEL = "params/backbone/kernel"
NAMES = ("sky", "road", "car")
COLORS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)


def save(directory, seed=0, num_classes=3, options=None, **arguments):
    options = {"blur": True} if options is None else options
    variables = init(create_tiny("tiny", num_classes, **options), seed)
    flaxseg.save_model(
        directory, variables, name="tiny", num_classes=num_classes, options=options, **arguments
    )
    return variables


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def rewrite_weights(directory, change):
    """Changes the tensors and makes the digest fit, as someone who builds such a folder might."""
    path = directory / "model.safetensors"
    tensors = change(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite_card(directory, lambda card: card["weights"].update(sha256=digest))


def rewrite_card(directory, change):
    path = directory / "config.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def test_round_trip(tmp_path):
    variables = save(
        tmp_path / "a", class_names=NAMES, class_colors=COLORS, extra={"step": 3, "miou": 0.5}
    )
    model, loaded = flaxseg.load_model(tmp_path / "a")
    assert_same(loaded, variables)
    assert model == create_tiny("tiny", 3, blur=True)
    image = jnp.ones((1, 5, 7, 3))
    np.testing.assert_array_equal(
        model.apply(loaded, image).logits, model.apply(variables, image).logits
    )
    text = (tmp_path / "a" / "config.json").read_text()
    assert "\n    [4, 5, 6],\n" in text, "a colour does not stand on one line"
    card = flaxseg.read_model_card(tmp_path / "a")
    assert card["class_names"] == NAMES
    assert card["class_colors"] == COLORS
    assert card["extra"] == {"step": 3, "miou": 0.5}
    assert card["flaxseg_version"] == flaxseg.__version__
    assert card["normalization"] == {"mean": [0, 0, 0], "std": [255, 255, 255]}
    assert card["weights"]["parameters"] == sum(
        x.size for x in jax.tree.leaves(variables["params"])
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_default_names_and_colours(tmp_path):
    save(tmp_path / "a")
    card = flaxseg.read_model_card(tmp_path / "a")
    assert card["class_names"] == ("class 0", "class 1", "class 2")
    assert card["class_colors"] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def test_options_of_all_kinds_come_back(tmp_path, monkeypatch):
    seen = []

    def create(name, num_classes, **options):
        seen.append(options)
        return create_tiny(name, num_classes, blur=options["blur"])

    monkeypatch.setattr("flaxseg.models.create_model", create)
    options = {"blur": True, "rates": (6, 12), "dtype": jnp.bfloat16, "limit": None}
    variables = init(create_tiny("tiny", 3, blur=True))
    run_options = {"batch_norm_axis": "data"}
    flaxseg.save_model(
        tmp_path / "a", variables, name="tiny", num_classes=3, options=options | run_options
    )
    flaxseg.load_model(tmp_path / "a", limit=7)
    loaded = seen[-1]
    assert loaded == {"blur": True, "rates": (6, 12), "dtype": jnp.dtype("bfloat16"), "limit": 7}


def test_normalization_as_an_option(tmp_path):
    normalization = ImageNormalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    save(tmp_path / "a", options={"normalization": normalization})
    model, _ = flaxseg.load_model(tmp_path / "a")
    assert model.normalization == normalization


def test_a_working_directory_is_taken_by_its_model_folder(tmp_path):
    variables = save(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"steps": 600}')
    assert_same(flaxseg.load_model(tmp_path / "run")[1], variables)


def test_nothing_to_load_says_what_is_there(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no folder .*nowhere"):
        flaxseg.load_model(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="holds no saved model"):
        flaxseg.load_model(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match="no model folder yet"):
        flaxseg.load_model(tmp_path)


def test_one_flipped_bit_is_found(tmp_path):
    save(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors was changed or damaged"):
        flaxseg.load_model(tmp_path / "a")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, missing):
    save(tmp_path / "a")
    (tmp_path / "a" / missing).unlink()
    with pytest.raises(WeightsError, match=missing.replace(".", r"\.")):
        flaxseg.load_model(tmp_path / "a")


def test_tensors_that_do_not_fit_are_named_with_both_shapes(tmp_path):
    save(tmp_path / "a")

    def change(tensors):
        tensors["params/extra"] = np.zeros(3, np.float32)
        del tensors["params/head/bias"]
        tensors[KERNEL] = tensors[KERNEL][:1]
        tensors["batch_stats/norm/mean"] = tensors["batch_stats/norm/mean"].astype(np.float16)
        return tensors

    rewrite_weights(tmp_path / "a", change)
    with pytest.raises(WeightsError) as error:
        flaxseg.load_model(tmp_path / "a")
    message = str(error.value)
    assert "model.safetensors" in message
    assert f"{KERNEL}: found [1, 3, 3, 4] float32, the model has [3, 3, 3, 4] float32" in message
    assert "missing: params/head/bias [3] float32" in message
    assert "unexpected: params/extra [3] float32" in message
    assert "batch_stats/norm/mean: found [4] float16, the model has [4] float32" in message


def test_another_number_of_classes_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    save(tmp_path / "a")

    def change(card):
        card["num_classes"] = 5
        card["class_names"] = list("abcde")
        card["class_colors"] = [[0, 0, 0]] * 5

    rewrite_card(tmp_path / "a", change)
    read = safetensors.safe_open

    class NamesOnly:
        """A file whose tensors may be listed, not read."""

        def __init__(self, *arguments, **keywords):
            self.file = read(*arguments, **keywords)
            self.keys, self.get_slice = self.file.keys, self.file.get_slice

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def get_tensor(self, key):
            pytest.fail(f"{key} was read")

    monkeypatch.setattr(safetensors, "safe_open", NamesOnly)
    with pytest.raises(WeightsError, match=r"head/bias: found \[3\] float32, the model has \[5\]"):
        flaxseg.load_model(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2, "flaxseg_version": "9.9"}, "written by flaxseg 9.9.*newer flaxseg"),
        ({"format_version": "x"}, "format_version 'x'"),
        ({"format": "other"}, "not the card of a flaxseg model"),
        ({"num_classes": "3"}, "'num_classes' must have type int"),
        ({"num_classes": 10**9}, "must be in 1..255"),
        ({"class_names": ["a"]}, "1 entries for 3 classes"),
        ({"class_names": ["a", "b\n", "c"]}, r"'b\\n' holds the control character"),
        ({"class_colors": [[0, 0, 300]] * 3}, "not three values in 0..255"),
        ({"class_colors": [7, 7, 7]}, "not iterable"),
        ({"model": "unknown"}, "there is no model 'unknown'"),
        ({"options": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"normalization": {"mean": [1, 1, 1], "std": [1, 1, 1]}}, "predictions would be wrong"),
    ],
)
def test_a_card_that_is_wrong_is_refused(tmp_path, change, words):
    save(tmp_path / "a")
    rewrite_card(tmp_path / "a", lambda card: card.update(change))
    with pytest.raises(WeightsError, match=words) as error:
        flaxseg.load_model(tmp_path / "a")
    assert "config.json" in str(error.value)


def test_weights_that_are_no_safetensors_file(tmp_path):
    save(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(b"\xff" * 64)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite_card(tmp_path / "a", lambda card: card["weights"].update(sha256=digest))
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        flaxseg.load_model(tmp_path / "a")


def test_saving_what_does_not_belong_to_the_model_is_refused(tmp_path):
    variables = init(create_tiny("tiny", 3))
    with pytest.raises(WeightsError, match=rf"{KERNEL}: found \[1, 1, 3, 4\]"):
        flaxseg.save_model(
            tmp_path / "a", variables, name="tiny", num_classes=3, options={"blur": True}
        )
    variables["params"]["head"]["bias"] = variables["params"]["head"]["bias"].at[1].set(jnp.nan)
    with pytest.raises(WeightsError, match="params/head/bias hold values that are not finite"):
        flaxseg.save_model(tmp_path / "a", variables, name="tiny", num_classes=3)
    variables = init(create_tiny("tiny", 3))
    with pytest.raises(ValueError, match="class_names has 2 entries for 3 classes"):
        flaxseg.save_model(
            tmp_path / "a", variables, name="tiny", num_classes=3, class_names=("a", "b")
        )
    with pytest.raises(ValueError, match="extra"):
        flaxseg.save_model(
            tmp_path / "a", variables, name="tiny", num_classes=3, extra={"f": object()}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_replaced_as_a_whole(tmp_path):
    save(tmp_path / "a", seed=0)
    second = save(tmp_path / "a", seed=1)
    assert_same(flaxseg.load_model(tmp_path / "a")[1], second)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_with_other_files_is_not_deleted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(WriteError, match=r"thesis\.tex"):
        save(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="in the way"):
        save(tmp_path / "file")


def test_disk_full_keeps_the_old_model(tmp_path, monkeypatch):
    first = save(tmp_path / "a")

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match=r"No space left.* needs .* MB"):
            save(tmp_path / "a", seed=1)
    assert_same(flaxseg.load_model(tmp_path / "a")[1], first)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


class Snapshots:
    """Copies a folder before each change that Python makes to the names or files in it."""

    def __init__(self, folder, target):
        self.folder, self.target = folder, target
        self.taken = []
        self.active = False
        sys.addaudithook(self._hook)  # cannot be removed, only be made idle

    def _hook(self, event, arguments):
        changes = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open")
        if not self.active or event not in changes:
            return
        if event == "open" and str(self.folder) not in str(arguments[0]):
            return
        self.active = False
        self.taken.append(self.target / str(len(self.taken)))
        shutil.copytree(self.folder, self.taken[-1])
        self.active = True


def test_killed_at_any_moment_the_old_or_the_new_model_is_there(tmp_path):
    """What a save leaves behind when it dies before any one of its changes of the disk."""
    folder = tmp_path / "models"
    first = save(folder / "a", seed=0)
    snapshots = Snapshots(folder, tmp_path)
    snapshots.active = True
    second = save(folder / "a", seed=1)
    snapshots.active = False
    worst = [left for left in snapshots.taken if not (left / "a").exists()]
    assert worst, "no moment between the two renames"
    outcomes = []
    for left in snapshots.taken:
        _, loaded = flaxseg.load_model(left / "a")
        head = [tree["params"]["head"]["kernel"] for tree in (loaded, second)]
        is_new = bool(jnp.array_equal(*head))
        assert_same(loaded, second if is_new else first)
        outcomes.append(is_new)
        assert_same(flaxseg.load_model(save_again(left))[1], second)
        assert [p.name for p in left.iterdir()] == ["a"], "something is left of the dead save"
    assert outcomes == sorted(outcomes), "the new model was there and went away again"
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(outcomes) >= 8


def test_after_a_power_cut_the_old_or_the_new_model_is_there(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    first = save(folder / "a", seed=0)
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        second = save(folder / "a", seed=1)
    for images in cuts.images.values():
        heads = [flaxseg.load_model(image / "a")[1]["params"]["head"]["kernel"] for image in images]
        new = [bool(jnp.array_equal(head, second["params"]["head"]["kernel"])) for head in heads]
        assert all(
            jnp.array_equal(head, (second if is_new else first)["params"]["head"]["kernel"])
            for head, is_new in zip(heads, new, strict=True)
        )
        assert new == sorted(new)
        assert (new[0], new[-1]) == (False, True)


@pytest.mark.parametrize("name", [".DS_Store", "._model.safetensors", ".nfs0001", "Thumbs.db"])
def test_what_the_system_leaves_in_the_folder_is_nobodys_work(tmp_path, name):
    save(tmp_path / "a", seed=0)
    (tmp_path / "a" / name).write_text("")
    second = save(tmp_path / "a", seed=1)
    assert_same(flaxseg.load_model(tmp_path / "a")[1], second)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_old_folder_that_cannot_be_deleted_is_no_obstacle(tmp_path, monkeypatch):
    """As NFS leaves it while another program reads it."""
    save(tmp_path / "a", seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, *arguments, **options: None)
        for seed in (1, 2, 3):
            latest = save(tmp_path / "a", seed=seed)
            assert_same(flaxseg.load_model(tmp_path / "a")[1], latest)
    assert len(list(tmp_path.iterdir())) > 1
    save(tmp_path / "a", seed=4)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def save_again(folder):
    save(folder / "a", seed=1)
    return folder / "a"


def test_replaced_while_it_is_read(tmp_path, monkeypatch):
    """The weights are newer than the card that was read: the new model is loaded."""
    save(tmp_path / "a", seed=0)
    original = model_folder._create
    again = []

    def create_and_replace(*arguments):
        model = original(*arguments)
        if not again:
            again.append(True)
            save(tmp_path / "a", seed=1)
        return model

    monkeypatch.setattr(model_folder, "_create", create_and_replace)
    _, loaded = flaxseg.load_model(tmp_path / "a")
    assert_same(loaded, init(create_tiny("tiny", 3, blur=True), 1))


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 10**12}, "num_classes must be in 1..255"),
        ({"num_classes": True}, "field 'num_classes' must have type int, got True"),
        ({"num_classes": 3.0}, "field 'num_classes' must have type int, got 3.0"),
        ({"class_names": ["a", 1, "c"]}, "a class name is 1"),
        ({"class_names": {"a": 1}}, "field 'class_names' must have type list"),
        ({"class_colors": [[1, 2, 3], [4, 5, "6"], [7, 8, 9]]}, "'str' object cannot"),
        ({"class_colors": [[1, 2, 3], [4, 5, 6.5], [7, 8, 9]]}, "'float' object cannot"),
        ({"class_colors": [1, 2, 3]}, "'int' object is not iterable"),
        ({"model": ["tiny"]}, "field 'model' must have type str"),
        ({"weights": []}, "field 'weights' must have type dict"),
        ({"weights": {}}, "field 'weights.sha256' must have type str, got nothing"),
        ({"weights": {"sha256": 5, "parameters": 1}}, "field 'weights.sha256' must have type str"),
        ({"weights": {"sha256": "", "parameters": "many"}}, "field 'weights.parameters'"),
        ({"extra": []}, "field 'extra' must have type dict"),
        ({"extra": {"data": ["toy/val"]}}, "field 'extra.data' must have type str"),
        ({"extra": {"config": 3}}, "field 'extra.config' must have type dict"),
        ({"extra": {"config": None}}, "field 'extra.config' must have type dict, got None"),
        ({"extra": {"config": {"data": "toy"}}}, "field 'extra.config.data' must have type dict"),
        ({"format_version": 1.5}, "format_version 1.5"),
        ({"options": {"rates": [10**12]}}, "option 'rates' has 1000000000000"),
        ({"options": {"rates": [1] * 10_000}}, "at most 200 of them"),
        ({"options": {"rates": deep(50)}}, "nested 6 deep at most"),
        ({"options": {"protocol": 7}}, "option 'protocol' is 7, no text"),
        ({"options": float("nan")}, "the number NaN, which is not finite"),
        ({"options": float("inf")}, "the number Infinity, which is not finite"),
    ],
)
def test_a_card_with_impossible_values_is_refused_by_name(tmp_path, change, words):
    save(tmp_path / "a")
    rewrite_card(tmp_path / "a", lambda card: card.update(change))
    with pytest.raises(WeightsError) as caught:
        flaxseg.read_model_card(tmp_path / "a")
    assert words in str(caught.value)
    assert str(tmp_path / "a" / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone_options": {"stage_sizes": (1000, 1, 1, 1)}}, "more than 60 layers"),
        ({"backbone_options": {"stage_sizes": (1,) * 4, "width": 9}}, "parameters, more than"),
        ({"backbone_options": {"width": "wide"}}, "TypeError"),
        ({"backbone_options": ("width",)}, "TypeError"),
        ({"normalization": {"mean": [1, 2, 3]}}, "KeyError: 'std'"),
        ({"norm": "batch"}, "'str' object is not callable"),
        ({"dtype": "float23"}, "float23"),
        ({"protocol": "wole"}, "Did you mean 'whole'"),
        ({"protocol": "whole(window=0)"}, "window is 0"),
    ],
)
def test_options_that_make_no_model_are_named(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr("flaxseg.models.create_model", registry.create_model)
    monkeypatch.setattr("flaxseg.saved_model.tensors._MAX_CALLS", 60)
    monkeypatch.setattr("flaxseg.saved_model.tensors._MAX_VALUES", 10**8)
    options = {"backbone": "resnet18", "backbone_options": {"stage_sizes": (1,) * 4}} | options
    with pytest.raises(WeightsError) as caught:
        flaxseg.save_model(tmp_path / "a", {}, name="fcn", num_classes=3, options=options)
    assert words in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_kernel_of_absurd_size_is_refused_before_it_is_traced():
    with pytest.raises(ValueError, match="a kernel has 10000 cells a side, more than 128"):
        expected_tensors(registry.create_model("segnet", 3, kernel_size=10_000))


def test_a_deeply_nested_or_huge_card_is_refused(tmp_path):
    save(tmp_path / "a")
    for text, words in (
        ("[" * 200_000, "nested too deeply"),
        ('{"a": 1e999}', "1e999, which is not finite"),
        (" " * (json_text.MAX_BYTES + 1), "at most 16777216 are read"),
    ):
        (tmp_path / "a" / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=words):
            flaxseg.load_model(tmp_path / "a")
