"""A sandbox of bubblewrap: namespaces, limits, and a call filter.

The filter lets a program make no processes, sockets or namespaces. A read-only mount does not hold
what is written to a block device: where one is only to be read, the filter lets nothing be opened
for writing. See bwrap(1), prlimit(1), seccomp(2).

Not here: its deadline, its place at the disk and what the OOM killer thinks of it (`process`).
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache

from fswatchd.kernel import proc
from fswatchd.sandbox import OPEN_FILES, SETTINGS, SYSTEM, Sandbox, SandboxError, seccomp
from fswatchd.sandbox.entry import Entry
from fswatchd.sandbox.seccomp import Answered

_FILTER = "fswatchd-seccomp"

_CLONE_THREAD = 0x00010000
# open(2): where the flags are. The access mode 3 opens for ioctl(2) what may be written.
_OPENS = {"open": 1, "openat": 2}
_WRITABLE = (os.O_WRONLY, os.O_RDWR, os.O_ACCMODE)
_FORBIDDEN = (
    "add_key", "bpf", "fork", "io_uring_setup", "kcmp", "keyctl", "mount", "open_by_handle_at",
    "perf_event_open", "process_vm_writev", "ptrace", "request_key", "setns", "socket",
    "socketpair", "unshare", "userfaultfd", "vfork",
)  # fmt: skip


class Bubblewrap(Entry):
    """By bwrap(1), a child of ours. Raises SandboxError, or OSError."""

    def __init__(self, sandbox: Sandbox, passed: Sequence[int], stdin: int) -> None:
        super().__init__()
        try:
            only_read = sandbox.readonly and sandbox.is_device
            if only_read and sandbox.directory is not None:
                what = f"{sandbox.device} is only to be read, {sandbox.directory} is not"
                raise SandboxError(what)
            sync_fd = os.dup(self._status_end)
            self._ours.append(sync_fd)
            filter_fd = os.memfd_create(_FILTER)
            self._ours.append(filter_fd)
            os.write(filter_fd, _filter(writes_nothing=only_read))
            os.lseek(filter_fd, 0, os.SEEK_SET)
        except BaseException:
            self.close()
            raise
        self.stdin = stdin
        self.inherited = (*passed, *self._ours)
        self._into = _command(sandbox, filter_fd, self._status_end, sync_fd)

    def command(self, argv: Sequence[str]) -> tuple[str, ...]:
        """See Entry."""
        return (*self._into, *argv)

    def end_command(self) -> tuple[str, ...]:
        """Nothing: --die-with-parent."""
        return ()

    def exit_code(self, told: bytes) -> int | None:
        """From the lines of --json-status-fd."""
        codes = [json.loads(line) for line in told.splitlines() if b"exit-code" in line]
        return int(codes[-1]["exit-code"]) if codes else None


def end_orphans() -> int:
    """End what was being built when its daemon was killed; returns how many there were.

    Between clone(2) and its prctl(2) nothing ends the inner process of bwrap with the outer one,
    and it would wait for that for ever. It is told by its filter, and by having lost its parent.
    """
    ended = 0
    for pid in proc.pids():
        if proc.parent(pid) == 1 and proc.command_name(pid) == "bwrap" and _has_our_filter(pid):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
    return ended


def _has_our_filter(pid: int) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in names]
    except OSError:
        return False
    return any(link.startswith(f"/memfd:{_FILTER} ") for link in links)


def _command(sandbox: Sandbox, filter_fd: int, status_fd: int, sync_fd: int) -> tuple[str, ...]:
    """What runs a program inside; see `Entry` for the descriptors."""
    return (
        "prlimit",
        f"--as={sandbox.most_memory}",
        f"--cpu={max(int(sandbox.cpu_s), 1)}",
        "--core=0",
        f"--nofile={OPEN_FILES}",
        "--",
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        *("--cap-drop", "ALL"),
        *_node_programs(),
        # Read-only: user 0 may write the node's sysctls without any capability.
        *("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"),
        *_reachable(sandbox),
        # Files in memory would count for nobody's limit.
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
        *("--seccomp", str(filter_fd)),
        *("--json-status-fd", str(status_fd), "--sync-fd", str(sync_fd)),
        "--",
    )


def _reachable(sandbox: Sandbox) -> tuple[str, ...]:
    bind = "--ro-bind" if sandbox.readonly else "--bind"
    if sandbox.is_device:
        # A bind that knows no devices (MS_NODEV) would not open.
        bind = "--dev-bind"
    found: tuple[str, ...] = (bind, sandbox.device, sandbox.device)
    if sandbox.directory is not None:
        found += ("--bind", sandbox.directory, sandbox.directory)
    return found


@cache
def _node_programs() -> tuple[str, ...]:
    found: tuple[str, ...] = ("--ro-bind", "/usr", "/usr")
    for path in SYSTEM:
        if os.path.islink(path):
            found += ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            found += ("--ro-bind", path, path)
    for path in SETTINGS:
        if os.path.exists(path):
            found += ("--ro-bind", path, path)
    return found


@cache
def _filter(*, writes_nothing: bool) -> bytes:
    """The filter as bwrap takes it: everything but a few calls, and threads but no processes."""
    calls = [Answered(name=name, code=errno.EPERM) for name in _FORBIDDEN]
    # glibc then makes threads by clone(2), whose flags a filter can see.
    calls.append(Answered(name="clone3", code=errno.ENOSYS))
    calls.append(Answered(name="clone", code=errno.EPERM, argument=0, mask=_CLONE_THREAD))
    if writes_nothing:
        calls += _writing()
    return seccomp.program(calls)


def _writing() -> Iterator[Answered]:
    for name, place in _OPENS.items():
        for mode in _WRITABLE:
            yield Answered(
                name=name, code=errno.EROFS, argument=place, mask=os.O_ACCMODE, value=mode
            )
    yield Answered(name="creat", code=errno.EROFS)
    # Its flags are in memory, where no filter can see them; glibc does not use it.
    yield Answered(name="openat2", code=errno.ENOSYS)
