"""The text of `--crf`: a preset, parameters, or a preset with some of them changed."""

from flaxseg.crf import NORMALIZATIONS, PRESETS, BilateralKernel, CrfPreset, GaussianKernel
from flaxseg.errors import ConfigError

PARAMETERS = ("w1", "sigma_alpha", "sigma_beta", "w2", "sigma_gamma", "iterations", "normalization")
# Of these, parameters alone change the ones that are not named.
_DEFAULT = "deeplab_v2_vgg16"


def parse_crf(text: str) -> CrfPreset:
    """The CRF that `PRESET`, `NAME=VALUE,...` or `PRESET,NAME=VALUE,...` stands for.

    >>> parse_crf("deeplab_v1_largefov,w1=5").kernels[1].compat
    5.0

    Raises:
      ConfigError: a name is unknown or a value impossible.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    if "=" in first:
        first, rest = _DEFAULT, [first, *rest]
    if first not in PRESETS:
        raise ConfigError(
            f"there is no CRF preset {first!r}; presets: {', '.join(PRESETS)}; parameters are "
            f"given as NAME=VALUE,NAME=VALUE with the names {', '.join(PARAMETERS)}."
        )
    values = describe_crf(PRESETS[first])
    for part in rest:
        name, _, value = part.partition("=")
        if name not in PARAMETERS:
            raise ConfigError(
                f"{name!r} is no parameter of a CRF; they are {', '.join(PARAMETERS)}."
            )
        values[name] = _value(name, value)
    return make_crf(**values)


def make_crf(
    w1: float,
    sigma_alpha: float,
    sigma_beta: float,
    w2: float,
    sigma_gamma: float,
    iterations: int,
    normalization: str,
) -> CrfPreset:
    """The CRF of these parameters, as the papers call them."""
    return CrfPreset(
        (
            GaussianKernel(sigma_gamma, w2, normalization),
            BilateralKernel(sigma_alpha, sigma_beta, w1, normalization),
        ),
        iterations,
    )


def describe_crf(crf: CrfPreset) -> dict[str, float | int | str]:
    """The parameters of a CRF by name; the inverse of `make_crf`."""
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
    """The text that `parse_crf` reads."""
    return ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in describe_crf(crf).items()
    )


def _value(name: str, text: str) -> float | int | str:
    if name == "normalization":
        if text not in NORMALIZATIONS:
            raise ConfigError(
                f"normalization is {text!r}; it must be one of {', '.join(NORMALIZATIONS)}."
            )
        return text
    try:
        value = int(text) if name == "iterations" else float(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; give a number.") from None
    # A comparison with nan is false.
    if name.startswith("sigma") and not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {text}; it must be above 0.")
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is {text}; it must be 0 or more.")
    return value
