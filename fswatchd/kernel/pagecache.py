"""What of a file is in memory: cachestat(2), since Linux 6.5 (mm/filemap.c)."""

import ctypes
import errno
import struct

from fswatchd.kernel import syscalls

_NR_CACHESTAT = 451
_RANGE = struct.Struct("=QQ")  # struct cachestat_range: offset, length
_ANSWER = struct.Struct("=QQQQQ")  # struct cachestat: cached, dirty, under writeback, evicted, ...


def pages(fd: int, start: int, length: int) -> int | None:
    """How many pages of these bytes are in memory, dirty or not; None where the kernel cannot tell.

    Raises OSError.
    """
    answer = ctypes.create_string_buffer(_ANSWER.size)
    try:
        syscalls.syscall(
            _NR_CACHESTAT,
            ctypes.c_uint(fd),
            ctypes.c_char_p(_RANGE.pack(start, length)),
            answer,
            ctypes.c_uint(0),
            what="cachestat",
        )
    except OSError as error:
        # EOPNOTSUPP: hugetlbfs. EPERM: a filter of calls that does not know it.
        if error.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
            return None
        raise
    return int(_ANSWER.unpack_from(answer)[0])
