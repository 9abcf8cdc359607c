"""Bounds the number of compiled programs that images of many sizes leave behind."""

import functools
from collections.abc import Callable, Hashable

import jax

MAX_SIZES = 64
"""Sizes whose programs are kept. A program of a small network takes some 5 MB of host memory, and
the images of VOC or ADE20K have hundreds of sizes."""


class ProgramCache:
    """Compiles functions, and makes them forget their programs once there are too many sizes.

    All programs are dropped together, since JAX cannot drop a single one; those that are needed
    again are compiled again, or found in JAX_COMPILATION_CACHE_DIR. The programs live as long as
    the compiled functions do.
    """

    def __init__(self):
        """Starts without functions."""
        self._functions: list[Callable] = []
        self._sizes: set[Hashable] = set()

    def compile(self, function: Callable, **options) -> Callable:
        """Returns `jax.jit(function, **options)`, with programs of its own."""
        # JAX shares programs between jitted forms of one function object; the partial is another.
        compiled = jax.jit(functools.partial(function), **options)
        self._functions.append(compiled)
        return compiled

    def expect(self, size: Hashable) -> None:
        """Makes room for the programs of a size; called before the functions are, with all that
        decides whether they compile."""
        if size in self._sizes:
            return
        if len(self._sizes) >= MAX_SIZES:
            for function in self._functions:
                function.clear_cache()
            self._sizes.clear()
        self._sizes.add(size)
