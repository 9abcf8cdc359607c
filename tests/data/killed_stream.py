"""Reads a training stream again and again and dies at random, for the test beside it.

    python killed_stream.py DATA_DIR FOLDER

The first child reads the stream undisturbed. Ten others read it one after the other, each from the
state that was saved last, and are killed with SIGKILL at moments that nobody chose; the last one
may finish. Each batch is a line in a log: its number, its record ids, and a digest of its bytes.
Batches between the last saved state and the kill are read again, and so are logged again.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import time

from flaxseg.data import Augmentation, train_batches

BATCHES = 100
KILLS = 10
SAVED_EVERY = 4


def read(data_dir: str, log: pathlib.Path, state_file: pathlib.Path, num_threads: int) -> None:
    """Goes on with the stream and logs every batch; a state is saved now and then."""
    stream = train_batches(
        "camvid",
        "train",
        data_dir=data_dir,
        batch_size=4,
        crop_size=(40, 48),
        augmentation=Augmentation(rotate=10.0, blur=0.5, photometric=0.5),
        seed=11,
        num_threads=num_threads,
    )
    first = 0
    if state_file.exists():
        first, state = json.loads(state_file.read_text())
        stream.set_state(state)
    with log.open("a", buffering=1) as file:
        for number in range(first, BATCHES):
            batch = next(stream)
            digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
            file.write(f"{number} {' '.join(batch['id'])} {digest}\n")
            if number % SAVED_EVERY == 0:
                partial = state_file.with_suffix(".partial")
                partial.write_text(json.dumps([number + 1, stream.get_state()]))
                partial.replace(state_file)
    os._exit(0)


def start(*arguments) -> int:
    """Runs `read` in a process that shares this one's imports."""
    child = os.fork()
    if child == 0:
        try:
            read(*arguments)
        finally:
            os._exit(1)
    return child


def lines(log: pathlib.Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def main(data_dir: str, folder: pathlib.Path) -> None:
    """Prints as JSON how many children were killed; the logs are `whole` and `killed`."""
    whole = start(data_dir, folder / "whole", folder / "whole.json", 2)
    assert os.waitpid(whole, 0)[1] == 0
    log, state = folder / "killed", folder / "killed.json"
    dice = random.Random(5)
    kills = 0
    for number in range(KILLS):
        wanted = lines(log) + dice.randint(1, BATCHES // KILLS - SAVED_EVERY)
        child = start(data_dir, log, state, (1, 2, 4)[number % 3])
        while lines(log) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.003))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    last = start(data_dir, log, state, 2)
    assert os.waitpid(last, 0)[1] == 0
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
