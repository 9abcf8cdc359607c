"""The allocator setting that training on a CPU depends on for its speed."""

import subprocess
import sys

import pytest

# A block far above the threshold from which glibc gives freed memory back, taken and freed twice.
_PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from flaxseg.host_memory import keep_freed_memory
    assert keep_freed_memory()
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.ones(1 << 24, np.uint8)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touch()
print(touch())
"""


def page_faults(mode: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", _PROGRAM, mode], text=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults():
    given_back = page_faults("default")
    if given_back < 100:
        pytest.skip("this C library keeps such a block by itself")
    assert page_faults("keep") < given_back / 10
