"""The description of the loss of one output of a model, and the losses and targets it can name."""

import ast
import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxseg.errors import ConfigError
from flaxseg.layers import ALIGN_CORNERS, resize
from flaxseg.training.losses.border import border_target, boundary_loss
from flaxseg.training.losses.cross_entropy import segmentation_loss
from flaxseg.training.losses.dice import dice_loss
from flaxseg.training.losses.focal import focal_loss
from flaxseg.training.losses.hard_pixels import ohem_loss, top_k_loss
from flaxseg.training.losses.lovasz import lovasz_loss
from flaxseg.training.losses.region_masks import dilated_masks, eroded_masks

KINDS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "cross_entropy": segmentation_loss,
    "focal": focal_loss,
    "dice": dice_loss,
    "lovasz": lovasz_loss,
    "top_k": top_k_loss,
    "ohem": ohem_loss,
    "boundary": boundary_loss,
    "dilated_masks": dilated_masks,
    "eroded_masks": eroded_masks,
}
"""`loss(logits, label, *, ignore_label, align_corners, ...) -> (sum, count)` by name."""

TARGETS: dict[str, Callable[..., jax.Array]] = {
    "border": border_target,
}
"""`target(label, num_classes, *, ignore_label, ...)` by name: uint8 `[N, H, W]`, 255 is ignored."""

# Losses whose count is `label_weight`: an output with the label as it is needs no scaling.
_PIXEL_MEANS = ("cross_entropy", "focal")

# Losses that look at the labels around a pixel, not only at its own.
_OF_NEIGHBOURS = ("boundary", "dilated_masks", "eroded_masks")

