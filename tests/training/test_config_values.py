"""Values that no run can have: each is accepted or refused by the name of its field, at once."""

import functools
import math
import time

import pytest
import tiny_program

import flaxseg.training.network
from flaxseg.errors import ConfigError
from flaxseg.training import recipes
from flaxseg.training.config import default_config, flat_fields
from flaxseg.training.config_check import validate_config

ENDLESS = 10**400  # neither a float nor an int64 holds it
WRONG_TYPES = (None, b"x", {"a": 1}, object(), 1j)
WHOLE = (0, -1, 2**31, 2**63, 10**9, 10**20, ENDLESS, -ENDLESS, 1.5)
NUMBERS = (*WHOLE, math.nan, math.inf, -math.inf, 1e-300, 1e300, 5e-324)
TEXTS = (
    *("", " ", "\0", "a\0b", "/", "~nobody-here/x", "/dev/null", "/dev/null/x", "x" * 300),
    *("s3://bucket/run", "ftp:/x", "a,b", "a=1", "data=0", "data=" + "9" * 400, "train[:x]"),
    *("\udcff", "(" * 1000, "-" * 1000 + "1", "a+" * 900 + "a", "x" * 10**6, "a=b," * 900),
    *("*[a" * 500, "whole(scales=(1e9,))", "windows(window=10000000000)", "cross_entropy(x=1e999)"),
)
TUPLES = (
    *((), (0,), (0, 0), (-1, -1), (10**9, 10**9), (ENDLESS, ENDLESS), (1, 2, 3), (1,) * 10**6),
    *(
        (math.nan, math.nan),
        (1e-300, 1e300),
        ("a", "b"),
        (True, True),
        ((1, 2), (3, 4)),
        (1e9, 2e9),
    ),
)
FLOATS = tuple(value for value in NUMBERS if abs(value) != ENDLESS)  # ml_collections raises for it
VALUES = {bool: (0, 1, "yes"), int: NUMBERS, float: FLOATS, str: TEXTS, tuple: TUPLES}


@pytest.fixture(scope="module", autouse=True)
def shapes_are_derived_once():
    """The smallest model, whose shapes are derived once for each set of its options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(flaxseg.models.MODELS, "tiny", tiny_program.TINY)
        derive, known = flaxseg.training.network._shapes, {}

        def derive_once(model, size):
            key = repr((model, size))
            if key not in known:
                known[key] = derive(model, size)
            return known[key]

        patch.setattr(flaxseg.training.network, "_shapes", derive_once)
        yield


def small_config():
    config = default_config()
    config.model.name, config.model.backbone = "tiny", "resnet18"
    config.data.crop_size = (33, 33)
    return config


def set_field(config, field, value):
    """Sets a field to anything, as a config file can."""
    *sections, name = field.split(".")
    section = functools.reduce(lambda place, part: place[part], sections, config)
    with config.unlocked(), section.ignore_type():
        section[name] = value


@pytest.mark.parametrize("field", flat_fields(default_config()))
def test_any_value_of_a_field_is_accepted_or_refused_by_its_name(field):
    kind = type(flat_fields(default_config())[field])
    began = time.monotonic()
    others = (1, (1,)) if kind is str else ("", "x", (), {})
    messages = [refusal(field, value) for value in (*VALUES[kind], *WRONG_TYPES, *others)]
    assert sum(map(bool, messages)) >= len(WRONG_TYPES)
    assert max(map(len, messages)) < 10_000
    assert time.monotonic() - began < 30


def refusal(field, value):
    """Returns the message with which a value is refused, or ""."""
    config = small_config()
    set_field(config, field, value)
    try:
        validate_config(config)
    except ConfigError as error:
        if field.removesuffix(".weight") not in str(error):  # an output is named as a whole
            pytest.fail(f"{field}={value!r:.80} is not named: {error}")
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("seed", 2**63, "at most 4294967295"),
        ("steps", 10**20, "at most 2147483647"),
        ("optimizer.accumulate_steps", 0, "at least 1"),
        ("optimizer.learning_rate", 1e-300, "more than 0 by 1.17549e-38"),
        ("batch_size", 10**9, "GB of memory"),
        ("eval.pad_to", (60_000, 60_000), "lower one of them"),
        ("data.dir", "a\0b", "NUL"),
        ("data.cache_dir", "/dev/null/x", "Not a directory"),
        ("data.dir", "gopher://x/y", "mount the storage of gopher://"),
        ("init.bases", "~nobody-here/x", "home"),
        ("data.train_split", "train[:x]", "no part of a split"),
        ("data.scale_step", 1e-9, "0, or at least"),
        ("schedule.step_milestones", (1.5,), "increasing step numbers"),
        ("eval.protocol", "whole(scales=(1e9,))", "each up to 1000"),
        ("eval.protocol", "-" * 1999 + "1", "not understood"),
        ("optimizer.frozen", "x" * 10**6, "1000000 characters"),
        ("loss.class_weights", (1.0,) * 10**6, "1000000 items"),
    ],
)
def test_an_absurd_value_says_what_is_wanted(field, value, wanted):
    config = small_config()
    set_field(config, field, value)
    with pytest.raises(ConfigError, match=field) as info:
        validate_config(config)
    assert wanted in str(info.value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, ENDLESS, object(), b"x", "a\0b", (1,) * 9999]
)
def test_an_option_of_a_model_must_be_kept_as_json(value):
    config = small_config()
    recipes.set_options(config, rates=value)
    with pytest.raises(ConfigError, match=r"model\.options\.rates"):
        validate_config(config)
