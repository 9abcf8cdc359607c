"""The pages and docstrings whose examples are code: they run as they stand."""

import doctest
import functools
import importlib
import re
import subprocess
import sys

import pytest

PAGES = ["docs/reuse.md", "docs/crf.md"]
MODULES = ["flaxseg.models.registry", "flaxseg.classes", "flaxseg.errors"]


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
    loaded = {name.split(".")[0] for name in _loaded_by(module, before="flax.linen")}
    assert not set(unwanted) & loaded


def test_the_names_of_the_package_cost_nothing_and_layers_only_what_flax_costs():
    """So that `benchmarks/import_time.py` finds 0.02 and 1.0 times the time of Flax itself."""
    assert not [name for name in _loaded_by("flaxseg") if name.split(".")[0] in ("jax", "flax")]
    # Other names of what JAX has loaded already are left out.
    on_top = _loaded_by("flaxseg.layers", before="flax.linen") - {"jax.ad_checkpoint"}
    assert {name.split(".")[0] for name in on_top} == {"flaxseg"}


@functools.cache
def _loaded_by(module: str, before: str = "sys") -> set[str]:
    """The modules that an import brings into a fresh process, on top of those of another one."""
    code = (
        f"import sys, {before}; before = set(sys.modules); import {module};"
        "print(set(sys.modules) - before)"
    )
    return eval(subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1])
