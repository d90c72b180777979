"""What the node swaps to, as /proc/swaps shows it (proc_swaps(5))."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from fswatchd.devno import Devno

from .mountinfo import unescape


def areas(swaps: Path = Path("/proc/swaps")) -> list[tuple[str, Devno | None]]:
    """`(path, device number)` of each: of the device, or of the filesystem that holds the file.

    The number is None where nothing is at the path any more.
    """
    found = []
    lines = swaps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    for line in lines[1:]:
        path = unescape(line.split(maxsplit=1)[0])
        devno = None
        with suppress(OSError):
            status = os.stat(path)
            is_device = stat.S_ISBLK(status.st_mode)
            devno = Devno.of(status.st_rdev if is_device else status.st_dev)
        found.append((path, devno))
    return found
