"""Files of procfs, sysfs and cgroupfs, of which a look at the node reads thousands."""

import os

_PIECE = 4096


def read(path: str) -> bytes:
    """The whole file; raises OSError. A file object would cost more than the reading itself."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = piece = os.read(fd, _PIECE)
        # Until nothing comes: a short read is no end of such a file.
        while piece:
            piece = os.read(fd, _PIECE)
            found += piece
        return found
    finally:
        os.close(fd)
