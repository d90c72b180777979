"""Processes as /proc shows them (proc(5))."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fswatchd.kernel.pseudofile import lines, read

_PF_EXITING = 0x4  # include/linux/sched.h; `flags` of /proc/PID/stat


@cache
def boot_id() -> str:
    """The id of this boot (random(4)): process ids, DISKSEQ and the like mean nothing beyond it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pids() -> Iterator[int]:
    """Every process id in this PID namespace."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of `pid` (field 22 of stat), None when it is gone.

    Together with the PID this names a process for the life of the machine.
    """
    fields = _stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def started_at(pid: int) -> float | None:
    """When `pid` started, in seconds of CLOCK_REALTIME as it runs now; None when it is gone.

    Too early by up to a clock tick, and wrong by as much as the clock was set since then.
    """
    ticks = start_time(pid)
    if ticks is None:
        return None
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, started: int | None) -> bool:
    """Whether `pid` is still the process that started then, and not a zombie."""
    fields = _stat_fields(pid)
    if len(fields) < 20 or fields[0] in {b"Z", b"X"}:
        return False
    return started is None or int(fields[19]) == started


def is_dying(pid: int) -> bool:
    """Whether `pid` is alive still, and has got a SIGKILL or is on its way through exit(2).

    A task dies only once what it waits for in the kernel is over, as a thaw.
    """
    fields = _stat_fields(pid)
    if len(fields) < 20 or fields[0] in {b"Z", b"X"}:
        return False
    if int(fields[6]) & _PF_EXITING:
        return True
    try:
        status = read(f"/proc/{pid}/status")
    except OSError:
        return False
    pending = re.findall(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", status, re.MULTILINE)
    return any(int(found, 16) & 1 << (signal.SIGKILL - 1) for found in pending)


def living_since(pid: int) -> int | None:
    """`start_time` of a process that is there and no zombie; None else."""
    fields = _stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 and fields[0] not in {b"Z", b"X"} else None


def children(pid: int) -> list[int]:
    """The processes that `pid` is the parent of (/proc/PID/task/TID/children, proc(5))."""
    try:
        lists = [Path(t, "children").read_text() for t in Path(f"/proc/{pid}/task").iterdir()]
        return [int(word) for text in lists for word in text.split()]
    except OSError:  # gone, or a kernel without CONFIG_PROC_CHILDREN
        wanted = str(pid).encode()
        return [other for other in pids() if _stat_fields(other)[1:2] == [wanted]]


def parent(pid: int) -> int | None:
    """The process that `pid` is a child of, None when it is gone."""
    fields = _stat_fields(pid)
    return int(fields[1]) if len(fields) > 1 else None


def user(pid: int) -> int | None:
    """The user that the process is, None where it is several (real, effective, saved) or gone."""
    try:
        status = lines(f"/proc/{pid}/status")
    except OSError:
        return None
    ids = next((line.split()[1:] for line in status if line.startswith("Uid:")), [])
    return int(ids[0]) if len(set(ids)) == 1 else None


def arguments(pid: int) -> list[str]:
    """The command line, which the process can change itself; empty when it is gone."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def is_container_init(pid: int) -> bool:
    """Whether `pid` is process 1 of a PID namespace directly below ours."""
    try:
        # A newline in the name is escaped: no other line can begin like this one.
        _, _, rest = read(f"/proc/{pid}/status").partition(b"\nNSpid:")
    except OSError:
        return False
    ids = rest.partition(b"\n")[0].split()
    return len(ids) == 2 and ids[1] == b"1"


def is_of_the_node(pid: int) -> bool:
    """Whether it is root's, in the user and process namespaces of this process."""
    if user(pid) != 0:
        return False
    with contextlib.suppress(OSError):
        return all(
            os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino
            for kind in ("user", "pid")
        )
    return False


def command_name(pid: int) -> str:
    """The process's command name, which it chose itself; "?" when it is gone."""
    try:
        return os.fsdecode(read(f"/proc/{pid}/comm")).rstrip("\n")
    except OSError:
        return "?"


def mount_namespace_inode(pid: int | str) -> int | None:
    """The inode of the process's mount namespace, None when it is gone or has none."""
    try:
        text = os.readlink(f"/proc/{pid}/ns/mnt")
        return int(text.removeprefix("mnt:[").removesuffix("]"))
    except (OSError, ValueError):
        return None


@cache
def own_mount_namespace() -> int | None:
    """`mount_namespace_inode` of this process, which never changes it."""
    return mount_namespace_inode("self")


def cgroups(pid: int) -> dict[str, str]:
    """Controller (empty for v2) → path, as in /proc/PID/cgroup; empty when it is gone."""
    try:
        split = [line.split(":", 2) for line in lines(f"/proc/{pid}/cgroup")]
    except OSError:
        return {}
    return {fields[1]: fields[2] for fields in split if len(fields) == 3}


def _stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third (state) on; empty when the process is gone."""
    try:
        # The command name may hold spaces and parentheses: count from the last one.
        return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return []


def virtuozzo_ve(pid: int) -> tuple[str, int] | None:
    """The container that the process is in, "0" for the node, and the process's number in there.

    Kernels of OpenVZ and Virtuozzo 7 say so in /proc/PID/status (`envID`, `VPid`; fs/proc/array.c);
    None on any other, and when the process is gone.
    """
    try:
        return read_virtuozzo_ve(lines(f"/proc/{pid}/status"))
    except OSError:
        return None


def read_virtuozzo_ve(status: list[str]) -> tuple[str, int] | None:
    """See `virtuozzo_ve`. The command's name comes first, and cannot hold a newline."""
    fields = dict(line.partition(":\t")[::2] for line in status)
    env, number = fields.get("envID"), fields.get("VPid", "")
    return (env, int(number)) if env and number.isdecimal() else None
