"""Call filters (seccomp(2)), made by libseccomp: what is not named here is let through."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

from fswatchd.sandbox import SandboxError

# include/seccomp.h of libseccomp
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_MASKED_EQUAL = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A call that is not made: its caller gets `code` (errno(3)), or success where that is 0.

    With `argument` only where that argument, masked with `mask`, is `value`.
    """

    name: str
    code: int
    argument: int | None = None
    mask: int = 0
    value: int = 0


class _ArgumentCompare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def program(calls: Sequence[Answered]) -> bytes:
    """The filter as the kernel takes it, an array of `struct sock_filter`. Raises SandboxError."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise SandboxError(f"no sandbox: {error}", hint="install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = library.seccomp_init(ctypes.c_uint32(_ALLOW))
    if not context:
        raise SandboxError("no sandbox: libseccomp makes no filter")
    try:
        for call in calls:
            _add(library, context, call)
        fd = os.memfd_create("fswatchd-filter")
        try:
            _checked(library.seccomp_export_bpf(ctypes.c_void_p(context), ctypes.c_int(fd)))
            return os.pread(fd, 1 << 16, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(ctypes.c_void_p(context))


def _add(library: ctypes.CDLL, context: int, call: Answered) -> None:
    number = library.seccomp_syscall_resolve_name(ctypes.c_char_p(call.name.encode()))
    if number < 0:
        return  # this architecture has no such call
    only = None
    if call.argument is not None:
        only = _ArgumentCompare(call.argument, _MASKED_EQUAL, call.mask, call.value)
    _checked(
        library.seccomp_rule_add_array(
            ctypes.c_void_p(context),
            ctypes.c_uint32(_ERRNO | call.code),
            ctypes.c_int(number),
            ctypes.c_uint(0 if only is None else 1),
            None if only is None else ctypes.byref(only),
        )
    )


def _checked(answer: int) -> None:
    if answer < 0:
        raise SandboxError(f"no sandbox: libseccomp: {os.strerror(-answer)}")
