"""Texts in drawings: what the font lacks is in Latin letters, never a box."""

import doctest

import numpy as np
import pytest
from PIL import ImageFont

from flaxseg.classes import voc_colors
from flaxseg.drawing import texts, with_legend
from flaxseg.drawing.texts import drawable, drawable_names

LATIN = {
    "道路": "DaoLu",
    "автомобиль": "avtomobil'",
    "طريق": "tryq",
    "सड़क": "sd'k",
    "보행자": "BoHaengJa",
    "ひと": "hito",
    "Straße": "Strasse",
    "cafe\u0301": "cafe",
    "road 2 (wet)": "road 2 (wet)",
}


def is_box(character):
    font = ImageFont.load_default(size=14)
    return bytes(font.getmask(character)) == bytes(font.getmask("\uffff"))


@pytest.mark.parametrize("name", LATIN)
def test_characters_that_the_font_lacks_are_written_in_latin_letters(name):
    assert drawable(name) == LATIN[name]
    assert not any(is_box(character) for character in drawable(name) if character != " ")


def test_a_legend_has_no_boxes_and_says_what_it_wrote(caplog):
    texts._drawable_names.cache_clear()
    names, latin = tuple(LATIN), tuple(LATIN.values())
    image, colors = np.full((100, 300, 3), 200, np.uint8), voc_colors(len(LATIN))
    drawn = with_legend(image, range(len(names)), names, colors)
    np.testing.assert_array_equal(drawn, with_legend(image, range(len(names)), latin, colors))
    assert caplog.text.count("道路 as DaoLu") == 1
    assert "road 2 (wet)" not in caplog.text
    with_legend(image, [0], names, colors)
    assert caplog.text.count("道路 as DaoLu") == 1, "said for every image"


def test_names_of_ascii_characters_stay_without_a_word(caplog):
    names = ("".join(map(chr, range(32, 127))), "tree")
    assert drawable_names(names) == names
    assert not caplog.text
    assert not doctest.testmod(texts).failed
