"""Says how much memory a host has, and keeps what is freed in the process.

The latter makes training on a CPU several times faster.

XLA takes the memory for a step's temporaries anew at every step. glibc gives blocks of that size
back to the system as soon as they are freed and asks for zeroed pages at the next step, and on a
CPU the page faults cost more than the arithmetic of all elementwise operations: 3 to 4 times their
time was measured (`benchmarks/`). With this setting the pages stay.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Asks glibc's allocator to keep what is freed; returns whether it was asked.

    Call it in a program that computes on a CPU, once and before JAX's first computation: threads
    that have begun keep the memory management that they have. The process then holds on to its
    peak memory, and its threads take turns at one arena. Elsewhere than on Linux with glibc nothing
    happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # XLA takes a step's memory in a thread. Threads have an arena of their own, whose blocks over
    # 64 MiB come from the system whatever _M_MMAP_MAX says: so there is one arena, the program's.
    # A threshold of -1 is none.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return all(taken)


def host_memory() -> int | None:
    """Returns the bytes of memory of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
