"""What the node swaps to, as /proc/swaps shows it (proc_swaps(5))."""

import os
import re
import stat
from contextlib import suppress

from fswatchd.devno import Devno

from .mountinfo import unescape
from .pseudofile import lines


def areas(swaps: str = "/proc/swaps") -> list[tuple[str, Devno | None]]:
    """`(path, device number)` of each: of the device, or of the filesystem that holds the file.

    The number is None where nothing is at the path any more.
    """
    found = []
    for line in lines(swaps)[1:]:
        path = unescape(re.split(r"[ \t]", line, maxsplit=1)[0])
        devno = None
        with suppress(OSError):
            status = os.stat(path)
            is_device = stat.S_ISBLK(status.st_mode)
            devno = Devno.of(status.st_rdev if is_device else status.st_dev)
        found.append((path, devno))
    return found
