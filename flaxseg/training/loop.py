"""A whole training run, from a config to an evaluated model; it can be stopped at any moment."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import config_dict

from flaxseg import data
from flaxseg.drawing import save_picture, side_by_side
from flaxseg.errors import FlaxsegError, NonFiniteLossError
from flaxseg.evaluation import SegmentationMetrics, evaluate
from flaxseg.inference import plan_inference
from flaxseg.saved_model import save_model
from flaxseg.training.checkpoint import Meta, best_entry
from flaxseg.training.compilation import CompilationWatch
from flaxseg.training.config import (
    config_to_dict,
    data_name,
    names_in,
    protocol_of,
)
from flaxseg.training.config_check import validate_config
from flaxseg.training.losses import OutputLoss
from flaxseg.training.parallel import height_unit
from flaxseg.training.prefetch import Prefetch, decode_iterator_state, encode_iterator_state
from flaxseg.training.progress import format_seconds
from flaxseg.training.run import (
    Position,
    Run,
    environment,
    model_options,
    open_run,
    start_or_resume,
)
from flaxseg.training.run_directory import RunDirectory
from flaxseg.training.run_log import MetricsFile, TensorBoard
from flaxseg.training.signals import StopRequest, stop_on_signals
from flaxseg.training.state import TrainState
from flaxseg.training.step import make_train_step
from flaxseg.training.window import Window

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a call of `train_and_evaluate` ended.

    Attributes:
      step: steps done.
      stopped_by: the signal that ended it before its last step, or "".
      history: one dict per evaluation: "step", "miou", "pixel_accuracy", "iou" per class, ...
      best: the one with the largest mIoU, whose model is in `model`; None without any.
      model: the folder of the best model.
    """

    step: int
    stopped_by: str
    history: list[dict[str, Any]]
    best: Mapping[str, Any] | None
    model: pathlib.Path


class _StoppedError(Exception):
    """A signal came during an evaluation."""


def train_and_evaluate(config: config_dict.ConfigDict, workdir: str) -> TrainingResult:
    """Train a model, or go on with a run, and evaluate it.

    The run is a function of the config: killed at any moment and called again with the same
    arguments, it ends with the same parameters, bit for bit, on the same number of devices.

    Args:
      config: of the form of `default_config()`; it is checked first.
      workdir: the folder of the run, see `flaxseg.training.run_directory`. A run that it holds is
        continued.

    Returns:
      How it ended. SIGTERM and SIGINT end it early, saved.

    Raises:
      ConfigError: a setting is wrong, or differs from those the run was started with.
      DataError: the data set is missing or damaged.
      WeightsError: the weights to start from could not be loaded.
      CheckpointError: the workdir can not be used, or a checkpoint not be read or written.
      NonFiniteLossError: the loss became infinite or not a number.
    """
    validate_config(config, device_count=jax.device_count())
    data.prepare(
        data_name(config),
        config.data.dir,
        config.data.manual_dir,
        progress=jax.process_index() == 0,
        allow_problems=config.data.allow_problems,
    )
    directory = RunDirectory(workdir)
    directory.create()
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(directory.lock())
        run = open_run(config, directory)
        stack.callback(run.progress.close)
        stack.callback(run.checkpoints.close)
        position = start_or_resume(run)
        if jax.process_index() == 0:
            directory.write_config(config_to_dict(config))
        stop = stack.enter_context(stop_on_signals())
        _train(run, position, stop)
        run.checkpoints.finish()
        _say_end(run, position, stop)
        return TrainingResult(
            step=position.step,
            stopped_by=stop.signal_name if _stopped(run, position) else "",
            history=position.history,
            best=best_entry(position.history),
            model=directory.model,
        )


# Training


def _train(run: Run, position: Position, stop: StopRequest) -> None:
    """All steps from `position` to the last, or to the stop; `position` is moved along."""
    with contextlib.ExitStack() as stack:
        logs = _Logs(run, position.step)
        stack.callback(logs.close)
        if _is_evaluation_missing(run, position):
            with contextlib.suppress(_StoppedError):
                _evaluate_and_save(run, position, logs, stop)
        if position.step >= run.config.steps or stop:
            return
        iterator = data.train_batches(
            data_name(run.config),
            run.config.data.train_split,
            data_dir=run.config.data.dir,
            batch_size=run.config.batch_size,
            crop_size=tuple(run.config.data.crop_size),
            augmentation=_augmentation(run),
            seed=run.config.seed,
            num_threads=None if run.config.data.num_threads < 0 else run.config.data.num_threads,
            num_workers=run.config.data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skip_broken=run.config.data.skip_broken,
            cache_dir=run.config.data.cache_dir,
        )
        stack.callback(iterator.close)
        if position.iterator_state:
            iterator.set_state(decode_iterator_state(position.iterator_state))
        else:
            position.iterator_state = encode_iterator_state(iterator.get_state())
        batches = Prefetch(iterator, run.parallel.put_batch)
        stack.callback(batches.close)
        with _explain_memory(run.config, run.parallel.space):
            _run_steps(run, position, batches, logs, stop)


