"""Knows the usual names of splits, and what each is for."""

from collections.abc import Iterable, Sequence

TRAIN, VAL, TEST = "train", "val", "test"

_USUAL = {
    TRAIN: ("train", "training", "trn", "tr"),
    VAL: ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    TEST: ("test", "testing", "tst", "ts"),
}
"""What a split is for -> its names; case, underscores and "set" do not count: "Train_Set"."""


def role(name: str) -> str:
    """Returns what a split of this name is for: `TRAIN`, `VAL`, `TEST`, or "" if that is not known.

    A number at the end does not count.

    >>> [role(name) for name in ("training", "valid", "TestSet", "train2017", "trainval", "berlin")]
    ['train', 'val', 'test', 'train', '', '']
    """
    return _role_of(name.rstrip("0123456789"))


def split_for(wanted: str, names: Sequence[str]) -> str:
    """Returns the split that "train", "val" or "test" means among `names`, or "" if none is clear.

    >>> split_for("val", ["training", "validation"])
    'validation'
    >>> split_for("train", ["fold1", "fold2"]), split_for("train", ["train1", "train2"])
    ('', '')
    """
    found = [name for name in names if role(name) == wanted]
    if wanted in names:
        return wanted
    return found[0] if len(found) == 1 else ""


def own_name(name: str, names: Sequence[str]) -> str:
    """Returns the split in `names` that somebody means by one of the usual names, else `name`.

    >>> own_name("val", ["training", "validation"]), own_name("validation", ["train", "val"])
    ('validation', 'val')
    >>> own_name("train_3", ["train_1"])
    'train_3'
    """
    meant = "" if name in names else _role_of(name)
    return (split_for(meant, names) if meant else "") or name


def split_names(split: str) -> tuple[str, ...]:
    """Returns the names of splits in a spec: train and val of `"train[:4]+val"`."""
    return tuple(part.partition("[")[0].strip() for part in split.split("+"))


def in_usual_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the splits to train on first, then those to evaluate on, then the others.

    >>> in_usual_order(["extra", "testing", "valid", "val", "train"])
    ('train', 'val', 'valid', 'testing', 'extra')
    """
    roles = [*_USUAL, ""]
    known = [name for usual in _USUAL.values() for name in usual]

    def place(name: str) -> tuple[int, int]:
        return roles.index(role(name)), known.index(name) if name in known else len(known)

    return tuple(sorted(names, key=place))


def _role_of(name: str) -> str:
    plain = name.lower().replace("_", "").removesuffix("set")
    return next((role for role, usual in _USUAL.items() if plain in usual), "")
