"""Computes what a training step minimises: the sum of the losses of all outputs of a model."""

import copy
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.errors import near
from flaxseg.models.segmentation_model import Prediction
from flaxseg.settings import check_rules, one_of, raise_problems, share, within
from flaxseg.training import losses, parallel
from flaxseg.training.losses import LossTerm, OutputLoss

_OTHERS = "auxiliary"  # the entry of auxiliary outputs without one of their own
_DEFAULT_OUTPUTS = MappingProxyType({"logits": OutputLoss(), _OTHERS: OutputLoss(weight=0.4)})


class Targets(NamedTuple):
    """Holds the targets that the outputs of a model are compared with.

    Attributes:
      label: integer ``[N, H, W]``.
      own: for each output that is not compared with the label as it is, its target.
    """

    label: jax.Array
    own: dict[str, jax.Array]


Scales = Mapping[str, Sequence[jax.Array]]
"""For the terms of each output with a target of its own, the weight of the label's valid pixels
over the count of the term, both of the global batch: all sums are divided by the former."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """Computes the loss of a model: the weighted sum of the mean losses of its outputs.

    The mean of a cross entropy is the sum over the valid pixels of the global batch over their
    count, or with class weights over the sum of their weights.

    Attributes:
      outputs: the loss of each output: `"logits"` is the main one, the others are the model's
        auxiliary outputs by name, and `"auxiliary"` is for those without an entry of their own.
        None: cross entropy, with weight 1 for the main output and 0.4 for all others.
      label_smoothing: for every output that is compared with the label by a loss that has it; see
        `losses.segmentation_loss`.
      class_weights: the same.
      reduction: `"mean"` as above, or `"sum"`: the gradient is that of the sum over the valid
        pixels of an image (with class weights: of their weighted terms), averaged over the images
        of the batch, as in Caffe's nets with ``normalize: false``. An image of S valid pixels has S
        times the gradient of its mean: a rate of 1e-10 for the sum is one of S * 1e-10, 1.9e-5 for
        500 x 375, for the mean, and a weight decay of d is one of d / S. What stays different is
        that an image with few valid pixels counts less. The reported loss is the mean in both
        cases. A loss that is a mean over images is weighed as those over pixels are.
      sample_rate: probability that a pixel counts, see `losses.sample_pixels`; 1 keeps every pixel.
      ignore_label: the label of pixels that do not count.

    Raises:
      SettingsError: for values out of range, or that do not go together.
    """

    outputs: Mapping[str, OutputLoss] | None = None
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    reduction: str = "mean"
    sample_rate: float = 1.0
    ignore_label: int = IGNORE_LABEL

    def __post_init__(self):
        check_rules(
            vars(self),
            {
                "label_smoothing": within(0, 1),
                "reduction": one_of("mean", "sum"),
                "sample_rate": share,
            },
        )
        raise_problems(self._conflicts())

    def _conflicts(self) -> list[tuple[str, str]]:
        """Returns the settings that do nothing, or that another one excludes."""
        active = {name: own for name, own in self._described.items() if own.weight}
        if not active:
            problem = "is 0, as that of all outputs; give one of them a weight above 0."
            return [(f"outputs.{name}.weight", problem) for name in self._described]
        kinds = ", ".join(sorted({own.kind for own in active.values()}))
        problems = [
            (name, f"is {getattr(self, name)}, and no output's loss has it: {kinds}. Unset it.")
            for name in ("class_weights", "label_smoothing")
            if getattr(self, name) and not any(own.takes(name) for own in active.values())
        ]
        whole = [name for name, own in active.items() if own.needs_whole_labels]
        if self.sample_rate < 1 and whole:
            problems.append(
                (
                    "sample_rate",
                    f"is {self.sample_rate}, and the losses of {', '.join(whole)} need whole "
                    "labels; set it to 1.",
                )
            )
        return problems

    def check_outputs(self, prediction: Prediction) -> None:
        """Checks that the losses fit the outputs of a model.

        Args:
          prediction: what the model returns in training, or its shapes.

        Raises:
          SettingsError: an output has no loss or a loss no output, or an output that is compared
            with the label does not have one channel per class.
        """
        raise_problems(self._missing_and_idle(prediction.auxiliary))
        classes, problems = prediction.logits.shape[-1], []
        for name, own in self._losses(prediction.auxiliary).items():
            channels = _output(prediction, name).shape[-1]
            if own.weight and own.target == "label" and channels != classes:
                problems.append(
                    (
                        f"outputs.{name}",
                        f"compares {channels} channels with a label of {classes} classes; give it "
                        "another target, or weight 0.",
                    )
                )
        raise_problems(problems)

    def sampled(self, label: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the label with a share of `sample_rate` of its pixels, the others ignored."""
        return losses.sample_pixels(label, key, self.sample_rate, ignore_label=self.ignore_label)

    @property
    def has_own_targets(self) -> bool:
        """Returns whether an output has a target other than the pixels of the label."""
        return any(
            not term.counts_label
            for name, terms in self._terms_by_entry.items()
            for term in terms
            if self._described[name].weight
        )

    def targets(self, label: jax.Array, outputs: Prediction) -> Targets:
        """Returns what the outputs are compared with.

        Args:
          label: integer ``[N, H, W]``.
          outputs: the shapes of what the model returns in training; see `check_outputs`.
        """
        self.check_outputs(outputs)
        own = {
            name: self._losses(outputs.auxiliary)[name].target_of(
                label,
                _output(outputs, name).shape[1:3],
                outputs.logits.shape[-1],
                self.ignore_label,
            )
            for name, terms in self._terms(outputs.auxiliary).items()
            if not all(term.counts_label for term in terms)
        }
        return Targets(label, own)

    def scales(self, targets: Targets, outputs: Prediction, axis_name: str | None) -> Scales:
        """Returns the factors of the terms whose counts are not those of the label.

        Args:
          targets: of all rows of the batch at hand.
          outputs: the shapes of what the model returns in training.
          axis_name: of the axis over devices under pmap.
        """
        whole = parallel.global_sum(self.weight(targets.label, outputs.logits.shape[-1]), axis_name)
        whole = losses.safe_divisor(whole)
        scales = {}
        for name, terms in self._terms(outputs.auxiliary).items():
            if name not in targets.own:
                continue
            # Counts depend on targets alone, so that XLA drops the losses of these zeros.
            zeros = jnp.zeros(_output(outputs, name).shape)
            counts = [term.loss(zeros, targets.own[name])[1] for term in terms]
            scales[name] = [
                whole / losses.safe_divisor(parallel.global_sum(count, axis_name))
                for count in counts
            ]
        return scales

    @functools.cached_property
    def numbers(self) -> dict[str, Any]:
        """Returns the plain numbers of the loss, as float32.

        Those that are 0 or None are left out: without them the computation is another.
        """
        weights = {name: np.float32(own.weight) for name, own in self._described.items()}
        numbers = {"weights": {name: weight for name, weight in weights.items() if weight}}
        for name in ("label_smoothing", "class_weights"):
            if getattr(self, name):
                numbers[name] = np.asarray(getattr(self, name), np.float32)
        return numbers

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Objective":
        """Returns this objective with other values for its `numbers`; they can be traced."""
        other = copy.copy(self)
        vars(other).pop("_terms_by_entry", None)
        vars(other)["numbers"] = numbers
        return other

    def weight(self, label: jax.Array, num_classes: int) -> jax.Array:
        """Returns what the loss is divided by: the weight of the valid pixels of a label."""
        return losses.label_weight(
            label,
            num_classes,
            class_weights=self.numbers.get("class_weights"),
            ignore_label=self.ignore_label,
        )

    def loss(self, prediction: Prediction, targets: Targets, scales: Scales) -> jax.Array:
        """Returns the loss summed over the rows at hand, to be divided by the `weight` of all."""
        self.check_outputs(prediction)
        total = 0.0
        weights = self.numbers["weights"]
        for name, terms in self._terms(prediction.auxiliary).items():
            weight = weights[name if name in weights else _OTHERS]
            target = targets.own.get(name, targets.label)
            for term, scale in zip(terms, scales.get(name, (1.0,) * len(terms)), strict=True):
                factor = weight * term.weight * scale
                total += factor * term.loss(_output(prediction, name), target)[0]
        return total

    @property
    def _described(self) -> Mapping[str, OutputLoss]:
        return _DEFAULT_OUTPUTS if self.outputs is None else self.outputs

    def _losses(self, auxiliary: Iterable[str]) -> dict[str, OutputLoss]:
        """Returns the loss of each output of a model with these auxiliary ones."""
        described = self._described
        return {
            name: described[name if name in described else _OTHERS]
            for name in ("logits", *auxiliary)
        }

    def _terms(self, auxiliary: Iterable[str]) -> dict[str, tuple[LossTerm, ...]]:
        """Returns the summands of each output's loss; outputs of weight 0 are left out."""
        return {
            name: self._terms_by_entry[name if name in self._described else _OTHERS]
            for name, own in self._losses(auxiliary).items()
            if own.weight
        }

    @functools.cached_property
    def _terms_by_entry(self) -> dict[str, tuple[LossTerm, ...]]:
        return {
            name: own.terms(
                label_smoothing=self.numbers.get("label_smoothing", 0.0),
                class_weights=self.numbers.get("class_weights"),
                ignore_label=self.ignore_label,
            )
            for name, own in self._described.items()
        }

    def _missing_and_idle(self, auxiliary: Iterable[str]) -> list[tuple[str, str]]:
        """Returns the outputs without a loss, and the losses without an output."""
        described, names = self._described, ("logits", *auxiliary)
        unnamed = [name for name in names if name not in described]
        problems = [
            (
                "outputs",
                f"has no loss for the model's output {name!r}; it has {', '.join(described)}. Add "
                "it (weight 0 leaves it out)"
                + ("." if name == "logits" else f", or {_OTHERS!r} for all that are not named."),
            )
            for name in unnamed
            if name == "logits" or _OTHERS not in described
        ]
        for name, own in described.items():
            if name == _OTHERS:
                used = set(unnamed) - {"logits"} or not (self.outputs and own.weight)
            else:
                used = name in names
            if not used:
                problems.append(
                    (
                        f"outputs.{name}",
                        "is a loss for an output that the model does not have; it has "
                        f"{', '.join(names)}. Leave it out, or make the model with that output."
                        f"{near(name, names)}",
                    )
                )
        return problems


def _output(prediction: Prediction, name: str) -> jax.Array:
    return prediction.logits if name == "logits" else prediction.auxiliary[name]
