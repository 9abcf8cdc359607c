"""The allocator setting that training on a CPU depends on for its speed."""

import os
import subprocess
import sys

import pytest

# A block far above the threshold from which glibc gives freed memory back, and larger than a
# thread's arena, taken and freed twice. Of huge pages it would be too few to count.
_PROGRAM = """
import resource, sys, threading
import numpy as np
if sys.argv[1] == "keep":
    from flaxseg.host_memory import keep_freed_memory
    assert keep_freed_memory()
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.ones(1 << 27, np.uint8)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def twice():
    touch()
    print(touch())
if sys.argv[2] == "thread":
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
else:
    twice()
"""


def page_faults(mode: str, where: str) -> int:
    command = [sys.executable, "-c", _PROGRAM, mode, where]
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    return int(subprocess.check_output(command, text=True, env=environment))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets glibc's allocator")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_used_again_without_page_faults(where):
    given_back = page_faults("default", where)
    if given_back < 100:
        pytest.skip("this C library keeps such a block by itself")
    assert page_faults("keep", where) < given_back / 10
