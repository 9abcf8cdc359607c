"""Evaluates a run: scores, drawn predictions, the history, and the best model for everybody."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxseg import data
from flaxseg.drawing import side_by_side
from flaxseg.errors import WriteError
from flaxseg.evaluation import SegmentationMetrics, evaluate
from flaxseg.saved_model import save_model
from flaxseg.saved_model.card import read_card_or_none, weights_file
from flaxseg.training.checkpoint import best_entry
from flaxseg.training.companions import Companions
from flaxseg.training.resume import Position
from flaxseg.training.run import Run

_log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Holds the result of an evaluation.

    Attributes:
      metrics: over the whole split.
      images: drawn predictions, uint8 ``[H, W, 3]``, by the ids of their records.
      seconds: that it took.
    """

    metrics: SegmentationMetrics
    images: dict[str, np.ndarray]
    seconds: float


class StoppedError(Exception):
    """Signals that the run was told to stop during an evaluation."""


def is_evaluation_missing(run: Run, position: Position) -> bool:
    """Returns whether the run was stopped in the evaluation of the step it is at."""
    done = any(entry["step"] == position.step for entry in position.history)
    return position.step > 0 and run.settings.timetable.evaluates(position.step) and not done


def evaluate_run(run: Run, position: Position, companions: Companions) -> Evaluation:
    """Evaluates the model and notes the result in the history.

    Raises:
      StoppedError: a stop was requested; nothing is noted.
    """
    settings, began = run.settings, time.perf_counter()
    variables = position.state.eval_variables()
    if jax.process_count() > 1:
        variables = run.parallel.get_state(variables)
    segmenter = run.segmenter.with_variables(variables)
    images: dict[str, np.ndarray] = {}
    metrics = evaluate(
        segmenter.run_batch,
        run.records,
        settings.data.info.num_classes,
        **segmenter.batch_options(settings.evaluation.batch_size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        progress=_note_progress(position.step, companions),
        on_prediction=_draw(run, position.step, images),
    )
    _remember(position, metrics)
    seconds = time.perf_counter() - began
    return Evaluation(metrics, images, seconds)


def _note_progress(step: int, companions: Companions) -> Callable[[int, int], None]:
    """Returns what is told of an evaluation, and ends it as soon as a stop is requested."""
    doing = f"evaluating after step {step}"
    companions.at(step, doing)

    def note(done: int, total: int) -> None:
        companions.at(step, doing, waits=done == total)
        if companions.stop and done < total and jax.process_count() == 1:
            raise StoppedError

    return note


def _draw(
    run: Run, step: int, images: dict[str, np.ndarray]
) -> Callable[[int, data.Record, np.ndarray], None]:
    """Returns what draws some predictions into `images`, by the ids of their records."""
    # The first process draws, of the records that are its part.
    processes = jax.process_count()
    own = -(-len(run.records) // processes)
    drawn = {processes * place for place in _spread(own, run.settings.evaluation.num_images)}
    info = run.settings.data.info

    def draw(index: int, record: data.Record, pred: np.ndarray) -> None:
        if index in drawn:
            images[record["id"]] = side_by_side(
                record["image"],
                record["label"],
                pred,
                info.class_names,
                info.class_colors,
                title=f"{record['id']}, step {step}",
            )

    return draw


def _spread(length: int, count: int) -> Sequence[int]:
    """Returns `count` places, evenly over `length`.

    >>> _spread(100, 4)
    [12, 37, 62, 87]
    """
    count = min(count, length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _remember(position: Position, metrics: SegmentationMetrics) -> None:
    """Adds an evaluation to the history; only the last and the best one keep their matrices."""
    numbers = metrics.to_dict()
    entry = {
        "step": position.step,
        **{
            name: numbers[name]
            for name in ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        },
        "iou": [row["iou"] for row in numbers["classes"]],
        "matrix": numbers["confusion_matrix"],
        "ignored_pixels": numbers["ignored_pixels"],
    }
    position.history.append(entry)
    best = best_entry(position.history)
    for old in position.history[:-1]:
        if old is not best:
            old.pop("matrix", None)


def export_best(run: Run, position: Position) -> None:
    """Writes the best model to `model/` unless it is there; a failure is only reported.

    This comes after the checkpoint of the same step: a model without any checkpoint belongs to a
    run that has lost them. Where an earlier attempt failed or was cut short by a kill, the
    parameters come from the best checkpoint.
    """
    best = best_entry(position.history)
    if best is None or jax.process_index() != 0 or is_exported(run, best):
        return
    if not run.checkpoints.steps():
        run.checkpoints.finish()
    if best["step"] == position.step:
        variables = run.parallel.get_state(position.state.eval_variables())
    else:
        restored = run.checkpoints.read(best["step"], position.state)
        if restored is None:
            _log.warning("the model of step %d has no checkpoint to be made from", best["step"])
            return
        variables = restored.state.eval_variables()
    try:
        _export(run, best, variables)
    except WriteError as error:
        _log.warning("%s The run goes on; the next evaluation tries again.", error)


def is_exported(run: Run, best: Mapping[str, Any]) -> bool:
    """Returns whether `model/` is the model of an evaluation."""
    folder = run.directory.model
    card = read_card_or_none(folder)
    extra = card.get("extra", {}) if card and weights_file(folder, card).is_file() else {}
    return (extra.get("step"), extra.get("miou")) == (best["step"], best["miou"])


def _export(run: Run, entry: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    """Writes a model with the protocol and the scores of its evaluation."""
    own = run.settings
    protocol = own.evaluation.protocol
    save_model(
        run.directory.model,
        variables,
        name=own.model.name,
        num_classes=own.data.info.num_classes,
        options=own.model.options
        | ({} if protocol.is_plain else {"protocol": protocol.describe()}),
        class_names=own.data.info.class_names,
        class_colors=own.data.info.class_colors,
        extra={
            "step": entry["step"],
            "miou": entry["miou"],
            "pixel_accuracy": entry["pixel_accuracy"],
            "data": f"{own.data.info.name}/{own.data.eval_split}",
            "config": own.fields,
        },
    )
