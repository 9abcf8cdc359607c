"""The pages and docstrings whose examples are code: they run as they stand."""

import doctest
import importlib
import re
import subprocess
import sys

import pytest

PAGES = ["docs/reuse.md", "docs/crf.md"]
MODULES = ["flaxseg.models"]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_page_run(repository, page):
    text = (repository / page).read_text()
    blocks = [
        (text[: match.start()].count("\n") + 2, match.group(1))
        for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    ]
    assert blocks
    names = {"__name__": "page"}
    for line, block in blocks:
        exec(compile("\n" * (line - 1) + block, page, "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "flaxseg.layers",
            ["tensorflow", "tensorflow_datasets", "grain", "orbax", "ml_collections", "cv2", "PIL"],
        ),
        (
            "flaxseg.crf",
            ["tensorflow", "tensorflow_datasets", "grain", "orbax", "ml_collections", "cv2", "PIL"],
        ),
        (
            "flaxseg.models",
            ["tensorflow", "tensorflow_datasets", "grain", "orbax", "ml_collections"],
        ),
        ("flaxseg.training.loop", ["tensorflow", "torch"]),
    ],
)
def test_import_brings_no_more_than_it_needs(module, unwanted):
    # Flax itself imports Orbax (for its own checkpoints); what counts is what comes on top of it.
    code = (
        "import sys, flax.linen; before = set(sys.modules);"
        f"import {module};"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = eval(subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1])
    assert not set(unwanted) & set(loaded)
