"""Files of procfs, sysfs and cgroupfs, of which a look at the node reads thousands."""

import os

_PIECE = 4096


def read(path: str, dir_fd: int | None = None) -> bytes:
    """The whole file; raises OSError. A file object would cost more than the reading itself."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        found = piece = os.read(fd, _PIECE)
        # Until nothing comes: a short read is no end of such a file.
        while piece:
            piece = os.read(fd, _PIECE)
            found += piece
        return found
    finally:
        os.close(fd)


def lines(path: str, dir_fd: int | None = None) -> list[str]:
    """Its lines, empty ones left out; raises OSError.

    The kernel ends a line with a newline, and lets no name have one. Whatever else Python takes for
    the end of a line (`\\r` in text mode, `\\f` or U+2028 in `splitlines`) a tenant may have in a
    name, and bytes that are no UTF-8.
    """
    return [os.fsdecode(line) for line in read(path, dir_fd).split(b"\n") if line]
