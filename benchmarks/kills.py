"""Kills a training run at random moments and compares how it ends with an undisturbed one.

    python benchmarks/kills.py --kills 100 --out runs/kills

Trains with the recipe of `make demo`, with fewer steps, two crops of 49 x 49 to a batch, and more
frequent checkpoints, evaluations and reports. Each start is ended by SIGKILL at a random moment,
until one finishes; then the next run begins. One kill in five comes while the program opens the run
and compiles, the others after its first step. Every finished run must equal the undisturbed one:
parameters, statistics and optimizer bit for bit, the history of evaluations, the model, every line
of the log apart from times, and every TensorBoard point.

OUT/kills.jsonl has a line per kill and per finished run. The same command goes on from there.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from flaxseg.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = {
    "batch_size": 2,
    "data.crop_size": "49,49",
    "schedule.warmup_steps": 10,
    "checkpoint.every_steps": 4,
    "eval.every_steps": 50,
    "eval.num_images": 1,
    "data.eval_split": "val[:24]",
    "log.every_steps": 7,  # not a divisor: a window of averages often spans a checkpoint
}
TIMES = ("images_per_second", "data_wait", "seconds")
OPENED, FIRST_STEP = "going on|a new run", "first step took"
DAMAGE = re.compile(r"damaged|incomplete|cannot be read|Traceback")


def command(workdir: pathlib.Path, steps: int) -> list[str]:
    """Returns the command that trains in a folder."""
    fields = {**SETTINGS, "steps": steps, "data.dir": workdir.parent / "data"}
    return [
        *(sys.executable, str(ROOT / "train.py"), "--config=configs/deeplab.py:data=shapes"),
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def start(workdir: pathlib.Path, steps: int) -> subprocess.Popen:
    """Starts the program; what it says goes to a file beside the folder of its run."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(workdir.parent / "cache")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with said(workdir).open("w") as file:
        return subprocess.Popen(
            command(workdir, steps), cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def said(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the file with what the last start in a folder said."""
    return workdir.with_suffix(".txt")


def wait_for(text: str, process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Waits until the program has said something, or has ended."""
    while process.poll() is None and not re.search(text, said(workdir).read_text()):
        time.sleep(0.01)


def check_finished(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Ends this program where the other one has failed, with what that one said."""
    if process.wait() != 0:
        sys.exit(f"{workdir}: exit code {process.returncode}\n{said(workdir).read_text()}")


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what must be equal, by kind."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    content = checkpoints._read_meta(checkpoints.steps()[-1])
    checkpoints.close()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "arrays": {name: leaf["sha256"] for name, leaf in content["leaves"].items()},
        "history": content["history"],
        "log": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "points": points(workdir / "tensorboard"),
        "model": (workdir / "model" / "model.safetensors").read_bytes(),
    }


def points(folder: pathlib.Path) -> dict[str, float]:
    """Returns the scalars that TensorBoard shows, by tag and step."""
    from tensorboardX.proto.event_pb2 import Event

    shown: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while len(content) >= 12:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):  # an earlier start's points from here on are dropped
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value") and value.tag.split("/")[1] not in TIMES:
                    shown[value.tag, event.step] = value.simple_value
    return {f"{tag} {step}": value for (tag, step), value in sorted(shown.items())}


def state_of(workdir: pathlib.Path) -> tuple[str, int]:
    """Returns what the program was doing when it was killed, and the newest checkpoint."""
    steps = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
    doing = "between checkpoints" if steps else "before the first checkpoint"
    if any(workdir.glob("checkpoints/*.saving*")):
        doing = "writing a checkpoint"
    elif any(workdir.glob(".model.*")):
        doing = "writing the model"
    elif any(workdir.glob("checkpoints/*.deleted")):
        doing = "deleting a checkpoint"
    return doing, max(steps, default=0)


def kill_until_done(
    out: pathlib.Path, number: int, steps: int, longest: float, moments: random.Random
) -> Iterator[dict[str, Any]]:
    """Yields a record for each kill of a run, and one for its end."""
    workdir = out / f"run_{number}"
    while True:
        process = start(workdir, steps)
        try:
            is_late = moments.random() < 0.8
            wait_for(FIRST_STEP if is_late else OPENED, process, workdir)
            pause = moments.uniform(0, longest)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(pause)
        finally:
            ended = process.poll() is not None
            process.kill()
            process.wait()
        damage = DAMAGE.findall(said(workdir).read_text())
        if ended:
            check_finished(process, workdir)
            yield {"run": number, "finished": True, "damage": damage}
            return
        doing, newest = state_of(workdir)
        yield {"run": number, "doing": doing, "newest": newest, "damage": damage}


def table(records: list[dict[str, Any]]) -> str:
    """Returns the kills by what they interrupted, and how the runs ended."""
    kills = [record for record in records if "doing" in record]
    ends = [record for record in records if record.get("finished")]
    counts = collections.Counter(record["doing"] for record in kills)
    rows = [f"| killed while | {len(kills)} kills |", "|---|---|"]
    rows += [f"| {doing} | {count} |" for doing, count in counts.most_common()]
    per_run = collections.Counter(record["run"] for record in kills)
    typical = statistics.median([per_run[end["run"]] for end in ends]) if ends else 0
    rows += [
        f"| runs that finished, with {typical:g} kills each (median) | {len(ends)} |",
        f"| of them equal to the undisturbed run | {sum(end['equal'] for end in ends)} |",
        f"| starts that found damage | {sum(bool(record['damage']) for record in records)} |",
    ]
    return "\n".join(rows)


def main() -> None:
    """Kills until there were enough kills, or until the time is over, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="the run of the last one is finished"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each run (default: 100)")
    parser.add_argument("--within", type=float, default=10, help="seconds to a kill, at most")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="to end after")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/kills"))
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "kills.jsonl"
    whole = out / "undisturbed"
    began = time.monotonic()
    process = start(whole, args.steps)
    wait_for(FIRST_STEP, process, whole)
    trained = time.monotonic()
    check_finished(process, whole)
    if not journal.exists():
        seconds = time.monotonic() - trained
        journal.write_text(json.dumps({"seconds": seconds, "start": trained - began}) + "\n")
    first, *records = map(json.loads, journal.read_text().splitlines())
    wanted = outcome(whole)
    moments = random.Random(len(records))
    number = sum(bool(record.get("finished")) for record in records)

    def enough() -> bool:
        return sum("doing" in record for record in records) >= args.kills

    with journal.open("a", buffering=1) as file:
        while not enough() and time.monotonic() < until:
            for record in kill_until_done(out, number, args.steps, args.within, moments):
                if record.get("finished"):
                    found = outcome(out / f"run_{number}")
                    differ = [name for name in wanted if found[name] != wanted[name]]
                    record |= {"equal": not differ, "differ": differ}
                file.write(json.dumps(record) + "\n")
                records.append(record)
                if time.monotonic() > until and not record.get("finished"):
                    break
            else:
                if record["equal"]:  # else it is kept, to look at
                    shutil.rmtree(out / f"run_{number}")
                number += 1
    print(
        f"{args.steps} steps; undisturbed, the first is done after {first['start']:.0f} s, "
        f"the others take {first['seconds']:.0f} s"
    )
    print(table(records))


if __name__ == "__main__":
    main()
