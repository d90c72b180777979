"""Memory that is not used any more goes back to the kernel (mallopt(3), malloc_trim(3)).

A daemon that runs for months has many threads that live for a moment. glibc gives each an arena of
its own, up to eight for every processor, and keeps in each what its fullest moment took. Nothing is
done with another C library, and what is locked into memory (`kernel.memlock`) stays.
"""

import ctypes

from fswatchd.kernel.syscalls import libc

_M_ARENA_MAX = -8  # malloc.h


def use_one_arena() -> None:
    """One arena for all threads: Python runs one of them at a time. Before the first is started."""
    if hasattr(libc, "mallopt"):
        libc.mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(1))


def give_back() -> None:
    """Give free pages back, also those between others; milliseconds."""
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
