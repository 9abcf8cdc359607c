"""Reads texts of settings that name something and change its arguments.

A text is `name`, `name(key=value, ...)`, or a sum such as `a + 0.5 * b(x=1)`. Values are Python
literals; nothing is evaluated.
"""

import ast
from collections.abc import Iterable
from typing import Any, NamedTuple

from flaxseg.errors import ConfigError, near

_MAX_LENGTH = 2000  # characters; longer ones could exhaust the parser


class Call(NamedTuple):
    """Holds a name with arguments.

    Attributes:
      name: what is named.
      arguments: values by argument name; a list in the text is a tuple here.
      factor: of a summand, above 0.
    """

    name: str
    arguments: dict[str, Any]
    factor: float = 1.0


def parse_call(text: str, what: str) -> Call:
    """Returns the name and the arguments in a text.

    Args:
      text: `name` or `name(key=value, ...)`.
      what: the kind of thing it names, for error messages: "protocol".

    Raises:
      ConfigError: the text has another form, or a value is not a literal.

    >>> parse_call("whole(scales=[0.5, 1.0])", "protocol")
    Call(name='whole', arguments={'scales': (0.5, 1.0)}, factor=1.0)
    """
    return _call(_parsed(text, what), text, what)


def parse_sum(text: str, what: str) -> tuple[Call, ...]:
    """Returns the summands of a text, from left to right.

    Args:
      text: as for `parse_call`, or a sum of such with factors.
      what: the kind of thing it names, for error messages: "loss".

    Raises:
      ConfigError: as for `parse_call`, or a factor is not a number above 0.

    >>> [(call.factor, call.name) for call in parse_sum("a + 0.5 * b(x=1)", "loss")]
    [(1.0, 'a'), (0.5, 'b')]
    """
    summands, rest = [], _parsed(text, what)
    while isinstance(rest, ast.BinOp) and isinstance(rest.op, ast.Add):
        summands.append(rest.right)
        rest = rest.left
    return tuple(_summand(node, text, what) for node in (rest, *reversed(summands)))


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Checks that a name is known.

    Raises:
      ConfigError: it is not; the message lists the known names and suggests the nearest one.
    """
    known = list(known)
    if name not in known:
        raise ConfigError(
            f"there is no {what} {name!r}; there are {', '.join(known)}.{near(name, known)}"
        )


def check_arguments(call: Call, known: Iterable[str], what: str) -> None:
    """Checks that what a text names has the arguments it sets.

    Raises:
      ConfigError: it lacks one; the message lists those it has and suggests the nearest one.
    """
    known = list(known)
    for argument in call.arguments:
        if argument not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"the {what} {call.name!r} has no argument {argument!r}; {has}."
                f"{near(argument, known)}"
            )


def _summand(node: ast.expr, text: str, what: str) -> Call:
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return _call(node, text, what)
    factor = _literal(node.left, text, what, "a factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
        raise ConfigError(f"the factor {factor!r} in {text!r} must be a number above 0.")
    return _call(node.right, text, what)._replace(factor=float(factor))


def _parsed(text: str, what: str) -> ast.expr:
    if len(text) > _MAX_LENGTH:
        raise ConfigError(
            f"the {what} {text[:60]!r} ... has {len(text)} characters; the most is {_MAX_LENGTH}."
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        ast.unparse(tree)  # what reads the tree, and quotes it, goes as deep
        return tree
    except (SyntaxError, ValueError) as error:  # ValueError: a null character
        raise _not_understood(text, what, f"at {_place(error)!r}") from None
    except (MemoryError, RecursionError):
        raise _not_understood(text, what, "it is nested too deeply") from None


def _place(error: SyntaxError | ValueError) -> str:
    """Returns the rest of a text from where Python's parser gave up."""
    text, offset = getattr(error, "text", None), getattr(error, "offset", None)
    return text[offset - 1 :].strip() if text and offset else str(error)


def _call(node: ast.expr, text: str, what: str) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id, {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _not_understood(text, what, f"{ast.unparse(node)} is not a name")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise _not_understood(text, what, f"the arguments of {node.func.id} need names")
    return Call(node.func.id, {k.arg: _literal(k.value, text, what, k.arg) for k in node.keywords})


def _literal(node: ast.expr, text: str, what: str, name: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):  # TypeError: a set or key that cannot be hashed
        given = ast.unparse(node)
        hint = near(given, ["True", "False", "None"]) or (
            f" Did you mean '{given}', in quotes?" if isinstance(node, ast.Name) else ""
        )
        raise _not_understood(text, what, f"{name} is {given}, not a literal value", hint) from None
    return tuple(value) if isinstance(value, list) else value


def _not_understood(text: str, what: str, why: str, hint: str = "") -> ConfigError:
    return ConfigError(
        f"the {what} {text!r} is not understood: {why}; write a name, or a name with arguments "
        f"such as name(number=2, text='a', flag=True, pair=(1, 2)).{hint}"
    )
