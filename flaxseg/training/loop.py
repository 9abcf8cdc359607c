"""Tells the story of a whole training run, from a config to an evaluated model.

A run can be stopped or killed at any moment; see `flaxseg.training.resume`.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import config_dict

from flaxseg import data
from flaxseg.errors import NonFiniteLossError
from flaxseg.training.checkpoint import best_entry
from flaxseg.training.companions import Companions
from flaxseg.training.compilation import CompilationWatch
from flaxseg.training.config_check import validate_config
from flaxseg.training.device_memory import explain_memory
from flaxseg.training.prefetch import Prefetch, decode_iterator_state, encode_iterator_state
from flaxseg.training.resume import Position, check_start, save, start_or_resume
from flaxseg.training.run import Run, open_batches, open_run
from flaxseg.training.run_directory import RunDirectory
from flaxseg.training.run_evaluation import (
    StoppedError,
    evaluate_run,
    export_best,
    is_evaluation_missing,
)
from flaxseg.training.run_log import RunLog
from flaxseg.training.run_settings import DataSettings
from flaxseg.training.signals import EXIT_STOPPED, stop_on_signals
from flaxseg.training.state import TrainState
from flaxseg.training.window import Window

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """Holds the outcome of `train_and_evaluate`.

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


def train_and_evaluate(config: config_dict.ConfigDict, workdir: str) -> TrainingResult:
    """Trains and evaluates a model, or resumes a run.

    The run is a function of the config: killed at any moment and called again with the same
    arguments, it ends with the same parameters, bit for bit, on the same number of devices.

    Args:
      config: of the form of `default_config()`; it is checked first.
      workdir: the folder of the run, see `flaxseg.training.run_directory`. A run that it holds is
        resumed.

    Returns:
      How it ended. SIGTERM and SIGINT end it early, saved.

    Raises:
      Interrupted: by one of these signals, before the first step was done.
      ConfigError: a setting is wrong, or differs from those the run was started with.
      DataError: the data set is missing or damaged.
      WeightsError: the weights to start from could not be loaded.
      CheckpointError: the workdir cannot be used, or a checkpoint cannot be read.
      WriteError: a checkpoint or the config cannot be written.
      NonFiniteLossError: the loss became infinite or not a number.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        companions = stack.enter_context(Companions(stop))
        is_first = jax.process_index() == 0
        directory = RunDirectory(workdir)
        settings, network = validate_config(config, device_count=jax.device_count())
        if not directory.has_checkpoints():
            check_start(settings.start)
        _prepare_data(settings.data, progress=is_first)
        directory.create()
        if is_first:
            stack.callback(directory.remove_unused)
            stack.enter_context(directory.lock())
            directory.check_checkpoints()
        run = open_run(settings, network, directory)
        stack.callback(run.progress.close)
        stack.enter_context(run.checkpoints)
        position = start_or_resume(run)
        if is_first:
            directory.write_config(settings.fields)
        log = RunLog(run, position.step)
        stack.callback(log.close)
        _train(run, position, log, companions)
        run.checkpoints.finish()
        export_best(run, position)
        if jax.process_count() > 1:  # the first one writes; the others must not end before it
            multihost_utils.sync_global_devices("the run is saved")
        left = position.step < settings.timetable.steps or is_evaluation_missing(run, position)
        stopped_by = companions.stopped_by if left else ""
        stop.finish(EXIT_STOPPED if stopped_by else 0)
        log.last_words(position, stopped_by)
        return TrainingResult(
            step=position.step,
            stopped_by=stopped_by,
            history=position.history,
            best=best_entry(position.history),
            model=directory.model,
        )


def _prepare_data(own: DataSettings, *, progress: bool) -> None:
    """Prepares the data set, unless it is, and checks that it can be trained on."""
    data.prepare(
        own.name, own.dir, own.manual_dir, progress=progress, allow_problems=own.allow_problems
    )
    data.check_trainable(own.name, own.train_split, own.dir, own.allow_problems)


def _train(run: Run, position: Position, log: RunLog, companions: Companions) -> None:
    """Takes all steps from `position` to the last, or to the stop; `position` is moved along."""
    if is_evaluation_missing(run, position):
        with contextlib.suppress(StoppedError):
            _evaluate(run, position, log, companions)
            companions.stop.hold()
            _save(run, position, log)
    export_best(run, position)
    if position.step >= run.settings.timetable.steps or companions.stops_after(position.step):
        return
    with contextlib.ExitStack() as stack:
        iterator = open_batches(run)
        if position.iterator_state:
            iterator.set_state(decode_iterator_state(position.iterator_state))
        else:
            position.iterator_state = encode_iterator_state(iterator.get_state())
        batches = Prefetch(iterator, run.parallel.put_batch)
        stack.callback(batches.close)
        watch = CompilationWatch()
        stack.callback(watch.close)
        with explain_memory(run.settings):
            _run_steps(run, position, batches, watch, log, companions)


def _run_steps(
    run: Run,
    position: Position,
    batches: Prefetch,
    watch: CompilationWatch,
    log: RunLog,
    companions: Companions,
) -> None:
    """Takes one step after the other.

    The host is one step ahead of the device, and fetches numbers at log points only.
    """
    timetable = run.settings.timetable
    train_step = run.parallel.compile_train_step(run.step)
    window = Window(run.settings.batch_size, position.window)
    running = None  # an output of the step under way
    for step in range(position.step + 1, timetable.steps + 1):
        companions.at(step, f"reading the batch of step {step}")
        batch = batches.next(running)
        if running is None:
            run.progress.say("compiling the training step; this can take minutes, and is done once")
        companions.at(step, f"computing step {step}", waits=True)
        began, compiled = time.perf_counter(), watch.count
        position.state, metrics = train_step(position.state, batch.arrays)
        position.step, position.iterator_state = step, batch.iterator_state
        window.add(step, metrics, batch.ids)
        if running is None:
            metrics["loss"].block_until_ready()
            companions.stop.hold()
            _note_first_step(run, step, time.perf_counter() - began)
            window.resume(batches.seconds_waited)
        else:
            if watch.count > compiled:
                _warn_of_compilation(step, batch.ids, time.perf_counter() - began)
            running.block_until_ready()
        running = metrics["loss"]
        run.progress.advance(step)

        reports, saves = timetable.reports(step), timetable.saves(step)
        stopped = companions.stops_after(step)
        if not (reports or saves or stopped):
            continue
        _check_finite(position.state, window, run)
        run.checkpoints.poll()
        if reports:
            log.training(step, window.report(batches.seconds_waited))
        window.pause()
        try:
            if timetable.evaluates(step) and not stopped:
                _evaluate(run, position, log, companions)
        except StoppedError:
            stopped = True
        if saves or stopped:
            companions.at(step, f"saving step {step}", waits=jax.process_index() > 0)
            _save(run, position, log, window)
            export_best(run, position)
        if stopped:
            return
        window.resume()


def _save(run: Run, position: Position, log: RunLog, window: Window | None = None) -> None:
    """Begins a checkpoint of this moment; the logs of the steps before it are on the disk first."""
    if window is not None:
        position.window = window.state()
    log.sync()
    save(run, position)


def _evaluate(run: Run, position: Position, log: RunLog, companions: Companions) -> None:
    """Evaluates the model and reports what was found."""
    log.evaluation(position.step, evaluate_run(run, position, companions))


def _note_first_step(run: Run, step: int, seconds: float) -> None:
    """Says how long the first step took, and leaves it out of the pace."""
    run.progress.say(f"first step took {seconds:.1f} s, compilation included")
    run.progress.restart_clock(step)


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
    last = run.checkpoints.last()
    kept = "there is none yet" if last is None else f"checkpoint {last} is the last"
    raise NonFiniteLossError(
        f"the loss or its gradient is not finite in step {step} ({numbers}).\n"
        f"  Records of its batch: {ids}.\n"
        f"  The step was not applied, and no checkpoint holds any such value; {kept}.\n"
        "  Try a lower optimizer.learning_rate, optimizer.grad_clip_norm=1.0, "
        "schedule.warmup_steps, or dtype=float32; and look at the images and labels named above. "
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
