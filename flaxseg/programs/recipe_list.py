"""`flaxseg recipes`: finds the recipes by name, reads what each declares, and lists them.

What a recipe declares is its docstring and the literal `RECIPE`, which are read without running the
file: the list needs neither JAX nor the packages for training.
"""

import argparse
import ast
import dataclasses
import pathlib
import runpy
from typing import TYPE_CHECKING

import flaxseg
from flaxseg.errors import ConfigError, near

if TYPE_CHECKING:
    from ml_collections import config_dict

NAME = "recipes"
SUMMARY = "list the recipes for training"
TEXT = """Lists the recipes: their variants, data sets, hardware and expected scores.

A recipe is given to 'train' by its name, with choices after a colon, or as a file of your own.
"""
EPILOG = """examples:
  python -m flaxseg recipes
  python -m flaxseg recipes deeplab
  python -m flaxseg train deeplab:variant=v3,data=shapes --workdir=runs/shapes
"""

_INDENT = " " * 13


@dataclasses.dataclass(frozen=True)
class Score:
    """Holds an mIoU to expect; `where` is "measured ..." or who published it."""

    data: str
    what: str
    miou: float
    where: str

    def __str__(self) -> str:
        return f"{self.miou:.4g} % {self.what} ({self.where})"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Holds what a recipe declares.

    Attributes:
      name: of the file, without `.py`.
      title: first line of its docstring.
      choices: for each key after the colon, its values with their meanings; the first value is the
        default. Those of `data` mean (backbone, hardware).
      scores: to expect, on each data set that of the default variant first.
    """

    name: str
    title: str
    choices: dict[str, dict]
    scores: tuple[Score, ...]


def recipes_folder() -> pathlib.Path:
    """Returns the folder of the recipes: in the package, or at the top of a clone."""
    package = pathlib.Path(flaxseg.__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Returns the names that stand for a file in `recipes_folder()`."""
    return sorted(file.stem for file in recipes_folder().glob("*.py"))


def find_recipe(recipe: str) -> str:
    """Returns `FILE` or `FILE:ARGUMENT` for a recipe given by name or by file.

    Args:
      recipe: such as `deeplab`, `deeplab:data=camvid` or `my/recipe.py:size=large`.

    Raises:
      ConfigError: there is no such recipe.
    """
    name, colon, argument = recipe.partition(":")
    file = pathlib.Path(name)
    if file.suffix == ".py" or len(file.parts) > 1:
        if file.is_file():
            return recipe
        known = file.stem in recipe_names()
        hint = f"the recipe {file.stem!r} needs no path" if known else "'flaxseg recipes' lists all"
        raise ConfigError(f"the recipe {name} cannot be read: there is no such file; {hint}.")
    if name not in recipe_names():
        raise ConfigError(
            f"there is no recipe {name!r}; 'flaxseg recipes' lists all, and a file of your own is "
            f"given by its path, such as ./{name or 'mine'}.py.{near(name, recipe_names())}"
        )
    return f"{recipes_folder() / name}.py{colon}{argument}"


def load_recipe(recipe: str) -> "config_dict.ConfigDict":
    """Returns the config of a recipe.

    Raises:
      ConfigError: there is no such recipe, it does not understand its argument, or it is no recipe.
    """
    file, colon, argument = find_recipe(recipe).partition(":")
    get_config = runpy.run_path(file).get("get_config")
    if get_config is None:
        raise ConfigError(f"the recipe {file} has no function get_config; see configs/default.py.")
    return get_config(argument) if colon else get_config()


def declared_recipes() -> list[Recipe]:
    """Returns what the recipes declare, read from their files without running them."""
    found = (_read_declaration(recipes_folder() / f"{name}.py") for name in recipe_names())
    return [recipe for recipe in found if recipe is not None]


def _read_declaration(file: pathlib.Path) -> Recipe | None:
    """Returns what a file declares, or None if it declares nothing."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    for statement in module.body:
        match statement:
            case ast.Assign(targets=[ast.Name("RECIPE")], value=literal):
                declared = ast.literal_eval(literal)
                title = ast.get_docstring(module).splitlines()[0].removesuffix(".")
                scores = tuple(Score(*score) for score in declared["scores"])
                return Recipe(file.stem, title, declared["choices"], scores)
    return None


def table() -> str:
    """Returns an overview of all recipes: for each, the default data set and what was measured."""
    lines = [f"{'recipe':<13}{'data':<14}{'hardware':<32}expected mIoU"]
    for recipe in declared_recipes():
        name = recipe.name
        for data in _shown_data(recipe):
            score = next((s for s in recipe.scores if s.data == data), "none published")
            lines.append(f"{name:<13}{data:<14}{recipe.choices['data'][data][1]:<32}{score}")
            name = ""
        for key, values in recipe.choices.items():
            lines.append(f"{_INDENT}{key}: {', '.join(values)}")
    return "\n".join(lines)


def _shown_data(recipe: Recipe) -> list[str]:
    """Returns the default data set and those with a measured score."""
    measured = [score.data for score in recipe.scores if score.where.startswith("measured")]
    return list(dict.fromkeys([next(iter(recipe.choices["data"])), *measured]))


def details(recipe: Recipe) -> str:
    """Returns all that a recipe declares, as text."""
    lines = [f"{recipe.name}: {recipe.title}", ""]
    for key, values in recipe.choices.items():
        lines.append(f"{key}, by default {next(iter(values))}:")
        for value, meaning in values.items():
            lines.append(
                f"  {value:<20} {meaning if isinstance(meaning, str) else ', '.join(meaning)}"
            )
        lines.append("")
    lines.append("expected mIoU:")
    for score in recipe.scores:
        lines.append(f"  {score.data:<13} {score.miou:6.2f} %  {score.what} ({score.where})")
    return "\n".join([*lines, "", f"file: {recipes_folder() / recipe.name}.py"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="show all of this one")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    declared = {recipe.name: recipe for recipe in declared_recipes()}
    if args.name is None:
        print(table())
        print("\nThe first value of each list is the default. All of one: flaxseg recipes RECIPE")
    elif args.name in declared:
        print(details(declared[args.name]))
    else:
        raise ConfigError(
            f"there is no recipe {args.name!r}; there are {', '.join(declared)}."
            f"{near(args.name, declared)}"
        )
    return 0
