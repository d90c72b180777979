"""What a program that reads a tenant's bytes is shut into: bubblewrap, limits, a system call filter.

The content of a filesystem is its tenant's choice, and fsck programs have had holes. Such a program
gets a mount namespace with the node's programs (read-only) and the one image or device, no network,
no process of the node, no capability, no new privileges, bounded memory and CPU time, and a filter
that lets it make neither processes nor sockets nor namespaces. See bwrap(1), prlimit(1), seccomp(2).

Not here: its deadline, its place at the disk and what the OOM killer thinks of it (`process`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from functools import cache

from fswatchd.errors import FswatchError

_LEAST_MEMORY = 1 << 30
_OPEN_FILES = 256
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

    def command(self, filter_fd: int) -> tuple[str, ...]:
        """What runs a program inside. `filter_fd` is a descriptor of `open_filter`."""
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
            "--",
        )

    def _reachable(self) -> tuple[str, ...]:
        found = ("--ro-bind" if self.readonly else "--bind", self.device, self.device)
        if self.device.startswith("/dev/"):
            # A bind that knows no devices (MS_NODEV) would not open; what is written to one is
            # up to the mode in which it is opened, a read-only mount does not hold it.
            found = ("--dev-bind", self.device, self.device)
        if self.directory is not None:
            found += ("--bind", self.directory, self.directory)
        return found


def open_filter() -> int:
    """A descriptor with the system call filter, for one program. Raises SandboxError, OSError."""
    fd = os.memfd_create("fswatchd-seccomp")
    os.write(fd, _filter())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


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
        fd = os.memfd_create("fswatchd-seccomp")
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
