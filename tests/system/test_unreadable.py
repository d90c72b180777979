"""What a disk does not give back is not blank and not damaged: nothing is written over it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.kernel import block, loop
from fswatchd.repair import e2fsck

_SIZE = 16 << 20


@pytest.fixture
def failing(work: Path) -> Iterator[str]:
    """An ext4 on a device whose inode table answers EIO: the device has lost its end."""
    path = work / "failing.img"
    with path.open("xb") as file:
        file.truncate(_SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", str(path)], check=True)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    device, device_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    # Super block, descriptors and bitmaps stay; what is read beyond the end is an error.
    os.truncate(path, 140 << 10)
    yield device
    os.close(device_fd)


async def test_an_ext4_that_cannot_be_read_is_no_damaged_one(failing: str) -> None:
    found = await e2fsck.check(failing, 60)
    assert found.returncode & e2fsck.UNCORRECTED, "e2fsck itself takes it for damage"
    assert not found.usable
    assert "look after the device" in found.what


async def test_what_a_repair_makes_of_its_copy_is_not_called_repaired(failing: str) -> None:
    found = await e2fsck.repair(failing, 60)
    assert "Force rewrite? yes" in found.output, "e2fsck itself writes zeros over it"
    assert not found.usable


async def test_in_place_nothing_is_written_to_it(failing: str, work: Path) -> None:
    devno = Devno.of(os.stat(failing).st_rdev)
    block.count_writes(devno)
    before = block.sectors_written(devno)
    undo = work / "undo"
    undo.mkdir()
    found = await e2fsck.repair(failing, 60, undo_file=str(undo / "x.e2undo"))
    assert not found.usable
    assert "Force rewrite" not in found.output
    block.sync(failing)
    assert block.sectors_written(devno) == before