def _run_steps(
    run: Run, position: Position, batches: Prefetch, logs: "_Logs", stop: StopRequest
) -> None:
    """The loop itself. The host is one step ahead of the device and fetches at log points only."""
    config = run.config
    train_step = run.parallel.compile_train_step(_step_function(run))
    window = Window(config.batch_size)
    watch = CompilationWatch()
    running, waited = None, 0.0
    for step in range(position.step + 1, config.steps + 1):
        try:
            batch = batches.next(running)
        except Exception:
            # Ctrl-C reaches the data workers too; what they then fail with did not end the run.
            if stop:
                _save(run, position)
                return
            raise
        began, compiled = time.perf_counter(), watch.count
        position.state, metrics = train_step(position.state, batch.arrays)
        position.step, position.iterator_state = step, batch.iterator_state
        window.add(step, metrics, batch.ids)
        if running is None:
            metrics["loss"].block_until_ready()
            seconds = time.perf_counter() - began
            run.progress.say(f"first step took {seconds:.1f} s, compilation included")
            run.progress.restart_clock(step)
            window.resume()
            waited = batches.seconds_waited
        else:
            if watch.count > compiled:
                _warn_of_compilation(step, batch.ids, time.perf_counter() - began)
            running.block_until_ready()
        running = metrics["loss"]
        run.progress.advance(step)

        is_last = step == config.steps
        report = is_last or step % config.log.every_steps == 0
        evaluation = _is_evaluation_due(run, step)
        save = is_last or evaluation or _is_due(step, config.checkpoint.every_steps)
        stopped = _is_stop_agreed(stop, at_report=report)
        if not (report or save or stopped):
            continue
        _check_finite(position.state, window, run)
        run.checkpoints.poll()
        if report:
            values = window.report(batches.seconds_waited - waited)
            waited = batches.seconds_waited
            logs.training(step, values)
        window.pause()
        try:
            if evaluation and not stopped:
                _evaluate(run, position, logs, stop)
        except _StoppedError:
            stopped = True
        if save or stopped:
            _save(run, position)
        if stopped:
            break
        window.resume()
    watch.close()


def _step_function(run: Run) -> Any:
    """One step of the run, not yet compiled."""
    loss, optimizer = run.config.loss, run.config.optimizer
    return make_train_step(
        run.model,
        run.tx,
        schedule=run.schedule,
        label_smoothing=loss.label_smoothing,
        class_weights=tuple(loss.class_weights) or None,
        reduction=loss.reduction,
        sample_rate=loss.sample_rate,
        outputs={name: OutputLoss(**own) for name, own in loss.outputs.to_dict().items()},
        accumulate_steps=optimizer.accumulate_steps,
        ema_decay=optimizer.ema_decay,
        frozen=names_in(optimizer.frozen),
    )


def _augmentation(run: Run) -> data.Augmentation:
    settings = run.config.data
    return data.Augmentation(
        scale=tuple(settings.scale),
        scale_step=settings.scale_step,
        flip=settings.flip,
        rotate=settings.rotate,
        blur=settings.blur,
        photometric=settings.photometric,
        fill=tuple(round(value) for value in run.model.normalization.mean),
    )


