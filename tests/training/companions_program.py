"""One of two processes that take steps together without computing anything.

    python companions_program.py SCENARIO RANK ADDRESS

Each step ends with a barrier, as it would with a sum over devices. "before" is a signal before the
first step, "within" one to process 1 between the steps, "hang" a process that hangs there, "fail"
one that raises an error there. The exit codes are those of `flaxseg train`.
"""

import os
import signal
import sys
import threading
import time

import jax
from jax._src import distributed

from flaxseg.errors import DataError
from flaxseg.training import companions
from flaxseg.training.companions import Companions
from flaxseg.training.signals import EXIT_STOPPED, run_program, stop_on_signals

STEPS = 100000
companions.HANG_SECONDS = 1.0
companions._LOOK_SECONDS = 0.1


def main(scenario: str, rank: int, address: str) -> int:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    client = distributed.global_state.client
    is_guilty = rank == 1
    with stop_on_signals() as stop, Companions(stop) as others:
        client.wait_at_barrier("start", 60000)
        if scenario == "before" and is_guilty:
            os.kill(os.getpid(), signal.SIGTERM)
        if scenario == "before":
            threading.Event().wait()
        for step in range(1, STEPS):
            others.at(step, f"reading the batch of step {step}")
            if step == 20 and is_guilty:
                if scenario == "within":
                    os.kill(os.getpid(), signal.SIGTERM)
                if scenario == "hang":
                    threading.Event().wait()
                if scenario == "fail":
                    raise DataError("record 7 is broken")
            others.at(step, f"computing step {step}", waits=True)
            client.wait_at_barrier(f"step {step}", 60000)
            stop.hold()
            time.sleep(0.01 * rank)
            if others.stops_after(step):
                break
        print(f"saved after step {step}, stopped by {others.stopped_by}", flush=True)
        stop.finish(EXIT_STOPPED)
    jax.distributed.shutdown()
    return EXIT_STOPPED


if __name__ == "__main__":
    scenario, rank, address = sys.argv[1:]
    code = 1
    try:
        code = run_program(lambda: main(scenario, int(rank), address))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(code)
