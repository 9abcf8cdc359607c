"""Names of files about the images of a data set."""

import doctest

from flaxseg import paths
from flaxseg.paths import file_name


def test_examples():
    assert doctest.testmod(paths).failed == 0


def test_different_subjects_have_different_names_that_any_disk_takes():
    subjects = [
        "a/b",
        "a_b",
        "a__b",
        "a/_b",
        "a_/b",
        "a//b",
        "/a",
        "a b",
        "a:b",
        "..",
        ".a",
        "",
        "é",
    ]
    subjects += ["x" * 300, "x" * 301, "é" * 300, "odd\udcff", "a/../b"]
    names = [file_name(subject) for subject in subjects]
    assert len(set(names)) == len(subjects)
    for name in names:
        assert len(f"first_000_{name}.png".encode()) < 256
        assert not set(name) & set('/\\: ?*"<>|\0')
        assert not name.startswith(".")
