"""Compresses a trained network by filter pruning: every layer keeps a share of its channels.

The filters with the smallest L1 norms go (Li et al., "Pruning Filters for Efficient ConvNets",
2017, section 3.1), as ICNet does to halve PSPNet50 (Zhao et al., "ICNet", 2018, section 3.4).
Layers whose outputs are added must lose the same channels: all units of a residual stage with their
projection, and both convolutions of a fusion. The ICNet paper does not say how; here a channel's
norm is the sum over all layers that write it.
"""

import collections
import dataclasses
import fractions
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from flaxseg.errors import ConfigError, WeightsError
from flaxseg.saved_model import from_json, load_model, read_model_card, save_model
from flaxseg.variable_paths import flatten, unflatten

# `keep` is taken as a fraction with at most this denominator, so that 0.6667 is two thirds.
_LARGEST_DENOMINATOR = 64
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class Channels:
    """Names a set of channels and everything that must change when some of them go.

    Attributes:
      writers: `(convolution, normalisation)`, the paths of modules whose outputs, added up, these
        channels are.
      readers: paths of convolutions that have them as inputs.
    """

    writers: tuple[tuple[str, str], ...]
    readers: tuple[str, ...]


def prune_channels(
    variables: Mapping, channels: Sequence[Channels], keep: float
) -> tuple[dict, tuple[np.ndarray, ...]]:
    """Keeps the channels with the largest norms and cuts out the others.

    The norm of a channel is the sum of the absolute weights of the filters that write it, all taken
    before anything is cut. A channel that is zero after its normalisation has no part in the
    function of the network, which is then the same without it.

    Args:
      variables: `{"params": ..., "batch_stats": ...}`; not changed.
      channels: the sets to cut, each channel of the network in at most one.
      keep: share of the channels of each set that stays, in (0, 1].

    Returns:
      The variables of the smaller network, and of each set the indices that stay, rising.

    Raises:
      ValueError: keep is out of range or leaves a fraction of a channel.
    """
    share = _share(keep)
    flat = {path: np.asarray(value) for path, value in flatten(variables).items()}
    result, kept = dict(flat), []
    for group in channels:
        norms = sum(
            np.abs(flat[f"params/{conv}/kernel"]).sum((0, 1, 2), dtype=np.float64)
            for conv, _ in group.writers
        )
        count = _count(len(norms), share)
        # Stable: of equal norms the first channels stay.
        stay = np.sort(np.argsort(-norms, kind="stable")[:count])
        kept.append(stay)
        for conv, norm in group.writers:
            _cut(result, f"params/{conv}/kernel", 3, stay)
            for path in ("params/{}/scale", "params/{}/bias"):
                _cut(result, path.format(norm), 0, stay)
            for path in ("batch_stats/{}/mean", "batch_stats/{}/var"):
                _cut(result, path.format(norm), 0, stay)
        for conv in group.readers:
            _cut(result, f"params/{conv}/kernel", 2, stay)
    return unflatten(result), tuple(kept)


def _share(keep: float) -> fractions.Fraction:
    share = fractions.Fraction(keep).limit_denominator(_LARGEST_DENOMINATOR)
    if not 0 < share <= 1 or abs(share - keep) > _ROUNDING:
        raise ValueError(
            f"keep is {keep}; it must be more than 0 and at most 1, and close to a fraction such "
            "as 1/2, 2/3 or 3/4."
        )
    return share


def _count(channels: int, share: fractions.Fraction) -> int:
    count = channels * share
    if count.denominator > 1:
        raise ValueError(
            f"{share} of {channels} channels is {float(count):.2f}; choose a keep that leaves a "
            "whole number of channels in every layer, such as 0.5 or 0.75."
        )
    return int(count)


def _cut(flat: dict[str, np.ndarray], path: str, axis: int, stay: np.ndarray) -> None:
    flat[path] = flat[path].take(stay, axis)