def _is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps, 0 for never, is done after `step`."""
    return bool(every) and step % every == 0


def _is_evaluation_due(run: Run, step: int) -> bool:
    return step == run.config.steps or _is_due(step, run.config.eval.every_steps)


def _is_evaluation_missing(run: Run, position: Position) -> bool:
    """Whether the run was stopped in the evaluation of the step it is at."""
    done = any(entry["step"] == position.step for entry in position.history)
    return position.step > 0 and _is_evaluation_due(run, position.step) and not done


def _stopped(run: Run, position: Position) -> bool:
    """Whether something is left to do."""
    return position.step < run.config.steps or _is_evaluation_missing(run, position)


def _is_stop_agreed(stop: StopRequest, *, at_report: bool) -> bool:
    """Whether to stop; several processes agree on it where they wait for each other anyway."""
    if jax.process_count() == 1:
        return bool(stop)
    return at_report and bool(multihost_utils.process_allgather(np.array(bool(stop))).any())


def _check_finite(state: TrainState, window: Window, run: Run) -> None:
    """Raises NonFiniteLossError if a step since the last check was not applied."""
    first_bad = int(jax.device_get(state.first_bad_step.addressable_data(0)))
    if first_bad < 0:
        return
    step = first_bad + 1  # the state counts from 0
    metrics = window.metrics(step)
    numbers = ", ".join(
        f"{name} {metrics[name]:.4g}" for name in ("loss", "grad_norm", "learning_rate") if metrics
    )
    ids = ", ".join(window.ids(step)) or "not known any more"
    saved = run.checkpoints.steps()
    kept = f"checkpoint {saved[-1]} is the last" if saved else "there is none yet"
    raise NonFiniteLossError(
        f"the loss or its gradient is not finite in step {step} ({numbers}).\n"
        f"  Records of its batch: {ids}.\n"
        f"  The step was not applied, and no checkpoint holds any such value; {kept}.\n"
        "  Try a lower optimizer.learning_rate, optimizer.grad_clip_norm=1.0, "
        "schedule.warmup_steps, or dtype=float32; and look at the pictures and labels named above. "
        "A run with changed settings needs another --workdir, or --config.allow_change=<fields>."
    )


def _warn_of_compilation(step: int, ids: Sequence[str], seconds: float) -> None:
    _log.warning(
        "step %d was compiled again (%.1f s); its batch of %d images has another shape or type "
        "than the ones before.",
        step,
        seconds,
        len(ids),
    )


@contextlib.contextmanager
def _explain_memory(config: config_dict.ConfigDict, space: int = 1) -> Iterator[None]:
    """Turn the device's "out of memory" into what can be done about it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        height, width = config.data.crop_size
        local = jax.local_device_count()
        more = next(
            (n for n in range(space + 1, local + 1) if not local % n | height % height_unit(n)),
            None,
        )
        split = f"--config.mesh=space:{more}, or " if config.parallel == "jit" and more else ""
        raise FlaxsegError(
            f"the device has too little memory for {config.model.name} on {config.model.backbone} "
            f"with batch_size {config.batch_size} of {height}x{width} crops in {config.dtype}. Set "
            f"--config.batch_size={max(config.batch_size // 2, 1)}, or --config.remat=True, or "
            f"--config.optimizer.accumulate_steps={config.optimizer.accumulate_steps * 2}, or "
            f"{split}a smaller --config.data.crop_size."
        ) from error


# Saving and evaluating


def _save(run: Run, position: Position) -> None:
    """Begin a checkpoint of this moment."""
    state = run.parallel.get_state(position.state)
    meta = Meta(
        config=run.identity,
        iterator_state=position.iterator_state,
        history=[dict(entry) for entry in position.history],
        environment=environment(run.parallel),
    )
    run.checkpoints.save(position.step, state, meta)


def _evaluate_and_save(run: Run, position: Position, logs: "_Logs", stop: StopRequest) -> None:
    """The evaluation that a stopped run still owes, and a checkpoint that knows of it."""
    _evaluate(run, position, logs, stop)
    _save(run, position)


