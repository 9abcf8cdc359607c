"""Chooses among equal forms of a layer the one that suits the platform.

XLA's own convolution, pooling and matrix product are the fastest on GPUs and TPUs. On a CPU some of
them run several times faster when written as other sums of the same terms. Each layer for which
that was measured (`benchmarks/layers.py`) has an argument `form`; the forms give the same value and
gradient up to the order of float additions.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from flaxseg.layers.split_rows import rows_are_split

FORMS = ("native", "products")

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("form", default=None)


def preferred_form() -> str:
    """Returns the form that `"auto"` stands for: that of `convolution_form`, by default
    `"products"` where JAX's default backend is the CPU and the rows of images are not split over
    devices, else `"native"`, the forms that XLA can split.

    This is the only place where a platform decides; every layer with a `form` argument asks it.
    """
    fast_on_cpu = jax.default_backend() == "cpu" and not rows_are_split()
    return _chosen.get() or ("products" if fast_on_cpu else "native")


def resolve_form(form: str) -> str:
    """Returns the form that an argument `form` means: one of `FORMS`.

    Args:
      form: one of `FORMS`, or `"auto"` for `preferred_form()`.

    Raises:
      ValueError: the form is none of these.
    """
    if form == "auto":
        return preferred_form()
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it must be 'auto', 'native' or 'products'.")
    return form


@contextlib.contextmanager
def convolution_form(form: str) -> Iterator[None]:
    """Makes `"auto"` mean this form for whatever is traced inside, as for a program that will run
    elsewhere.

    A function that `jax.jit` has traced before keeps the form that it has.

    Args:
      form: `"native"` or `"products"`.

    Raises:
      ValueError: the form is none of these.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it must be 'native' or 'products'.")
    token = _chosen.set(form)
    try:
        yield
    finally:
        _chosen.reset(token)
