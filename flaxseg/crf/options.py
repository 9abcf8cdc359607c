"""Reads and writes a CRF as text, such as that of `--crf`: a preset, with parameters changed."""

from flaxseg.call_text import check_arguments, check_name, parse_call
from flaxseg.crf import NORMALIZATIONS, PRESETS, BilateralKernel, CrfPreset, GaussianKernel
from flaxseg.errors import ConfigError, near

PARAMETERS = ("w1", "sigma_alpha", "sigma_beta", "w2", "sigma_gamma", "iterations", "normalization")
# Parameters of a CRF that is no preset are written as changes of this one.
_BASE = "deeplab_v2_vgg16"


def parse_crf(text: str) -> CrfPreset:
    """Returns the CRF that `PRESET` or `PRESET(parameter=value, ...)` stands for.

    >>> parse_crf("deeplab_v1_largefov(w1=5)").kernels[1].compat
    5.0

    Raises:
      ConfigError: a name is unknown or a value impossible.
    """
    call = parse_call(text, "CRF")
    check_name(call.name, PRESETS, "CRF preset")
    check_arguments(call, PARAMETERS, "CRF preset")
    changed = {name: _checked(name, value) for name, value in call.arguments.items()}
    return make_crf(**(describe_crf(PRESETS[call.name]) | changed))


def make_crf(
    w1: float,
    sigma_alpha: float,
    sigma_beta: float,
    w2: float,
    sigma_gamma: float,
    iterations: int,
    normalization: str,
) -> CrfPreset:
    """Returns the CRF of these parameters, named as in the papers."""
    return CrfPreset(
        (
            GaussianKernel(sigma_gamma, w2, normalization),
            BilateralKernel(sigma_alpha, sigma_beta, w1, normalization),
        ),
        iterations,
    )


def describe_crf(crf: CrfPreset) -> dict[str, float | int | str]:
    """Returns the parameters of a CRF by name; the inverse of `make_crf`."""
    gaussian, bilateral = crf.kernels
    return {
        "w1": bilateral.compat,
        "sigma_alpha": bilateral.sigma_xy,
        "sigma_beta": bilateral.sigma_rgb,
        "w2": gaussian.compat,
        "sigma_gamma": gaussian.sigma,
        "iterations": crf.iterations,
        "normalization": bilateral.normalization,
    }


def format_crf(crf: CrfPreset) -> str:
    """Returns the text that `parse_crf` reads.

    >>> format_crf(parse_crf("deeplab_v2_vgg16(iterations=5, normalization='none')"))
    "deeplab_v2_vgg16(iterations=5, normalization='none')"
    """
    for name, preset in PRESETS.items():
        if crf == preset:
            return name
    base = describe_crf(PRESETS[_BASE])
    changed = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value!r}"
        for name, value in describe_crf(crf).items()
        if value != base[name]
    ]
    return f"{_BASE}({', '.join(changed)})"


def _checked(name: str, value: object) -> float | int | str:
    """Returns the value of a parameter in its type, if it may have that value."""
    if name == "normalization":
        if value not in NORMALIZATIONS:
            raise ConfigError(
                f"normalization is {value!r}; it must be one of {', '.join(NORMALIZATIONS)}."
                f"{near(value, NORMALIZATIONS)}"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} is {value!r}; give a number.")
    if name == "iterations" and not isinstance(value, int):
        raise ConfigError(f"iterations is {value!r}; give a whole number.")
    if name.startswith("sigma") and not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {value}; it must be above 0.")
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is {value}; it must be 0 or more.")
    return value if name == "iterations" else float(value)