def icnet_channels(variables: Mapping) -> tuple[Channels, ...]:
    """Returns all sets of channels of an `ICNet` on a ResNet; only the channels of the image and of
    the logits are in none.

    Args:
      variables: of the model.

    Raises:
      ValueError: the backbone is no ResNet.
    """
    convs = [
        path.removeprefix("params/").removesuffix("/kernel")
        for path in flatten({"params": variables["params"]})
        if path.endswith("/kernel")
    ]
    if "backbone/layer1_0/conv1" not in convs:
        raise ValueError(
            "the backbone is not a ResNet; only ICNet on a ResNet can be pruned, where every "
            "convolution is dense."
        )
    writers: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    readers: dict[str, list[str]] = collections.defaultdict(list)

    def layer(conv: str, norm: str, source: str, target: str) -> str:
        readers[source].append(conv)
        writers[target].append((conv, norm))
        return target

    x = "image"
    stem = sorted(conv for conv in convs if conv.startswith("backbone/conv1"))
    for conv in stem:
        x = layer(conv, conv.replace("/conv1", "/bn1"), x, conv)
    stages = {}
    for stage in range(1, 5):
        x = stages[stage] = _residual_stage(f"backbone/layer{stage}_", convs, layer, x)
    x = layer("conv5_4/conv", "conv5_4/bn", x, "conv5_4")
    fine = "image"
    for name in ("conv1_sub1", "conv2_sub1", "conv3_sub1"):
        fine = layer(f"{name}/conv", f"{name}/bn", fine, name)
    for fusion, high in (("fusion24", stages[2]), ("fusion12", fine)):
        if f"{fusion}/classifier" in convs:
            readers[x].append(f"{fusion}/classifier")
        layer(f"{fusion}/high_conv", f"{fusion}/high_bn", high, fusion)
        x = layer(f"{fusion}/low_conv", f"{fusion}/low_bn", x, fusion)
    readers[x].append("classifier")
    return tuple(Channels(tuple(writers[name]), tuple(readers[name])) for name in writers)


def _residual_stage(prefix: str, convs: Sequence[str], layer, source: str) -> str:
    """Enters the units of a stage; returns the name of its output, which all of them write."""
    units = sum(conv.startswith(prefix) and conv.endswith("/conv1") for conv in convs)
    x = source
    # Without a projection the units are added to what the stage begins with.
    projects = f"{prefix}0/downsample_conv" in convs
    target = prefix if projects else source
    for index in range(units):
        unit = f"{prefix}{index}"
        if index == 0 and projects:
            layer(f"{unit}/downsample_conv", f"{unit}/downsample_bn", x, target)
        parts = [number for number in (1, 2, 3) if f"{unit}/conv{number}" in convs]
        inner = x
        for number in parts:
            to = target if number == parts[-1] else f"{unit}/conv{number}"
            inner = layer(f"{unit}/conv{number}", f"{unit}/bn{number}", inner, to)
        x = target
    return target


def prune_model(
    directory: str | os.PathLike, out_dir: str | os.PathLike, *, keep: float = 0.5
) -> pathlib.Path:
    """Writes a saved ICNet with fewer channels, to be trained further; its `width` is that of the
    original times `keep`.

    Example:

        prune_model("runs/icnet_full", "models/icnet_half", keep=0.5)

    Args:
      directory: a saved model or the working directory of a training run.
      out_dir: folder to write, see `save_model`.
      keep: share of the channels of each layer that stays, in (0, 1). The paper goes to 1/2 by way
        of 3/4, with training in between: keep 0.75, then 0.6667.

    Returns:
      The folder.

    Raises:
      WeightsError: there is no sound saved model, or it is not an ICNet on a ResNet given by name.
      ConfigError: keep is impossible.
      WriteError: the folder cannot be written.
    """
    card = read_model_card(directory)
    if card["model"] != "icnet":
        raise WeightsError(
            f"the model in {os.fspath(directory)} is {card['model']}; only icnet can be pruned."
        )
    if not 0 < keep < 1:
        raise ConfigError(f"keep is {keep}; it must be more than 0 and less than 1.")
    model, variables = load_model(directory)
    try:
        channels = icnet_channels(variables)
    except ValueError as error:
        raise WeightsError(f"the model in {os.fspath(directory)}: {error}") from error
    try:
        variables, _ = prune_channels(jax.device_get(variables), channels, keep)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    factor = float(_share(keep))
    options = {key: from_json(value) for key, value in card["options"].items()}
    options["width"] = model.width * factor
    backbone_options = dict(options.get("backbone_options", {}))
    if "width" in backbone_options:
        backbone_options["width"] *= factor
        options["backbone_options"] = backbone_options
    return save_model(
        out_dir,
        variables,
        name=card["model"],
        num_classes=card["num_classes"],
        options=options,
        class_names=card["class_names"],
        class_colors=card["class_colors"],
        extra={"pruned_from": card["weights"]["sha256"], "keep": keep},
    )
