"""Run a program to which one ioctl(2) of its own seems to succeed.

xfs_repair(8) ends its work on a device with fsync(2) and with BLKFLSBUF, which forgets what the
kernel has in memory of the device and asks for CAP_SYS_ADMIN. That no program in a sandbox has, and
xfs_repair takes the refusal for a write that failed. What was written is on the disk after the
fsync(2); to forget it is not needed by anybody.

The text of this module is handed to an interpreter inside of the sandbox, which has the node's
programs and not this package: it uses nothing but the standard library. Arguments: the filter in
hexadecimal (`seccomp.program`), and the program with its arguments.
"""

import ctypes
import os
import sys

# include/uapi/linux/prctl.h, include/uapi/linux/seccomp.h
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_FILTER_BYTES = 8
_CANNOT_EXECUTE = 126


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def main() -> None:
    """Set the filter, and become the program. Ends with 126 where either fails."""
    try:
        _set(bytes.fromhex(sys.argv[1]))
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.stderr.write(f"{sys.argv[2]} was not started: {error}\n")
        sys.exit(_CANNOT_EXECUTE)


def _set(code: bytes) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    kept = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // _FILTER_BYTES, ctypes.addressof(kept))
    none = ctypes.c_ulong(0)
    if library.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), none, none, none) or library.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), none, none
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
