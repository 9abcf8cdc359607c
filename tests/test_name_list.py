"""Lists of names, as editors, shells and `find` write them."""

import doctest
import os

import pytest

from flaxseg import name_list
from flaxseg.errors import DataError
from flaxseg.name_list import names_in_list


def test_examples():
    assert doctest.testmod(name_list).failed == 0


def test_bytes_that_are_not_utf_8_and_odd_names_are_kept():
    assert names_in_list(b"odd\xff.png\n with space \n\n*.png") == [
        os.fsdecode(b"odd\xff.png"),
        " with space ",
        "*.png",
    ]
    assert names_in_list(b"two\nlines.png\0b.png") == ["two\nlines.png", "b.png"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding):
    with pytest.raises(DataError, match="in UTF-16; save it as UTF-8"):
        names_in_list("photos/a.png\r\n".encode(encoding))
