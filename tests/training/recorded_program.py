"""`tiny_program.py` that also writes down the ids of each batch it reads.

    python recorded_program.py FOLDER --config=... --workdir=...

Process i writes FOLDER/i, one line a batch. Batches are read ahead, so there are more of them than
steps.
"""

import pathlib
import runpy
import sys

import jax

import flaxseg.data

FOLDER = pathlib.Path(sys.argv.pop(1))
_open_stream = flaxseg.data.train_batches


class Recorded:
    """A stream whose batches are written down."""

    def __init__(self, stream):
        self._stream = stream
        self._file = (FOLDER / str(jax.process_index())).open("w", buffering=1)

    def __next__(self):
        batch = next(self._stream)
        self._file.write(" ".join(batch["id"]) + "\n")
        return batch

    def __getattr__(self, name):
        return getattr(self._stream, name)


if __name__ == "__main__":
    flaxseg.data.train_batches = lambda *args, **options: Recorded(_open_stream(*args, **options))
    runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_program.py")), run_name="__main__")
