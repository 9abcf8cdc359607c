"""The commands that choose a recipe: `recipes`, `config`, and `train` without one."""

import itertools
import os
import pathlib
import subprocess
import sys

import pytest

from flaxseg import cli
from flaxseg.errors import ConfigError
from flaxseg.programs import recipe_list, train
from flaxseg.training.assemble import assemble
from flaxseg.training.config import default_config, field_names

DECLARED = recipe_list.declared_recipes()


def run(capsys, *arguments):
    """(exit code, stdout, stderr)."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("recipe", DECLARED, ids=lambda recipe: recipe.name)
def test_all_choices_have_valid_settings_and_every_score_is_of_one(recipe):
    keys = list(recipe.choices)
    for values in itertools.product(*recipe.choices.values()):
        choice = ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        config = recipe_list.load_recipe(f"{recipe.name}:{choice}")
        if config.data.name != "folder":  # whose classes are known where it lies
            assemble(config, device_count=1)
    for score in recipe.scores:
        assert score.data in recipe.choices["data"]
        assert 0 < score.miou < 100
    for data in recipe.choices["data"].values():
        assert len(data) == 2, "a backbone and the hardware"


def test_every_recipe_but_the_default_declares_itself():
    names = [recipe.name for recipe in DECLARED]

    assert sorted([*names, "default"]) == recipe_list.recipe_names()


def test_recipes_lists_each_with_its_scores(capsys):
    code, stdout, _ = run(capsys, "recipes")
    assert code == 0
    for recipe in DECLARED:
        assert f"\n{recipe.name} " in f"\n{stdout}"
    assert "50.2 % v3plus (measured after 600 steps)" in stdout
    assert "78.85 % v3plus (paper)" in stdout
    assert max(map(len, stdout.splitlines())) <= 120
    code, stdout, _ = run(capsys, "recipes", "deeplab")
    for words in ("xception", "8 x 32 GB and up", "77.23 %", "measured, from random weights"):
        assert words in stdout
    code, _, stderr = run(capsys, "recipes", "deeplap")
    assert code == 2
    assert "Did you mean 'deeplab'?" in stderr


def test_config_prints_all_fields_as_they_would_be(capsys, repository):
    given = ("deeplab:data=camvid", "--config.steps=7", "--config.data.crop_size=65,33")
    code, stdout, _ = run(capsys, "config", *given)
    assert code == 0
    lines = stdout.splitlines()
    assert "steps = 7" in lines
    assert "data.crop_size = (65, 33)" in lines
    assert "data.name = 'camvid'" in lines
    assert len(lines) == len(field_names(recipe_list.load_recipe(given[0])))
    path = repository / "configs" / "deeplab.py"
    same = run(capsys, "config", f"--config={path}:data=camvid", *given[1:])
    assert same[1] == stdout
    code, _, stderr = run(capsys, "config", "deeplab", "--config.stepz=7")
    assert code == 2
    assert "Did you mean 'steps'?" in stderr


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("deeplap", "Did you mean 'deeplab'?"),
        ("configz/deeplab.py:data=shapes", "the recipe 'deeplab' needs no path"),
        ("nowhere/mine.py", "nowhere/mine.py cannot be read"),
    ],
)
def test_a_recipe_that_is_not_there(recipe, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as info:
        recipe_list.find_recipe(recipe)
    assert words in str(info.value)


def test_a_file_of_your_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("mine.py").write_text(
        "from flaxseg.training.config import default_config\n"
        "def get_config(size):\n"
        "    config = default_config()\n"
        "    config.steps = int(size)\n"
        "    return config\n"
    )
    assert "steps = 12\n" in run(capsys, "config", "mine.py:12")[1]
    pathlib.Path("empty.py").write_text("")
    with pytest.raises(ConfigError, match="no function get_config"):
        recipe_list.load_recipe("empty.py")


def test_the_fields_of_the_help_exist():
    assert set(train.FIELDS) <= set(field_names(default_config()))


@pytest.mark.parametrize("program", [["train.py"], ["-m", "flaxseg", "train"]])
def test_train_without_a_recipe_shows_them_and_help_explains(program, repository, tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=repository,
            env=os.environ | {"FLAXSEG_DATA": str(tmp_path / "data")},
            capture_output=True,
            text=True,
        )

    bare = call()
    assert bare.returncode == 2
    assert "deeplab_v1" in bare.stdout
    assert "deeplab:data=shapes --workdir=runs/shapes" in bare.stdout
    assert bare.stderr.startswith("error: no recipe is given")
    assert not (tmp_path / "data").exists()
    explained = call("--help")
    assert explained.returncode == 0
    assert explained.stderr == ""
    for words in ("deeplab_v1", "--config.optimizer.learning_rate", "--coordinator", "75 stopped"):
        assert words in explained.stdout
    command = "python train.py" if program == ["train.py"] else "python -m flaxseg train"
    assert f"usage: {command} RECIPE" in explained.stdout


def test_the_list_of_recipes_needs_no_jax(repository):
    code = (
        "import sys; from flaxseg import cli; assert cli.main(['recipes']) == 0;"
        "assert not {'jax', 'flax', 'ml_collections', 'absl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True)
