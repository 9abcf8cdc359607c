"""Reads `dataset.toml`, which describes a folder of the user's own images and masks."""

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from flaxseg.classes import IGNORE_LABEL, check_class_names
from flaxseg.errors import ConfigError, DataError, near

FILE_NAME = "dataset.toml"

Color = tuple[int, int, int]

_TEXTS = (
    "name",
    "description",
    "license",
    "citation",
    "homepage",
    "images",
    "masks",
    "image_suffix",
    "mask_suffix",
    "mask_values",
    "eval_split",
)
_KEYS = (*_TEXTS, "ignore_ids", "ignore_colors", "val_share", "classes", "splits")
_CLASS_KEYS = ("name", "color", "ids", "mask_colors")
_MAX_CLASSES = 255  # train ids are bytes, and 255 is "ignore"


@dataclasses.dataclass(frozen=True)
class FolderFile:
    """Holds a `dataset.toml` that has been read and checked.

    Attributes:
      path: the file.
      name: of the data set, `[A-Za-z0-9_.-]+`.
      class_names: in the order of the train ids.
      class_colors: for drawings, one per class; None to choose some.
      ids: raw id -> train id or 255; for masks of ids.
      mask_colors: RGB -> train id or 255; for masks of colours, else None.
      images, masks: the folders.
      image_suffix, mask_suffix: ends of file names, before the extension, in which an image and
        its mask differ.
      splits: name -> list file; empty if folders are the splits.
      val_share: the share of images to hold out if there are no splits.
      eval_split: the split whose score is reported; "" for the usual one.
      description, license, citation, homepage: texts, possibly "".
    """

    path: pathlib.Path
    name: str
    class_names: tuple[str, ...]
    class_colors: tuple[Color, ...] | None
    ids: Mapping[int, int]
    mask_colors: Mapping[Color, int] | None
    images: pathlib.Path
    masks: pathlib.Path
    image_suffix: str
    mask_suffix: str
    splits: Mapping[str, pathlib.Path]
    val_share: float
    eval_split: str
    description: str
    license: str
    citation: str
    homepage: str


