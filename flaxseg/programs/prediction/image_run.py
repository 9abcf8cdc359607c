"""Runs the network on many image files, and writes the results of each."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from flaxseg.errors import DataError, FlaxsegError, WriteError
from flaxseg.files import writing
from flaxseg.folder_walk import broken_link
from flaxseg.image_files import ImageFile, Orientation, read_image_file
from flaxseg.inference.segmenter import Segmentation, Segmenter
from flaxseg.programs.prediction.output_names import ImageTask
from flaxseg.programs.prediction.prediction_record import PredictionRecord, Stamp

_READ_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """Says how a task ended: with notes in words, or with an error."""

    task: ImageTask
    notes: tuple[str, ...] = ()
    error: Exception | None = None


class Writer(Protocol):
    """Writes the files of an image, as `FileWriter` and `Submission` do."""

    def write(self, files: Mapping[str, pathlib.Path], result: Segmentation) -> object:
        """Writes the files of an image, by kind."""


def predict_images(
    segmenter: Segmenter,
    tasks: Sequence[ImageTask],
    writer: Writer,
    record: PredictionRecord,
    *,
    on_new_size: Callable[[tuple[int, int]], None] | None = None,
    orientation: Orientation = "upright",
) -> Iterator[ImageResult]:
    """Writes the files of every task, and yields how each ended; a bad image does not stop the
    others.

    The next images are decoded while one is computed. Each file appears whole or not at all.

    Args:
      segmenter: the network and its protocol. Whole images are compiled once per size, and the
        protocol's `pad_multiple` limits the number of sizes. Windows have one size.
      tasks: what `plan_tasks` returned.
      writer: writes the files.
      record: where it is noted whose the files are, and which images are done.
      on_new_size: called with (H, W) before a size is run, and so compiled, for the first time.
      orientation: what to do with images that are stored turned, as for `decode_image`.

    Raises:
      WriteError: the files or the record cannot be written, so that going on is of no use.
    """
    # Made now: a folder that disappears later is not made again, but stops the program.
    for folder in sorted({path.parent for task in tasks for path in task.files.values()}):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    protocol, seen = segmenter.protocol, set()
    for task, read in _read_ahead(tasks, orientation):
        try:
            stamp, image_file = read()
            image = image_file.pixels
            for scale in protocol.scales:
                size = protocol.layout(image.shape[:2], scale).window
                if size not in seen and on_new_size is not None:
                    on_new_size(size)
                seen.add(size)
            result = segmenter.run(image)
            record.claim(task.source, stamp, task.files)
            with writing(record.folder):
                writer.write(task.files, result)
            record.finish(task.source, stamp, task.files)
        except WriteError:
            raise
        except FlaxsegError as error:
            yield ImageResult(task, error=error)
        else:
            yield ImageResult(task, image_file.notes)


def _read_ahead(
    tasks: Sequence[ImageTask], orientation: Orientation
) -> Iterator[tuple[ImageTask, Callable[[], tuple[Stamp, ImageFile]]]]:
    """Yields each task with a function that waits for its image, or raises what reading it did."""
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="predict-read") as pool:
        ahead = collections.deque()
        try:
            for task in tasks:
                ahead.append((task, pool.submit(_read, task.source, orientation).result))
                if len(ahead) > _READ_AHEAD:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(source: pathlib.Path, orientation: Orientation) -> tuple[Stamp, ImageFile]:
    try:
        stamp = Stamp.of(source)  # before reading: an image that changes meanwhile is not done
    except OSError as error:
        raise DataError(f"{source}: {broken_link(source) or error.strerror}") from None
    except ValueError as error:  # a name with a zero in it
        raise DataError(f"{source!s:.200}: {error}") from None
    return stamp, read_image_file(source, orientation=orientation)
