"""A training on one's own images: the classes of the file reach the model and come back."""

import runpy

import numpy as np
import pytest
import tiny_program
from own_folder import CLASSES, COLORS, TOML, image_of, write_folder

import flaxseg
from flaxseg.errors import ConfigError, DataError
from flaxseg.inference import Protocol, model_protocol, predict
from flaxseg.training import default_config, train_and_evaluate
from flaxseg.training.assemble import data_name
from flaxseg.training.config_check import validate_config


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setitem(flaxseg.models.MODELS, "tiny", tiny_program.TINY)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "toy", {"train": 3, "val": 2})


@pytest.fixture
def config(tmp_path, folder):
    config = default_config()
    config.model.name = "tiny"
    config.model.backbone = "resnet18"  # not used by the tiny model
    config.data.name = "folder"
    config.data.manual_dir = str(folder)
    config.data.dir = str(tmp_path / "data")
    config.data.crop_size = (16, 16)
    config.batch_size = 8
    config.steps = 2
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.eval.every_steps = 0
    config.eval.num_images = 1
    return config


def test_the_model_has_the_classes_of_the_folder(config, folder, tmp_path):
    config.loss.class_weights = (1.0, 2.0, 3.0)
    config.eval.pad_to = (40, 48)
    workdir = tmp_path / "run"
    result = train_and_evaluate(config, str(workdir))
    assert len(result.best["iou"]) == 3
    card = flaxseg.read_model_card(workdir)
    assert (card["num_classes"], card["class_names"]) == (3, CLASSES)
    assert card["class_colors"] == COLORS
    model, variables = flaxseg.load_model(workdir)
    assert model_protocol(model) == Protocol(pad_to=(40, 48)), "not what it was evaluated with"
    assert predict(model, variables, image_of(0)).max() <= 2
    # The run goes on where the images were moved, and not where they were changed.
    moved = folder.rename(tmp_path / "elsewhere")
    config.data.manual_dir = str(moved)
    assert train_and_evaluate(config, str(workdir)).step == 2
    mask = sorted((moved / "masks" / "train").iterdir())[0]
    mask.write_bytes((moved / "masks" / "val" / "003.png").read_bytes())
    with pytest.raises(ConfigError, match=r"data\.fingerprint: was"):
        train_and_evaluate(config, str(workdir))


def test_data_that_fails_is_refused_before_the_first_step(config, folder, tmp_path):
    (folder / "masks" / "train" / "001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"001\.png: the file is empty"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    config.data.allow_problems = "undecodable"
    assert train_and_evaluate(config, str(tmp_path / "run")).step == 2


def test_usual_names_of_splits_need_no_setting(config, folder):
    for kind in ("images", "masks"):
        for split, name in (("train", "training"), ("val", "validation")):
            (folder / kind / split).rename(folder / kind / name)
    settings, _ = validate_config(config)
    assert (settings.data.train_split, settings.data.eval_split) == ("training", "validation")


def test_a_class_that_is_not_in_the_split_trained_on_is_refused(config, folder, tmp_path):
    (folder / "dataset.toml").write_text(TOML + '[[classes]]\nname = "bus"\ncolor = [1, 1, 1]\n')
    config.data.train_split = "train[:2]"
    with pytest.raises(DataError, match="no pixel of class 'bus' in train") as caught:
        train_and_evaluate(config, str(tmp_path / "run"))
    assert str(caught.value).endswith(" --config.data.allow_problems=absent_class")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data.manual_dir": ""}, "does not say where they are"),
        ({"data.name": "folder:/x"}, "write data.name='folder'"),
        ({"data.manual_dir": "/nowhere"}, "there is no folder /nowhere"),
        ({"data.eval_split": "test"}, "has no split 'test'; its splits: train, val"),
        ({"loss.class_weights": (1.0, 2.0)}, "has 2 values for 3 classes"),
        ({"data.allow_problems": "orphans"}, "Did you mean 'orphan'"),
    ],
)
def test_a_config_that_cannot_be_is_told_so(config, fields, words):
    for name, value in fields.items():
        section, field = name.split(".")
        config[section][field] = value
    with pytest.raises(ConfigError) as caught:
        validate_config(config)
    assert words in str(caught.value)
    assert str(caught.value).startswith("1 problem")


def test_the_recipe_is_that_for_camvid_without_its_weights(repository, config):
    get_config = runpy.run_path(str(repository / "configs" / "deeplab.py"))["get_config"]
    own, camvid = get_config("data=folder"), get_config("data=camvid")
    own.data.manual_dir = config.data.manual_dir
    assert data_name(own) == f"folder:{config.data.manual_dir}"
    assert own.data.eval_split == "val"
    assert own.loss.class_weights == ()
    assert own.model == camvid.model
    validate_config(own)
    assert np.isfinite(own.optimizer.learning_rate)
