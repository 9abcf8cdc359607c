"""Chooses among equal forms of a layer the one that suits the platform.

XLA's own convolution, pooling and matrix product are the fastest on TPUs. On a CPU some of them run
several times faster when written as other sums of the same terms. On a GPU some gradients are
convolutions that cuDNN has no good kernel for unless they are written otherwise. Each layer for
which that was measured (`benchmarks/layers.py`) or counted (`docs/accelerators.md`) has an argument
`form`:

* `"native"`: what XLA has of its own.
* `"products"`: sums of matrix products or of weighted terms, for CPUs.
* `"phases"`: XLA's convolutions, the gradients of their kernels taken phase by phase of the
  dilation or the stride, for GPUs. A layer that has no such form takes the better of the others.

The forms give the same value and gradient up to the order of float additions. All but `"native"`
have gradients of their own, in reverse mode only.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from flaxseg.layers.split_rows import rows_are_split

FORMS = ("native", "products", "phases")
PLATFORMS = ("cpu", "gpu", "tpu")

_FORM_OF_PLATFORM = {"cpu": "products", "gpu": "phases"}

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("form", default=None)
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def preferred_form() -> str:
    """Returns the form that `"auto"` stands for: that of `convolution_form`, by default that of the
    platform, which is the one of `traced_for` or JAX's default backend. Where the rows of images
    are split over devices, that is `"native"`, the forms that XLA can split.

    This is the only place where a platform decides; every layer with a `form` argument asks it.
    """
    platform = _platform.get() or jax.default_backend()
    of_platform = "native" if rows_are_split() else _FORM_OF_PLATFORM.get(platform, "native")
    return _chosen.get() or of_platform


def resolve_form(form: str) -> str:
    """Returns the form that an argument `form` means: one of `FORMS`.

    Args:
      form: one of `FORMS`, or `"auto"` for `preferred_form()`.

    Raises:
      ValueError: the form is none of these.
    """
    if form == "auto":
        return preferred_form()
    _check(form, "form", ("auto", *FORMS))
    return form


@contextlib.contextmanager
def convolution_form(form: str) -> Iterator[None]:
    """Makes `"auto"` mean this form for whatever is traced inside.

    A function that `jax.jit` has traced before keeps the form that it has.

    Args:
      form: one of `FORMS`.

    Raises:
      ValueError: the form is none of these.
    """
    _check(form, "form", FORMS)
    token = _chosen.set(form)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Makes `"auto"` mean the form of this platform for whatever is traced inside: for a program
    that is compiled here and runs elsewhere.

    A function that `jax.jit` has traced before keeps the form that it has.

    Args:
      platform: one of `PLATFORMS`, as `jax.Device.platform` names it.

    Raises:
      ValueError: the platform is none of these.
    """
    _check(platform, "platform", PLATFORMS)
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def _check(value: str, name: str, known: tuple[str, ...]) -> None:
    if value not in known:
        *others, last = map(repr, known)
        raise ValueError(f"{name} is {value!r}; it must be {', '.join(others)} or {last}.")
