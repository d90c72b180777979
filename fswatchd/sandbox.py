"""What a program that reads a tenant's bytes is shut into: bubblewrap, limits, a call filter.

The content of a filesystem is its tenant's choice, and fsck programs have had holes. Such a program
gets a mount namespace with the node's programs (read-only) and the one image or device, no network,
no process of the node, no capability, no new privileges, bounded memory and CPU time, and a filter
that lets it make no processes, sockets or namespaces. See bwrap(1), prlimit(1), seccomp(2).

Not here: its deadline, its place at the disk and what the OOM killer thinks of it (`process`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from fswatchd.errors import FswatchError
from fswatchd.kernel import proc

_FILTER = "fswatchd-seccomp"
_LEAST_MEMORY = 1 << 30
_OPEN_FILES = 256
_MAX_STATUS = 4096
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64")
_SETTINGS = ("/etc/ld.so.cache", "/etc/e2fsck.conf", "/etc/mke2fs.conf")

# include/seccomp.h of libseccomp
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_MASKED_EQUAL = 7
_CLONE_THREAD = 0x00010000
_FORBIDDEN = (
    "add_key", "bpf", "fork", "io_uring_setup", "kcmp", "keyctl", "mount", "open_by_handle_at",
    "perf_event_open", "process_vm_writev", "ptrace", "request_key", "setns", "socket",
    "socketpair", "unshare", "userfaultfd", "vfork",
)  # fmt: skip


class SandboxError(FswatchError):
    """The sandbox cannot be built: nothing is run outside of it instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What the program may reach, and how much it may take.

    `device` is the image or block device, `readonly` makes it that; `directory` is one more place
    that may be written (for an undo file). `cpu_s` counts the CPU's seconds, `memory_bytes` the
    address space; the usual is half of the machine's memory.
    """

    device: str
    readonly: bool = False
    directory: str | None = None
    cpu_s: float = 4 * 3600.0
    memory_bytes: int | None = None

    def command(self, filter_fd: int, status_fd: int, sync_fd: int) -> tuple[str, ...]:
        """What runs a program inside; see `Entry` for the descriptors."""
        memory = self.memory_bytes or _half_the_memory()
        return (
            "prlimit",
            f"--as={memory}",
            f"--cpu={max(int(self.cpu_s), 1)}",
            "--core=0",
            f"--nofile={_OPEN_FILES}",
            "--",
            "bwrap",
            "--unshare-all",
            "--die-with-parent",
            *("--cap-drop", "ALL"),
            *_node_programs(),
            # Read-only: user 0 may write the node's sysctls without any capability.
            *("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"),
            *self._reachable(),
            # Files in memory would count for nobody's limit.
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
            *("--seccomp", str(filter_fd)),
            *("--json-status-fd", str(status_fd), "--sync-fd", str(sync_fd)),
            "--",
        )

    def _reachable(self) -> tuple[str, ...]:
        found: tuple[str, ...] = (
            "--ro-bind" if self.readonly else "--bind",
            self.device,
            self.device,
        )
        if self.device.startswith("/dev/"):
            # A bind that knows no devices (MS_NODEV) would not open; what is written to one is
            # up to the mode in which it is opened, a read-only mount does not hold it.
            found = ("--dev-bind", self.device, self.device)
        if self.directory is not None:
            found += ("--bind", self.directory, self.directory)
        return found


class Entry:
    """The way into a sandbox for one program, and how that program ended.

    `fds` have to be passed on to `command`. Raises SandboxError, or OSError.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._status, status_fd = os.pipe()
        self.fds: tuple[int, ...] = (status_fd,)
        try:
            sync_fd = os.dup(status_fd)
            self.fds = (status_fd, sync_fd)
            filter_fd = os.memfd_create(_FILTER)
            self.fds = (status_fd, sync_fd, filter_fd)
            os.write(filter_fd, _filter())
            os.lseek(filter_fd, 0, os.SEEK_SET)
        except BaseException:
            self.close()
            raise
        self.command = sandbox.command(filter_fd, status_fd, sync_fd)

    def started(self) -> None:
        """Close what the program has by now."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()

    def close(self) -> None:
        """Nothing is going to run."""
        self.started()
        os.close(self._status)

    def finish(self, timeout_s: float) -> tuple[int | None, bool]:
        """The program's exit code, and whether nothing runs inside any more. Blocks.

        128 + N after signal N, None where it never ran or was cut off: what builds the sandbox ends
        with 1 when it fails, which means "repaired" to others.
        """
        deadline = time.monotonic() + timeout_s
        told, gone = b"", False
        try:
            # It stays open until the last process of the sandbox is gone (--sync-fd).
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            while not gone and (left := deadline - time.monotonic()) > 0:
                if poll.poll(left * 1000):
                    more = os.read(self._status, _MAX_STATUS)
                    told, gone = told + more, not more
        finally:
            os.close(self._status)
        codes = [json.loads(line) for line in told.splitlines() if b"exit-code" in line]
        return (int(codes[-1]["exit-code"]) if codes else None), gone


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


@cache
def _node_programs() -> tuple[str, ...]:
    found: tuple[str, ...] = ("--ro-bind", "/usr", "/usr")
    for name in _SYSTEM:
        path = f"/{name}"
        if os.path.islink(path):
            found += ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            found += ("--ro-bind", path, path)
    for path in _SETTINGS:
        if os.path.exists(path):
            found += ("--ro-bind", path, path)
    return found


@cache
def _half_the_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(total // 2, _LEAST_MEMORY)


class _ArgumentCompare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@cache
def _filter() -> bytes:
    """The filter as bwrap takes it: everything but a few calls, and threads but no processes."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise SandboxError(f"no sandbox: {error}", hint="install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = library.seccomp_init(ctypes.c_uint32(_ALLOW))
    if not context:
        raise SandboxError("no sandbox: libseccomp makes no filter")
    try:
        for name in _FORBIDDEN:
            _forbid(library, context, name, errno.EPERM)
        # glibc then makes threads by clone(2), whose flags a filter can see.
        _forbid(library, context, "clone3", errno.ENOSYS)
        process = _ArgumentCompare(0, _MASKED_EQUAL, _CLONE_THREAD, 0)
        _forbid(library, context, "clone", errno.EPERM, process)
        fd = os.memfd_create(_FILTER)
        try:
            _checked(library.seccomp_export_bpf(ctypes.c_void_p(context), ctypes.c_int(fd)))
            return os.pread(fd, 1 << 16, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(ctypes.c_void_p(context))


def _forbid(
    library: ctypes.CDLL, context: int, name: str, code: int, only: _ArgumentCompare | None = None
) -> None:
    number = library.seccomp_syscall_resolve_name(ctypes.c_char_p(name.encode()))
    if number < 0:
        return  # this architecture has no such call
    _checked(
        library.seccomp_rule_add_array(
            ctypes.c_void_p(context),
            ctypes.c_uint32(_ERRNO | code),
            ctypes.c_int(number),
            ctypes.c_uint(0 if only is None else 1),
            None if only is None else ctypes.byref(only),
        )
    )


def _checked(answer: int) -> None:
    if answer < 0:
        raise SandboxError(f"no sandbox: libseccomp: {os.strerror(-answer)}")