# Arguments of a loss or target that come from elsewhere than its text.
_SHARED = ("ignore_label", "align_corners", "class_weights", "label_smoothing")


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One summand of an output's loss.

    Attributes:
      weight: of its mean.
      loss: ``loss(logits, label) -> (sum, count)``.
      counts_label: whether its count is `label_weight` of the batch's label.
    """

    weight: float
    loss: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    counts_label: bool


@dataclasses.dataclass(frozen=True)
class OutputLoss:
    """The loss of one output of a model: of its logits or of an auxiliary output.

    The loss of a model is the sum over its outputs of ``weight`` times the mean of their kind.

    Attributes:
      weight: finite, at least 0; 0 leaves the output out.
      kind: one of `KINDS` with its arguments where they are not the defaults, or a sum of several
        with factors: ``"cross_entropy"``, ``"focal(gamma=2, alpha=0.25)"``,
        ``"cross_entropy + 0.5 * dice"``.
      target: what the output is compared with: ``"label"``, or one of `TARGETS`, which are made
        from the label at its full size; with arguments as for `kind`.
      resize_labels: whether the target is resized to the output (to the nearest, so that no class
        is invented; the mean is over what is valid there), in place of the output's logits to the
        label.
      align_corners: how logits, or labels, are resized; see `flaxseg.layers.resize`. It has to be
        the convention with which the model resizes the output itself, or labels are shifted.

    Raises:
      ConfigError: for a weight out of range, a kind or target that does not exist or has no such
        argument, or an argument out of its range.

    Examples:
      >>> OutputLoss(weight=0.4, resize_labels=True).kind
      'cross_entropy'
    """

    weight: float = 1.0
    kind: str = "cross_entropy"
    target: str = "label"
    resize_labels: bool = False
    align_corners: bool | str = False

    def __post_init__(self):
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError(f"weight {self.weight} must be a number of at least 0.")
        if self.align_corners not in ALIGN_CORNERS:
            raise ConfigError(
                f"align_corners is {self.align_corners!r}; it must be True, False or 'cells'."
            )
        # Their own checks of the arguments, on a label of two pixels; nothing is computed.
        label = jax.ShapeDtypeStruct((1, 1, 2), jnp.uint8)
        logits = jax.ShapeDtypeStruct((1, 1, 2, 2), jnp.float32)
        jax.eval_shape(lambda label: self.target_of(label, (1, 2), 2), label)
        for term in self.terms():
            jax.eval_shape(term.loss, logits, label)

    def terms(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        ignore_label: int = 255,
    ) -> tuple[LossTerm, ...]:
        """The summands of `kind`, each as a function of logits and target.

        Args:
          label_smoothing: for kinds that have it, where the target is the label.
          class_weights: the same.
          ignore_label: the label of pixels that do not count.
        """
        whole_label = self.target == "label" and not self.resize_labels
        terms = []
        for factor, name, options in _parse_sum(self.kind):
            loss = _lookup(name, KINDS, "loss", options)
            options |= {"ignore_label": 255, "align_corners": self.align_corners}
            if self.target == "label":
                options["ignore_label"] = ignore_label
                known = inspect.signature(loss).parameters
                of_classes = {"label_smoothing": label_smoothing, "class_weights": class_weights}
                options |= {key: value for key, value in of_classes.items() if key in known}
            terms.append(
                LossTerm(factor, partial(loss, **options), whole_label and name in _PIXEL_MEANS)
            )
        return tuple(terms)

    @property
    def needs_whole_labels(self) -> bool:
        """Whether labels of which pixels were left out would have another loss."""
        kinds = {name for _, name, _ in _parse_sum(self.kind)}
        return self.target != "label" or not kinds.isdisjoint(_OF_NEIGHBOURS)

    def takes(self, argument: str) -> bool:
        """Whether ``"class_weights"`` or ``"label_smoothing"`` play a part in this loss."""
        return self.target == "label" and any(
            argument in inspect.signature(KINDS[name]).parameters
            for _, name, _ in _parse_sum(self.kind)
        )

    def target_of(
        self, label: jax.Array, size: tuple[int, int], num_classes: int, ignore_label: int = 255
    ) -> jax.Array:
        """What an output of `size`, (height, width), is compared with.

        Args:
          label: integer ``[N, H, W]``.
          size: of the output.
          num_classes: of the label.
          ignore_label: the label of pixels that do not count.

        Returns:
          Integer ``[N, *size]`` with `resize_labels`, else ``[N, H, W]``; in a target that is not
          the label 255 is ignored.
        """
        if self.target != "label":
            name, options = _parse_name(_parsed(self.target), self.target)
            derive = _lookup(name, TARGETS, "target", options, "label")
            label = derive(label, num_classes, ignore_label=ignore_label, **options)
        if not self.resize_labels:
            return label
        return resize(label[..., None], size, method="nearest", align_corners=self.align_corners)[
            ..., 0
        ]


def _lookup(
    name: str, known: Mapping[str, Callable], what: str, options: Mapping[str, Any], *more: str
) -> Callable:
    """The loss or target of a name, if it has these options."""
    if name not in known:
        names = (*more, *known)
        raise ConfigError(
            f"there is no {what} {name!r}; there are {', '.join(names)}.{_hint(name, names)}"
        )
    parameters = inspect.signature(known[name]).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _SHARED]
    for option in options:
        if option not in own:
            has = f"it has {', '.join(own)}" if own else "it has none"
            raise ConfigError(
                f"the {what} {name!r} has no argument {option!r}; {has}.{_hint(option, own)}"
            )
    return known[name]


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


def _parse_sum(text: str) -> list[tuple[float, str, dict[str, Any]]]:
    """``"a + 0.5 * b(x=1)"`` as ``[(1.0, "a", {}), (0.5, "b", {"x": 1})]``."""
    summands, rest = [], _parsed(text)
    while isinstance(rest, ast.BinOp) and isinstance(rest.op, ast.Add):
        summands.append(rest.right)
        rest = rest.left
    terms = []
    for node in (rest, *reversed(summands)):
        factor = 1.0
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            factor, node = _literal(node.left, text), node.right
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
            raise ConfigError(f"the factor {factor!r} in {text!r} must be a number above 0.")
        terms.append((float(factor), *_parse_name(node, text)))
    return terms


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise _not_understood(text) from None


def _parse_name(node: ast.expr, text: str) -> tuple[str, dict[str, Any]]:
    """A name, or a name with arguments."""
    if isinstance(node, ast.Name):
        return node.id, {}
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
    if not named or any(keyword.arg is None for keyword in node.keywords):
        raise _not_understood(text)
    return node.func.id, {k.arg: _literal(k.value, text) for k in node.keywords}


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _not_understood(text) from None


def _not_understood(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not understood; write a name, name(argument=value), or a sum such as "
        '"cross_entropy + 0.5 * name".'
    )
