"""Saves and restores checkpoints, with all that a bit-exact continuation needs, verified.

Orbax writes a checkpoint beside its place. It does not wait for all of its files to reach the
disk, so a folder that Orbax has renamed may have empty files after a power cut. Here every file and
folder is synced before the checkpoint gets its name, and older checkpoints are deleted only when
that name is on the disk too: a folder with the name of a step is whole.

Orbax keeps no digests either, and restores a flipped bit silently. Therefore each checkpoint holds
the SHA-256 of every array and of its own description; one that does not match is set aside in
favour of the one before.

    checkpoints/<step>/state/<path>/    one array each, its path joined by dots
    checkpoints/<step>/meta/metadata    JSON: digests, config, iterator, history
    checkpoints/<step>.saving*          a checkpoint that is being written
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxseg.errors import CheckpointError, NonFiniteLossError, WriteError
from flaxseg.files import (
    fetched,
    free_space,
    is_whole,
    make_folder,
    names_in,
    previous_of,
    remove_tree,
    replace_folder,
    staging,
    take_back,
    writing,
)
from flaxseg.paths import as_path, is_remote

FORMAT_VERSION = 1

_MAX_LISTED = 8

_log = logging.getLogger(__name__)

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Meta:
    """Holds what a checkpoint has in addition to the arrays, as JSON.

    Attributes:
      config: of the run, see `resume.identity`.
      iterator_state: JSON text of the data iterator's state after the last batch that was used; all
        processes have taken as many batches.
      history: one dict per evaluation so far, with "step" and "miou".
      environment: what the results may depend on in addition to the config: versions and devices.
      window: what the next report needs of the steps since the last one, see `Window.state`.
    """

    config: dict[str, Any]
    iterator_state: str
    history: list[dict[str, Any]]
    environment: dict[str, Any]
    window: dict[str, list[float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Restored:
    """Holds a checkpoint that was read and verified.

    Attributes:
      step: steps done.
      state: NumPy arrays in the structure that was asked for.
      meta: the rest.
      suffix: what later ones are renamed to by `go_on_from`.
    """

    step: int
    state: Any
    meta: Meta
    suffix: str = "set_aside"


class _DamagedError(Exception):
    """Says that a checkpoint is not what was written."""


@dataclasses.dataclass(frozen=True)
class _Save:
    """Holds a save under way.

    Attributes:
      step: steps done.
      size: of the arrays, in bytes.
      written: done once the checkpoint is on the disk.
    """

    step: int
    size: int
    written: concurrent.futures.Future[None]


class Checkpoints:
    """Keeps the checkpoints of one run.

    A thread writes them, one at a time. An error of a save is raised by the next `poll`, `save`,
    `finish` or `close`, whichever comes first. Of several processes, the first one writes.
    """

    def __init__(self, directory: str | os.PathLike, *, keep_last: int = 2, keep_best: int = 1):
        """
        Args:
          directory: created if it is missing.
          keep_last: newest checkpoints that are kept, at least 1.
          keep_best: checkpoints with the largest mIoU that are kept beside them.

        Raises:
          CheckpointError: the folder cannot be made or read.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; it must be at least 1.")
        self.directory = as_path(directory)
        self._keep_last, self._keep_best = keep_last, keep_best
        self._saving: _Save | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._orbax = _open_orbax()
        try:
            make_folder(self.directory)
            if jax.process_index() == 0:
                self._clean_up()
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint folder {self.directory} cannot be used: "
                f"{_first_line(error)}. Mend its permissions, or give another --workdir."
            ) from error

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints on disk, rising."""
        # Where somebody deleted the folder, the next save makes it anew.
        names = [name for name in names_in(self.directory) if name.isdecimal()]
        return sorted(int(name) for name in names if is_whole(self.directory / name))

    def save(self, step: int, state: Any, meta: Meta) -> None:
        """Begins to write a checkpoint, and returns.

        Args:
          step: steps done. An existing checkpoint of this step is replaced.
          state: tree of host arrays; it is not copied, and must not be written to afterwards.
          meta: see `Meta`.

        Raises:
          NonFiniteLossError: an array holds a value that is not finite; nothing is written.
          WriteError: it cannot be written, or the save before this one failed.
        """
        self.finish()
        leaves = _named_leaves(state)
        _check_finite(leaves, step)
        if jax.process_index() != 0:
            return
        size = sum(leaf.nbytes for leaf in leaves.values())
        self._check_room(step, size)
        written = self._thread.submit(self._write, step, leaves, meta)
        self._saving = _Save(step, size, written)

    def poll(self) -> None:
        """Notes a save that is done; never waits.

        Raises:
          WriteError: it failed.
        """
        if self._saving and self._saving.written.done():
            self.finish()

    def finish(self) -> None:
        """Waits for the save under way.

        Raises:
          WriteError: the save failed; the checkpoints before it are still there.
        """
        if not self._saving:
            return
        save, self._saving = self._saving, None
        try:
            save.written.result()
        except Exception as error:
            raise self._save_failed(save.step, save.size, error) from error

    def last(self) -> int | None:
        """Finishes the save under way and returns the newest step, None without any.

        An error of the save is only reported: this is for where another error ends the run.
        """
        try:
            self.finish()
        except WriteError as error:
            _log.error("%s", error)
        return max(self.steps(), default=None)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is not None:
            self.last()
        self.close()

    def close(self) -> None:
        """Waits for the save under way and frees the thread."""
        try:
            self.finish()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def restore(
        self,
        like: Tree,
        step: int | None = None,
        check: Callable[[Meta, bool], Sequence[str]] = lambda meta, fits: (),
    ) -> Restored | None:
        """Reads the newest good checkpoint; nothing on the disk changes.

        Where one is damaged, a warning names it, and the one before it is taken. Call `go_on_from`
        with what is returned before the next save.

        Args:
          like: tree of arrays or shapes that the state must fit.
          step: the checkpoint to read instead.
          check: called before the arrays are read, with whether they fit; raises where the
            checkpoint is not of this run, and returns what has changed since, in words.

        Returns:
          The checkpoint, or None where there is none.

        Raises:
          CheckpointError: there is no checkpoint of `step`; there are checkpoints and none can be
            read; or the parameters differ in name or shape from those of `like`.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.directory}; there are: {have}. "
                "Set checkpoint.restore_step to one of them, or to -1 for the newest."
            )
        wanted = [s for s in steps if step is None or s <= step]
        damages = []
        for candidate in reversed(wanted):
            try:
                restored = self._read(candidate, like, check)
            except _DamagedError as error:
                damages.append(str(error))
                if step is not None:
                    raise CheckpointError(f"{error} Other checkpoints: {steps}.") from error
                _log.warning("%s It is set aside, and the one before it is used.", error)
                continue
            return dataclasses.replace(restored, suffix="damaged" if damages else "set_aside")
        if damages:
            raise CheckpointError(
                "no checkpoint of this run can be read:\n"
                + "\n".join(f"  - {damage}" for damage in damages)
                + f"\nNothing was deleted. Restore {self.directory} from a copy, or start again "
                "with another --workdir."
            )
        return None

    def read(self, step: int, like: Tree) -> Restored | None:
        """Returns one checkpoint, None if it is missing or damaged; nothing is set aside."""
        self.last()
        try:
            return self._read(step, like, lambda meta, fits: ()) if step in self.steps() else None
        except _DamagedError as error:
            _log.warning("%s", error)
            return None

    def newest_meta(self) -> tuple[int, Meta] | None:
        """Returns step and description of the newest checkpoint, or None where it has no good
        one."""
        steps = self.steps()
        try:
            return (steps[-1], _meta(self._read_meta(steps[-1]))) if steps else None
        except _DamagedError:
            return None

    def go_on_from(self, restored: Restored) -> None:
        """Renames the checkpoints after a restored one, whose steps will be saved again: to
        `<step>.damaged` or `<step>.set_aside`."""
        for step in self.steps():
            if step > restored.step:
                self._move(step, restored.suffix)

    # Reading

    def _read(
        self, step: int, like: Tree, check: Callable[[Meta, bool], Sequence[str]]
    ) -> Restored:
        """Reads and verifies one checkpoint; `_DamagedError` says what is wrong with it."""
        content = self._read_meta(step)
        meta = _meta(content)
        expected = _named_shapes(like)
        misfits = _misfits(content["leaves"], expected)
        changes = check(meta, not misfits)
        if misfits:
            raise self._misfit(step, misfits, changes)
        template = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in content["leaves"]}
        try:
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=_nest(template)))
            with fetched(self.directory / str(step)) as folder:
                nested = self._orbax.restore(folder, args).state
            leaves = {name: np.asarray(_find(nested, name)) for name in content["leaves"]}
        except Exception as error:
            raise _DamagedError(self._name_unreadable(step, content["leaves"], error)) from error
        found = _describe(leaves)
        for name, wanted in content["leaves"].items():
            if found[name] != wanted:
                raise _DamagedError(
                    f"checkpoint {step} is damaged: {name} in {self._leaf_path(step, name)} is not "
                    f"what was written (sha256 {found[name]['sha256'][:12]}..., "
                    f"wanted {wanted['sha256'][:12]}...)."
                )
        ordered = [leaves[name] for name in expected]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(like), ordered), meta)

    def _read_meta(self, step: int) -> dict[str, Any]:
        path = self.directory / str(step) / "meta"
        try:
            meta = json.loads((path / "metadata").read_text(encoding="utf-8"))
            content = meta["content"]
            good = meta["sha256"] == _digest_json(content)
        except Exception as error:
            raise _DamagedError(
                f"checkpoint {step} is incomplete: {path} cannot be read ({_first_line(error)})."
            ) from error
        if not good:
            raise _DamagedError(
                f"checkpoint {step} is damaged: the description in {path} is not what was written."
            )
        if content["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} has format "
                f"{content['format_version']}; this flaxseg reads up to {FORMAT_VERSION}. Use "
                f"flaxseg {content['environment'].get('flaxseg')}, which wrote it, or a later one."
            )
        return content

    def _misfit(self, step: int, misfits: list[str], changes: Sequence[str]) -> CheckpointError:
        """Returns the error for arrays that are not those of the run."""
        more = [f"... and {len(misfits) - _MAX_LISTED} more"] if len(misfits) > _MAX_LISTED else []
        cause = "of another model, number of classes or optimizer"
        if changes:
            changed = "\n".join(f"  - {change}" for change in changes)
            cause = f"of other settings, and cannot go on with these:\n{changed}\nIts arrays differ"
        return CheckpointError(
            f"checkpoint {step} in {self.directory} is {cause}:\n"
            + "\n".join(f"  - {line}" for line in misfits[:_MAX_LISTED] + more)
            + "\nTo go on with that run, give its config again (config.json in its workdir). To "
            "start this one, give another --workdir; to start it from that run's best model, add "
            f"--config.init.model={self.directory.parent} --config.init.reinit_head=True"
        )

    def _name_unreadable(self, step: int, names: Mapping[str, Any], error: Exception) -> str:
        """Returns which array of a checkpoint cannot be read: Orbax does not always say it."""
        text = str(error)
        for name in names:
            path = self._leaf_path(step, name)
            if not path.is_dir() or f"{path.name}/" in text or f"{path.name}'" in text:
                break
        else:
            name, path = "an array", self.directory / str(step) / "state"
        cause = _first_line(error)
        return f"checkpoint {step} is damaged: {name} in {path} cannot be read ({cause})."

    def _leaf_path(self, step: int, name: str) -> pathlib.Path:
        return self.directory / str(step) / "state" / name.replace("/", ".")

    # Writing and deleting

    def _write(self, step: int, leaves: Mapping[str, np.ndarray], meta: Meta) -> None:
        """Writes a checkpoint, gives it its name once it is on the disk, then deletes others."""
        content = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "leaves": _describe(leaves),
            **dataclasses.asdict(meta),
        }
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_nest(leaves)),
            meta=ocp.args.JsonSave({"sha256": _digest_json(content), "content": content}),
        )
        with staging(self.directory / f"{step}.saving") as staged:
            self._orbax.save(staged, args, force=True)
            replace_folder(staged, self.directory / str(step))
        self._prune(meta.history)

    def _check_room(self, step: int, size: int) -> None:
        """Raises CheckpointError where the disk has too little room, before anything is written."""
        if free_space(self.directory) < size:
            raise self._save_failed(step, size, OSError("the disk is full"))

    def _save_failed(self, step: int, size: int, error: BaseException) -> WriteError:
        """Returns the error to raise; deletes what was written of the checkpoint."""
        self._clean_up()
        have = self.steps()
        kept = f"checkpoint {have[-1]} is kept" if have else "there is no checkpoint before it"
        failed = WriteError(
            f"checkpoint {step} could not be written to {self.directory / str(step)}: "
            f"{_first_line(error)}. It needs {_megabytes(size)}, and "
            f"{_megabytes(free_space(self.directory))} are free; {kept}. "
            "Free some room or mend the permissions, then give the same command again."
        )
        failed.errno = getattr(error, "errno", None)
        return failed

    def _prune(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Deletes all but the last and the best checkpoints; a failure is only reported."""
        steps = self.steps()
        scores = {entry["step"]: entry["miou"] for entry in history}
        ranked = sorted(
            (s for s in steps if _is_score(scores.get(s))), key=lambda s: (-scores[s], s)
        )
        keep = {*steps[-self._keep_last :], *ranked[: self._keep_best]}
        for step in steps:
            if step not in keep and is_remote(self.directory):
                remove_tree(self.directory / str(step), _report_failed_delete)
            elif step not in keep:
                self._move(step, "deleted")
        for path in self.directory.glob("*.deleted"):
            remove_tree(path, _report_failed_delete)

    def _move(self, step: int, suffix: str) -> None:
        """Renames a checkpoint, so that it ceases to be one in a single moment."""
        if jax.process_index() != 0:
            return
        source = self.directory / str(step)
        target = self.directory / f"{step}.{suffix}"
        try:
            remove_tree(target)
            with writing(target):
                source.rename(target)
        except OSError as error:
            _log.warning("%s cannot be renamed to %s: %s", source, target.name, error)

    def _clean_up(self) -> None:
        """Takes back a checkpoint whose replacement was never completed; drops other leftovers."""
        if is_remote(self.directory):  # what was cut short; there is nothing to take back
            for name in names_in(self.directory):
                if name.isdecimal() and not is_whole(self.directory / name):
                    remove_tree(self.directory / name)
            return
        for step in [path.name.split(".")[1] for path in self.directory.glob(".*.previous")]:
            take_back(self.directory / step)
            remove_tree(previous_of(self.directory / step))
        # Some files of a failed save may still be in the making: what cannot be deleted now is not
        # a checkpoint, and is deleted the next time.
        for suffix in ("deleted", "saving", "orbax-checkpoint-tmp"):
            for path in self.directory.glob(f"*.{suffix}"):
                remove_tree(path)


def _open_orbax() -> ocp.Checkpointer:
    """Returns what writes and reads the files of a checkpoint, in this process alone."""
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        # One folder per array, so that damage has a name.
        state=ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=options),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def best_entry(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the evaluation with the largest mIoU, the earliest of equal ones; never NaN."""
    scored = [entry for entry in history if _is_score(entry["miou"])]
    return min(scored, key=lambda entry: (-entry["miou"], entry["step"]), default=None)


def _meta(content: Mapping[str, Any]) -> Meta:
    names = [field.name for field in dataclasses.fields(Meta) if field.name in content]
    return Meta(**{name: content[name] for name in names})


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Returns `{"params/backbone/stem/kernel": array}` in the order of the tree's leaves."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): np.asarray(leaf) for path, leaf in pairs}


def _named_shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns `(shape, dtype)` by name, of arrays or of their shapes."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in pairs}


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _misfits(saved: Mapping[str, Mapping], expected: Mapping[str, tuple]) -> list[str]:
    """Returns how the arrays of a checkpoint differ from those of a run, a line each."""
    shapes = {name: (tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in saved.items()}
    differ = [name for name in expected if name in shapes and expected[name] != shapes[name]]
    lines = [
        f"{name}: the checkpoint has {_array(shapes[name])}, this run {_array(expected[name])}"
        for name in differ
    ]
    lines += [
        f"{name}: the checkpoint lacks it, this run has {_array(expected[name])}"
        for name in expected
        if name not in shapes
    ]
    lines += [
        f"{name}: the checkpoint has {_array(shapes[name])}, this run has no such parameter"
        for name in shapes
        if name not in expected
    ]
    # Parameters first: users know them by name, unlike their moments and averages.
    return sorted(lines, key=lambda line: not line.startswith("params/"))


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns flat names as nested dicts."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _find(nested: Mapping[str, Any], name: str) -> Any:
    for part in name.split("/"):
        nested = nested[part]
    return nested


def _describe(leaves: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Returns shape, type and SHA-256 of each array; several threads compute the digests."""

    def describe(leaf: np.ndarray) -> dict[str, Any]:
        data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        digest = hashlib.sha256(data).hexdigest()
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": digest}

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(leaves, pool.map(describe, leaves.values()), strict=True))


def _digest_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_finite(leaves: Mapping[str, np.ndarray], step: int) -> None:
    for name, leaf in leaves.items():
        if np.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
            raise NonFiniteLossError(
                f"{name} holds values that are not finite after {step} steps; no checkpoint was "
                "written. Lower optimizer.learning_rate or set optimizer.grad_clip_norm."
            )


def _array(shape_and_dtype: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = shape_and_dtype
    return f"{list(shape)} {dtype}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def _report_failed_delete(function: Any, path: str, info: Any) -> None:
    _log.warning("an old checkpoint cannot be deleted: %s: %s", path, info[1])
