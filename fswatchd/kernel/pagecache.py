"""What of a file is in memory: cachestat(2), since Linux 6.5 (mm/filemap.c)."""

import ctypes
import errno
import struct
from collections.abc import Iterator

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


def ranges(fd: int, start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """The ranges of which pages are in memory, in pieces of `step` bytes at the most.

    All of them where the kernel cannot tell. Raises OSError.
    """
    if pages(fd, start, end - start) == 0:
        return
    if end - start <= step:
        yield start, end
        return
    middle = start + max((end - start) // 2 // step, 1) * step
    yield from ranges(fd, start, middle, step)
    yield from ranges(fd, middle, end, step)