def read_folder_file(path: pathlib.Path, reserved: Iterable[str] = ()) -> FolderFile:
    """Reads and checks a `dataset.toml`.

    Args:
      path: the file.
      reserved: the names of other data sets.

    Raises:
      DataError: it cannot be read, or what it says is impossible; all problems are listed.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}; save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not TOML: {error}") from None
    return _Reader(path, content, reserved).read()


class _Reader:
    """Reads the fields one by one and collects what is wrong with them."""

    def __init__(self, path: pathlib.Path, content: dict[str, Any], reserved: Iterable[str]):
        self._path = path
        self._content = content
        self._reserved = set(reserved)
        self._problems: list[str] = []

    def read(self) -> FolderFile:
        self._check_keys("", self._content, _KEYS)
        texts = {key: self._text(key) for key in _TEXTS}
        root = self._path.parent
        own_name = root.resolve().name if self._path.name == FILE_NAME else self._path.stem
        classes = self._classes()
        values = texts["mask_values"] or "ids"
        if values not in ("ids", "colors"):
            self._wrong(f'mask_values is {values!r}; it must be "ids" or "colors"')
        self._check_one_kind_of_values(values)
        result = FolderFile(
            path=self._path,
            name=self._name(texts["name"], own_name),
            class_names=tuple(name for name, *_ in classes),
            class_colors=self._class_colors(classes, values),
            ids=self._ids(classes) if values == "ids" else {},
            mask_colors=self._mask_colors(classes) if values == "colors" else None,
            images=root / (texts["images"] or "images"),
            masks=root / (texts["masks"] or "masks"),
            image_suffix=texts["image_suffix"],
            mask_suffix=texts["mask_suffix"],
            splits=self._splits(root),
            val_share=self._val_share(),
            eval_split=texts["eval_split"],
            description=texts["description"] or "Own images and masks.",
            license=texts["license"],
            citation=texts["citation"],
            homepage=texts["homepage"],
        )
        if self._problems:
            number = len(self._problems)
            raise DataError(
                f"{self._path} has {'1 problem' if number == 1 else f'{number} problems'}:\n"
                + "\n".join(f"  - {problem}" for problem in self._problems)
            )
        return result

    def _wrong(self, problem: str) -> None:
        self._problems.append(problem)

    def _check_keys(self, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in table:
            if key in known:
                continue
            hint = near(key, known) or f" Known: {', '.join(known)}."
            if where and key in _KEYS:
                hint = " It belongs above the first [[classes]], outside of any table."
            self._wrong(f"{where}there is no key {key!r}.{hint}")

    def _check_one_kind_of_values(self, values: str) -> None:
        """Reports keys about ids where masks hold colours, and the other way round."""
        other = "ids" if values == "colors" else "colors"
        above, of_class = {
            "ids": ("ignore_ids", "ids"),
            "colors": ("ignore_colors", "mask_colors"),
        }[other]
        tables = self._content.get("classes", [])
        found = [above] if above in self._content else []
        if isinstance(tables, list) and any(of_class in table for table in tables):
            found.append(of_class)
        for key in found:
            self._wrong(f'{key} has a meaning with mask_values = "{other}" only')

    def _text(self, key: str) -> str:
        value = self._content.get(key, "")
        if isinstance(value, str):
            return value
        self._wrong(f"{key} is {value!r}; it must be a text in quotes")
        return ""

    def _name(self, given: str, default: str) -> str:
        name = given or re.sub(r"[^\w.-]+", "_", default)
        if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII):
            self._wrong(
                f"the name of the data set is {name!r}; it must begin with a letter or digit and "
                'hold letters, digits, "_", "-" and "." only; set name = "..."'
            )
        elif name in self._reserved:
            self._wrong(f'{name!r} is the name of another data set; set name = "..."')
        return name

    def _classes(self) -> list[tuple[str, Color | None, list[int], list[Color]]]:
        """Returns (name, color or None, ids, mask colours) of each class."""
        tables = self._content.get("classes", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._wrong('classes must be tables, each as [[classes]] with name = "..." below it')
            return []
        if not 2 <= len(tables) <= _MAX_CLASSES:
            self._wrong(
                f"there are {len(tables)} classes; wanted 2 to {_MAX_CLASSES}. What belongs to no "
                "other class is a class too: name it, such as 'background'"
            )
        classes = []
        for number, table in enumerate(tables):
            name = table.get("name")
            try:
                check_class_names([name])
            except ConfigError as error:
                self._wrong(f'class {number}: {error} Give it as name = "..."')
                name = f"class {number}"
            where = f"class {name!r}: "
            self._check_keys(where, table, _CLASS_KEYS)
            color = self._color(where, table["color"]) if "color" in table else None
            ids = table.get("ids", [number])
            if not isinstance(ids, list) or not all(map(_is_id, ids)):
                self._wrong(f"{where}ids is {ids!r}; wanted a list of whole numbers 0..65535")
                ids = []
            mask_colors = table.get("mask_colors", [] if color is None else [list(color)])
            if not isinstance(mask_colors, list):
                self._wrong(f"{where}mask_colors is {mask_colors!r}; wanted a list of colours")
                mask_colors = []
            found = [self._color(where, value) for value in mask_colors]
            classes.append((name, color, ids, [value for value in found if value is not None]))
        names = [name for name, *_ in classes]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._wrong(f"there are {names.count(name)} classes named {name!r}")
        return classes

    def _class_colors(self, classes: list, values: str) -> tuple[Color, ...] | None:
        missing = [name for name, color, *_ in classes if color is None]
        first: dict[Color, str] = {}
        for name, color, *_ in classes:
            if color is not None and first.setdefault(color, name) != name:
                self._wrong(
                    f"classes {first[color]!r} and {name!r} have one color, {list(color)}; give "
                    "them two, or nobody can tell them apart in a drawing"
                )
        if not missing:
            return tuple(color for _, color, *_ in classes)
        if len(missing) < len(classes) or values == "colors":
            self._wrong(
                f"no color is given for {', '.join(map(repr, missing))}; "
                + (
                    'with mask_values = "colors" every class needs one'
                    if values == "colors"
                    else "give one for every class, or for none"
                )
            )
        return None

    def _ids(self, classes: list) -> dict[int, int]:
        used = {value for *_, ids, _ in classes for value in ids}
        # Masks of two classes often hold 0 and 255.
        ignored = self._content.get("ignore_ids", list({IGNORE_LABEL} - used))
        if not isinstance(ignored, list) or not all(map(_is_id, ignored)):
            self._wrong(f"ignore_ids is {ignored!r}; wanted a list of whole numbers 0..65535")
            ignored = []
        pairs = [(value, number) for number, (_, _, ids, _) in enumerate(classes) for value in ids]
        pairs += [(value, IGNORE_LABEL) for value in ignored]
        return self._one_meaning("id", pairs, classes)

    def _mask_colors(self, classes: list) -> dict[Color, int]:
        ignored = self._content.get("ignore_colors", [])
        if not isinstance(ignored, list):
            self._wrong(f"ignore_colors is {ignored!r}; wanted a list of colours")
            ignored = []
        pairs = [(color, number) for number, (*_, colors) in enumerate(classes) for color in colors]
        colors = [self._color("ignore_colors: ", value) for value in ignored]
        pairs += [(color, IGNORE_LABEL) for color in colors if color is not None]
        return self._one_meaning("mask colour", pairs, classes)

    def _one_meaning(self, what: str, pairs: list[tuple[Any, int]], classes: list) -> dict:
        """Returns the pairs as a dict; reports a key that stands for two things."""

        def meaning(number: int) -> str:
            return "ignore" if number == IGNORE_LABEL else repr(classes[number][0])

        result: dict[Any, int] = {}
        for key, number in pairs:
            if result.setdefault(key, number) != number:
                self._wrong(
                    f"{what} {key} stands for {meaning(result[key])} and for {meaning(number)}"
                )
        return result

    def _color(self, where: str, value: Any) -> Color | None:
        if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
            return (int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16))
        if isinstance(value, list) and len(value) == 3 and all(_is_byte(v) for v in value):
            return (value[0], value[1], value[2])
        self._wrong(
            f'{where}the colour is {value!r}; wanted [red, green, blue] of 0..255 or "#rrggbb"'
        )
        return None

    def _splits(self, root: pathlib.Path) -> dict[str, pathlib.Path]:
        table = self._content.get("splits", {})
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            self._wrong('[splits] must hold lines such as train = "train.txt"')
            return {}
        for name in table:
            if not is_split_name(name):
                self._wrong(f"[splits]: {name!r} cannot name a split; {SPLIT_NAMES}")
        return {name: root / file for name, file in table.items()}

    def _val_share(self) -> float:
        share = self._content.get("val_share", 0.0)
        if isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share < 1:
            return float(share)
        self._wrong(f"val_share is {share!r}; it must be at least 0 and less than 1, such as 0.1")
        return 0.0


SPLIT_NAMES = 'use letters, digits and "_", and not "all"'


def is_split_name(name: str) -> bool:
    """Returns whether a split can have this name; TFDS reserves "all"."""
    return re.fullmatch(r"\w+", name, re.ASCII) is not None and name != "all"


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535
