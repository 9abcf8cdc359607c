"""A bound on the compiled programs that pictures of many sizes leave behind."""

from collections.abc import Hashable

MAX_SIZES = 64
"""Sizes whose programs are kept. A program of a small network takes some 5 MB of host memory, and
the pictures of VOC or ADE20K have hundreds of sizes."""


class ProgramLimit:
    """Makes jitted functions forget their programs when there are those of too many sizes.

    All are forgotten at a time, since JAX lets no single one go; those that are needed again are
    compiled again, or found in JAX_COMPILATION_CACHE_DIR.
    """

    def __init__(self, *functions, most: int = MAX_SIZES):
        """Nothing compiled yet.

        Args:
          functions: what `jax.jit` gave.
          most: sizes to keep, at least 1.
        """
        self._functions, self._most = functions, most
        self._sizes: set[Hashable] = set()

    def expect(self, size: Hashable) -> None:
        """To be called before the functions are, with what they are compiled for."""
        if size in self._sizes:
            return
        if len(self._sizes) >= self._most:
            for function in self._functions:
                function.clear_cache()
            self._sizes.clear()
        self._sizes.add(size)
