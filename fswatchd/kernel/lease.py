"""Whether anything writes to a file, by the kernel's own count: leases (fcntl(2), F_SETLEASE).

A read lease is refused while anybody has the file open for writing: a process in whatever
namespace, a loop device, a swap area, an export. No list of processes or devices knows them all.
"""

import errno
import fcntl
import os
import signal
import time

_POLL_S = 0.02
_NOT_KNOWN = {errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK, errno.EPERM}


def is_only_writer(fd: int) -> bool | None:
    """Whether nobody but `fd`, which is open for writing, can write to its regular file.

    Some kernels count readers too: false says little, true all. None where the filesystem has no
    leases, or we may not take one. Raises OSError.
    """
    # Refused where it is open a second time (fs/locks.c, `check_conflicting_open`).
    return _grants(fd, fcntl.F_WRLCK)


def has_writer(path: str, patience_s: float = 0.0) -> bool | None:
    """Whether the regular file at `path` is open for writing, asked until it is not any more.

    None where the filesystem has no leases, or we may not take one. Not for a file that the caller
    has open for writing himself. Blocks; raises OSError where it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    deadline = time.monotonic() + patience_s
    try:
        while (granted := _grants(fd, fcntl.F_RDLCK)) is False:
            if time.monotonic() > deadline:
                return True
            time.sleep(_POLL_S)
        return None if granted is None else False
    finally:
        os.close(fd)


def _grants(fd: int, kind: int) -> bool | None:
    """Whether the kernel grants a lease of this kind, which is given back at once.

    None where it has none to give, or not to us.
    """
    # Who opens the file in the same moment breaks the lease; this signal for it does nothing.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    except OSError as error:
        if error.errno in _NOT_KNOWN:
            return None
        if error.errno != errno.EAGAIN:
            raise
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