def _evaluate(run: Run, position: Position, logs: "_Logs", stop: StopRequest) -> None:
    """Evaluate, draw, note the result in the history, and export the model if it is the best."""
    config, began = run.config, time.perf_counter()
    variables = position.state.eval_variables()
    if jax.process_count() > 1:
        variables = run.parallel.get_state(variables)
    devices = jax.local_devices()
    plan = plan_inference(
        run.model,
        variables,
        protocol_of(config),
        devices,
        batch_size=config.eval.batch_size,
    )
    # The first process draws, of the records that are its part.
    processes = jax.process_count()
    own = -(-len(run.records) // processes)
    drawn = {processes * place for place in _spread(own, config.eval.num_pictures)}
    pictures = {}

    def draw(index: int, record: data.Record, pred: np.ndarray) -> None:
        if index in drawn:
            pictures[index] = side_by_side(
                record["image"],
                record["label"],
                pred,
                run.info.class_names,
                run.info.class_colors,
                title=f"{record['id']}, step {position.step}",
            )

    def check_stop(done: int, total: int) -> None:
        if stop and done < total and jax.process_count() == 1:
            raise _StoppedError

    metrics = evaluate(
        plan.predict_fn,
        run.records,
        run.info.num_classes,
        **plan.options,
        process_index=jax.process_index(),
        process_count=processes,
        progress=check_stop,
        on_prediction=draw,
    )
    _remember(position, metrics)
    logs.evaluation(
        position.step,
        metrics,
        [pictures[index] for index in sorted(pictures)],
        time.perf_counter() - began,
    )
    if best_entry(position.history) is position.history[-1] and jax.process_index() == 0:
        _export(run, position, variables)


def _spread(length: int, count: int) -> list[int]:
    """`count` places, evenly over `length`.

    >>> _spread(100, 4)
    [12, 37, 62, 87]
    """
    count = min(count, length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _remember(position: Position, metrics: SegmentationMetrics) -> None:
    """Add an evaluation to the history; confusion matrices only of the last and the best one."""
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


def _export(run: Run, position: Position, variables: Mapping[str, Any]) -> None:
    """Write the model for everybody to use."""
    entry = position.history[-1]
    save_model(
        run.directory.model,
        variables,
        name=run.config.model.name,
        num_classes=run.info.num_classes,
        options=model_options(run.config),
        class_names=run.info.class_names,
        class_colors=run.info.class_colors,
        extra={
            "step": position.step,
            "miou": entry["miou"],
            "pixel_accuracy": entry["pixel_accuracy"],
            "data": f"{run.info.name}/{run.config.data.eval_split}",
            "config": config_to_dict(run.config),
        },
    )


# Reporting


class _Logs:
    """Where the numbers and pictures of a run go; only the first process writes."""

    def __init__(self, run: Run, from_step: int):
        self._run = run
        self._metrics = self._board = None
        if jax.process_index() == 0:
            self._metrics = MetricsFile(run.directory.metrics_file, from_step=from_step)
            if run.config.log.tensorboard:
                self._board = TensorBoard(run.directory.tensorboard, from_step=from_step)
        run.progress.start(from_step)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a log point."""
        self._run.progress.report(step, values)
        if self._metrics:
            self._metrics.write("train", step, values)
        if self._board:
            self._board.scalars("train", step, values)

    def evaluation(
        self,
        step: int,
        metrics: SegmentationMetrics,
        pictures: Sequence[np.ndarray],
        seconds: float,
    ) -> None:
        """The numbers and pictures of an evaluation."""
        self._run.progress.say(
            f"evaluation at step {step}: {metrics.summary()} ({format_seconds(seconds)})"
        )
        if self._metrics:
            numbers = metrics.to_dict(self._run.info.class_names)
            iou = {row["name"]: row["iou"] for row in numbers["classes"]}
            scalars = {name: value for name, value in numbers.items() if isinstance(value, float)}
            self._metrics.write("eval", step, {**scalars, "iou": iou, "seconds": seconds})
            folder = self._run.directory.picture_folder(step)
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(pictures):
                save_picture(folder / f"{number:03d}.png", picture)
        if self._board:
            self._board.scalars("eval", step, scalars)
            self._board.scalars("iou", step, iou)
            for number, picture in enumerate(pictures):
                self._board.picture(f"pictures/{number:03d}", step, picture)

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()
        if self._board:
            self._board.close()


def _say_end(run: Run, position: Position, stop: StopRequest) -> None:
    """The last words: the table of the best evaluation, and where things are."""
    if _stopped(run, position):
        run.progress.say(
            f"stopped by {stop.signal_name} after step {position.step}, saved in "
            f"{run.directory.checkpoints}; the same command goes on from there"
        )
        return
    best = best_entry(position.history)
    if best is None:
        run.progress.say("the run is complete; no evaluation gave a score")
        return
    metrics = SegmentationMetrics.from_matrix(np.array(best["matrix"]), best["ignored_pixels"])
    folder = run.directory.picture_folder(best["step"])
    pictures = sorted(folder.glob("*.png"))
    lines = [
        metrics.table(run.info.class_names),
        f"best mIoU at step {best['step']} of {position.step}, on {run.info.name}/"
        f"{run.config.data.eval_split}",
        f"model: {run.directory.model}",
        *(["pictures:", *(f"  {path}" for path in pictures)] if pictures else []),
    ]
    run.progress.say("\n".join(lines))
