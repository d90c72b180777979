"""The faults of btrfs."""

from __future__ import annotations

import mmap
import os

from fswatchd.drill import inside
from fswatchd.drill.damage import Fault, Scene, empty_host, fill_host, nothing, overwrite
from fswatchd.drill.scene import COLD_FILE, TARGET, DrillError


def _data_csum(scene: Scene) -> None:
    """Other bytes in the place of a file's, under a checksum that stays as it was."""
    device = scene.device()
    offset = _find(device, inside.content(COLD_FILE))
    overwrite(scene, device, offset, os.urandom(inside.FILE_SIZE))
    scene.control.ask(TARGET, "read", path=COLD_FILE)


def _find(device: str, content: bytes) -> int:
    """Where on the device it stands; there is one place, because no two files are the same."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
            found = mapped.find(content)
    finally:
        os.close(fd)
    if found < 0:
        raise DrillError(f"{COLD_FILE} is not on {device}")
    return found


FAULTS = (
    Fault(name="none", inject=nothing),
    Fault(
        name="data-csum",
        inject=_data_csum,
        # One copy of data and, as in a VE's image, two of the metadata.
        features=("-d", "single", "-m", "dup"),
        expected_lost=1,
        lost_file=COLD_FILE,
        ends_as="needs-operator",
    ),
    # What aborts a transaction in the field, and can be taken away again: no room on the host.
    # Transactions are committed often, so that it does not take half a minute to find out.
    Fault(name="abort", inject=fill_host, relieve=empty_host, options="commit=1"),
)
