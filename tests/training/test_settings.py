"""Settings that check themselves, and the fields of a config that their errors name."""

import doctest

import pytest

from flaxseg import errors, settings
from flaxseg.errors import ConfigError, SettingsError
from flaxseg.settings import Problems
from flaxseg.training import default_config, field_texts, recipes, validate_config
from flaxseg.training.timetable import Timetable


def test_a_timetable_says_what_follows_a_step():
    timetable = Timetable(steps=10, report_every=4, evaluate_every=6, save_every=3)
    steps = range(1, 11)
    assert [s for s in steps if timetable.reports(s)] == [4, 8, 10]
    assert [s for s in steps if timetable.evaluates(s)] == [6, 10]
    assert [s for s in steps if timetable.saves(s)] == [3, 6, 9, 10]
    rare = Timetable(steps=10, report_every=20, evaluate_every=0, save_every=0)
    assert [s for s in steps if rare.reports(s) or rare.saves(s)] == [10]
    with pytest.raises(SettingsError, match="report_every is 0; it must be at least 1"):
        Timetable(steps=10, report_every=0, evaluate_every=0, save_every=0)


def test_problems_are_collected_under_the_names_of_their_fields():
    def fail(*problems):
        raise SettingsError(problems)

    problems = Problems()
    assert problems.make("a.", lambda x: x + 1, 2) == 3
    assert problems.make("a.", lambda: None) is True
    renamed = {"y": "elsewhere"}
    assert problems.make("a.", fail, ("x", "is 1"), ("y", "is 2"), fields=renamed) is None
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*a\.x is 1.*elsewhere is 2"):
        problems.raise_all()


@pytest.mark.parametrize(
    ("options", "model", "field"),
    [
        ({"rates": 0}, {}, r"model\.options\.rates is 0; deeplabv3plus cannot be built"),
        ({"dropot": 0.5}, {}, r"model\.options\.dropot .* no option dropot"),
        ({"low_level_features": -3}, {}, r"model\.options\.low_level_features is -3"),
        ({}, {"output_stride": 0}, r"model\.output_stride is 0"),
        ({}, {"output_stride": 12}, r"model\.output_stride is 12"),
        ({"backbone_options": {"width": 0.5}}, {"backbone": "resnet51"}, r"model\.backbone is"),
        ({"backbone_options": {"widht": 0.5}}, {}, r"model\.options\.backbone_options is"),
    ],
)
def test_the_field_is_named_with_which_no_model_can_be_built(options, model, field):
    config = default_config()
    recipes.set_options(config, **options)
    for name, value in model.items():
        config.model[name] = value
    with pytest.raises(ConfigError, match=field) as info:
        validate_config(config)
    assert str(info.value).startswith("1 problem")


def test_a_network_without_end_is_not_traced_to_its_end(monkeypatch):
    monkeypatch.setattr("flaxseg.saved_model.tensors._MAX_CALLS", 300)
    config = default_config()
    config.model.backbone = "resnet18"
    recipes.set_options(config, backbone_options={"stage_sizes": (9999, 1, 1, 1)})
    with pytest.raises(
        ConfigError, match=r"model\.options\.backbone_options .* more than 300 layers"
    ):
        validate_config(config)


def test_losses_and_paths_that_fit_nothing_are_named_together():
    config = default_config()
    recipes.set_output_loss(config, "border", weight=0.5)
    config.optimizer.frozen = "backbon"
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    assert "loss.outputs.border is a loss for an output that the model does not" in str(info.value)
    assert "optimizer.frozen has 'backbon', which fits no parameter" in str(info.value)
    assert "Did you mean 'backbone'?" in str(info.value)


def test_examples():
    for module in (errors, field_texts, settings):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
