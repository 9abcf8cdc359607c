"""Texts of settings: names with arguments, and sums of them."""

import doctest

import pytest

from flaxseg import call_text
from flaxseg.call_text import Call, check_arguments, check_name, parse_call, parse_sum
from flaxseg.errors import ConfigError


def test_examples():
    assert not doctest.testmod(call_text).failed


def test_calls():
    assert parse_call(" whole ", "protocol") == Call("whole", {})
    assert parse_call("a()", "protocol") == Call("a", {})
    values = {"a": -1.5, "b": (1, 2), "c": "x, y(z=1)", "d": None, "e": True, "f": (0.5,)}
    text = f"name({', '.join(f'{key}={value!r}' for key, value in values.items())})"
    assert parse_call(text, "protocol").arguments == values


def test_sums_keep_their_order():
    calls = parse_sum("2 * a(x=1) + b + 0.5 * c(y=(1, 2))", "loss")
    assert calls == (Call("a", {"x": 1}, 2.0), Call("b", {}), Call("c", {"y": (1, 2)}, 0.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the loss '' is not understood"),
        ("two words", "not understood: at 'words'"),
        ("a(1)", "the arguments of a need names"),
        ("a(**{'x': 1})", "the arguments of a need names"),
        ("a(x=__import__('os'))", r"x is __import__\('os'\), not a literal value"),
        ("a(flip=true)", "flip is true, not a literal value.*Did you mean 'True'"),
        ("a(mode=after)", "mode is after, not a literal value.*'after', in quotes"),
        ("a(x={[]})", "not a literal value"),
        ("a.b", "a.b is not a name"),
        ("a.b()", r"a.b\(\) is not a name"),
        ("a - b", "a - b is not a name"),
        ("a * 2", "a factor is a, not a literal value"),
        ("2", "2 is not a name"),
        ("0 * a", "the factor 0 in '0 . a' must be a number above 0"),
        ("True * a", "the factor True"),
        ("a\0", "not understood"),
    ],
)
def test_texts_of_another_form_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_sum(text, "loss")


def test_a_sum_is_not_a_call():
    with pytest.raises(ConfigError, match=r"a \+ b is not a name"):
        parse_call("a + b", "protocol")


def test_unknown_names_and_arguments_come_with_suggestions():
    check_name("focal", ["dice", "focal"], "loss")
    with pytest.raises(ConfigError, match=r"no loss .focl.; there are dice, focal\. Did you mean"):
        check_name("focl", ["dice", "focal"], "loss")
    check_arguments(Call("focal", {"gamma": 2}), ["alpha", "gamma"], "loss")
    with pytest.raises(ConfigError, match=r"'focal' has no argument 'gama'.*Did you mean 'gamma'"):
        check_arguments(Call("focal", {"gama": 2}), ["alpha", "gamma"], "loss")
    with pytest.raises(ConfigError, match="'dice' has no argument 'x'; it has none"):
        check_arguments(Call("dice", {"x": 2}), [], "loss")
