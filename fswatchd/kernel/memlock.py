"""mlock(2): this process stays in memory, whatever becomes of the disk that its files lie on.

What is in memory stays there, and so does all that comes later. Nothing is brought in only to be
locked (MCL_ONFAULT): a stack or a reserve that nobody has touched needs no disk. What the files of
the interpreter and its libraries were not asked for yet does need one; that is read at once.

Locks are not inherited: programs and helpers that are started later are read from the disk.
"""

from __future__ import annotations

import ctypes
import errno
import resource
from collections.abc import Iterator

from fswatchd.kernel.pseudofile import read
from fswatchd.kernel.syscalls import check, libc

# include/uapi/asm-generic/mman.h, include/uapi/linux/capability.h
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
_CAP_IPC_LOCK = 14


def lock() -> None:
    """Lock this process into memory; reads the files that it has mapped, and waits for that.

    Raises OSError where the kernel refuses, and PermissionError where it would refuse memory later:
    with a limit the next allocation beyond it fails, and with it the daemon.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and not _may_lock(_status()):
        text = "neither CAP_IPC_LOCK nor an unlimited RLIMIT_MEMLOCK"
        raise PermissionError(errno.EPERM, text)
    flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    check(libc.mlockall(ctypes.c_int(flags)), "mlockall")
    for start, end in _files(read("/proc/self/maps").decode(errors="replace")):
        try:
            check(libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(end - start)), "mlock")
        except OSError as error:
            # Unmapped meanwhile, or a part of it lies beyond the end of its file.
            if error.errno not in {errno.ENOMEM, errno.EAGAIN}:
                raise


def locked_bytes() -> int:
    """How much of this process's address space is locked (VmLck in proc_pid_status(5))."""
    return int(_status().get("VmLck", "0 kB").removesuffix(" kB")) << 10


def _may_lock(status: dict[str, str]) -> bool:
    return bool(int(status.get("CapEff", "0"), 16) >> _CAP_IPC_LOCK & 1)


def _status() -> dict[str, str]:
    lines = read("/proc/self/status").decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key: value.strip() for key, _, value in pairs}


def _files(maps: str) -> Iterator[tuple[int, int]]:
    """The private mappings of files that can be read, from /proc/PID/maps (proc_pid_maps(5)).

    Shared ones are data, and may lie on the disk that is sick.
    """
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not fields[5].startswith("/"):
            continue
        if fields[1].startswith("r") and fields[1].endswith("p"):
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16)
