"""Describes the loss of one output of a model; names the losses and targets there are."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from flaxseg.call_text import Call, check_arguments, check_name, parse_call, parse_sum
from flaxseg.classes import IGNORE_LABEL
from flaxseg.layers import ALIGN_CORNERS, resize
from flaxseg.settings import at_least, check_rules, member_of, raise_problems
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

# Losses that depend on the labels around a pixel.
_OF_NEIGHBOURS = ("boundary", "dilated_masks", "eroded_masks")

# Arguments of a loss or target that come from elsewhere than its text.
_SHARED = ("ignore_label", "align_corners", "class_weights", "label_smoothing")


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """Holds one summand of an output's loss.

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
    """Describes the loss of one output of a model: of its logits or of an auxiliary output.

    The loss of a model is the sum over its outputs of ``weight`` times the mean of their kind.

    Attributes:
      weight: finite, at least 0; 0 leaves the output out.
      kind: one of `KINDS` with its arguments where they are not the defaults, or a sum of several
        with factors: ``"cross_entropy"``, ``"focal(gamma=2, alpha=0.25)"``,
        ``"cross_entropy + 0.5 * dice"``.
      target: what the output is compared with: ``"label"``, or one of `TARGETS`, which are made
        from the label at its full size; with arguments as for `kind`.
      resize_labels: whether the target is resized to the output, instead of the output's logits to
        the label. Labels are taken from the nearest pixel, so that no class is invented; the mean
        is over the valid pixels of the resized target.
      align_corners: how logits, or labels, are resized; see `flaxseg.layers.resize`. It has to be
        the convention by which the model itself resizes the output, or labels are shifted.

    Raises:
      ConfigError: for a weight out of range, a kind or target that does not exist or does not
        have such an argument, or an argument out of its range.

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
        check_rules(vars(self), {"weight": at_least(0), "align_corners": member_of(ALIGN_CORNERS)})
        raise_problems(_problems(self))

    def terms(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        ignore_label: int = IGNORE_LABEL,
    ) -> tuple[LossTerm, ...]:
        """Returns the summands of `kind`, each as a function of logits and target.

        Args:
          label_smoothing: for kinds that have it, where the target is the label.
          class_weights: the same.
          ignore_label: the label of pixels that do not count.
        """
        whole_label = self.target == "label" and not self.resize_labels
        terms = []
        for call in parse_sum(self.kind, "loss"):
            loss = _checked(call, KINDS, "loss")
            options = {
                **call.arguments,
                "ignore_label": IGNORE_LABEL,
                "align_corners": self.align_corners,
            }
            if self.target == "label":
                options["ignore_label"] = ignore_label
                known = inspect.signature(loss).parameters
                of_classes = {"label_smoothing": label_smoothing, "class_weights": class_weights}
                options |= {key: value for key, value in of_classes.items() if key in known}
            counts_label = whole_label and call.name in _PIXEL_MEANS
            terms.append(LossTerm(call.factor, functools.partial(loss, **options), counts_label))
        return tuple(terms)

    @property
    def needs_whole_labels(self) -> bool:
        """Returns whether the loss of a pixel depends on the labels around it."""
        kinds = {call.name for call in parse_sum(self.kind, "loss")}
        return self.target != "label" or not kinds.isdisjoint(_OF_NEIGHBOURS)

    def takes(self, argument: str) -> bool:
        """Returns whether ``"class_weights"`` or ``"label_smoothing"`` affects this loss."""
        return self.target == "label" and any(
            argument in inspect.signature(KINDS[call.name]).parameters
            for call in parse_sum(self.kind, "loss")
        )

    def target_of(
        self,
        label: jax.Array,
        size: tuple[int, int],
        num_classes: int,
        ignore_label: int = IGNORE_LABEL,
    ) -> jax.Array:
        """Returns what an output of `size`, (height, width), is compared with.

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
            call = parse_call(self.target, "target")
            derive = _checked(call, TARGETS, "target", "label")
            label = derive(label, num_classes, ignore_label=ignore_label, **call.arguments)
        if not self.resize_labels:
            return label
        return resize(label[..., None], size, method="nearest", align_corners=self.align_corners)[
            ..., 0
        ]


@functools.lru_cache(maxsize=256)
def _problems(own: OutputLoss) -> list[tuple[str, str]]:
    """Returns what the losses and targets themselves say of their arguments: they are run on a
    label of two pixels, and nothing is computed."""
    label = jax.ShapeDtypeStruct((1, 1, 2), jnp.uint8)
    logits = jax.ShapeDtypeStruct((1, 1, 2, 2), jnp.float32)

    def run_target() -> None:
        jax.eval_shape(lambda label: own.target_of(label, (1, 2), 2), label)

    def run_terms() -> None:
        for term in own.terms():
            jax.eval_shape(term.loss, logits, label)

    problems = []
    for name, run in (("target", run_target), ("kind", run_terms)):
        try:
            run()
        except (ArithmeticError, TypeError, ValueError) as error:  # of any argument's value
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            problems.append((name, f"is {getattr(own, name)!r}: {reason}"))
    return problems


def _checked(call: Call, known: Mapping[str, Callable], what: str, *more: str) -> Callable:
    """Returns the loss or target that a text names, if it has these arguments."""
    check_name(call.name, known if call.name in more else (*more, *known), what)
    parameters = inspect.signature(known[call.name]).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _SHARED]
    check_arguments(call, own, what)
    return known[call.name]
