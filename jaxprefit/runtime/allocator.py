"""Large buffers are kept by the process instead of going back to the kernel after each step.

XLA's CPU client takes the temporary memory of a program from the C library at every call and frees it after. glibc
serves so large a request with mmap and unmaps it on free, so that each step touches all of its pages for the first
time: of a fine-tuning step at MiniLM size nearly half was the kernel's.
"""

import ctypes
import os
import platform

# mallopt(3); numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEPT = 2**31 - 1  # bytes, the most that mallopt takes
_GROWTH = 2**26  # bytes


def keep_freed_memory() -> bool:
    """Has glibc keep up to 2 GB of freed memory for the next request; whether it does now.

    To be called before JAX starts its threads. Does nothing with another C library, or where the user has set the
    allocator by MALLOC_* or GLIBC_TUNABLES.
    """
    chosen = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, since one of a thread's own cannot hold a large block and would fall back on mmap.
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _GROWTH}
    return all([mallopt(option, value) for option, value in options.items()])
