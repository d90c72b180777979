"""Only what a journal says was frozen by us is thawed after a restart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import fs, proc
from fswatchd.repair import freeze
from tests.system.conftest import wait_until


@pytest.fixture
async def frozen(work: Path) -> AsyncIterator[tuple[Inventory, Superblock, int]]:
    """A filesystem that somebody has frozen."""
    image, point = work / "a.img", work / "a"
    with image.open("xb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    inventory = Inventory([])
    directory = os.open(point, os.O_RDONLY)
    try:
        await inventory.refresh()
        superblock = inventory.view.superblocks[Devno.of(os.fstat(directory).st_dev)]
        fs.freeze(directory)
        yield inventory, superblock, directory
    finally:
        if fs.is_frozen(directory):
            fs.thaw(directory)
        os.close(directory)
        await inventory.close()


async def test_what_was_marked_is_thawed(frozen: tuple[Inventory, Superblock, int]) -> None:
    inventory, superblock, directory = frozen
    device = await freeze.thaw_marked(inventory, freeze.mark(superblock))
    assert device == superblock.device
    assert not fs.is_frozen(directory)


async def test_another_disk_of_that_number_stays_frozen(
    frozen: tuple[Inventory, Superblock, int],
) -> None:
    inventory, superblock, directory = frozen
    earlier = freeze.mark(replace(superblock, disk_sequence=1))
    another_boot = "x" + freeze.mark(superblock)
    for marked in (earlier, another_boot, str(superblock.devno), None):
        assert await freeze.thaw_marked(inventory, marked) is None
        assert fs.is_frozen(directory)


def test_who_was_killed_while_it_waits_for_the_thaw_is_dying(
    frozen: tuple[Inventory, Superblock, int], work: Path
) -> None:
    _, _, directory = frozen
    with subprocess.Popen(["dd", "if=/dev/zero", f"of={work}/a/file", "bs=1", "count=1"]) as writer:
        wait_until(lambda: Path(f"/proc/{writer.pid}/stat").read_text().split()[2] == "D")
        assert not proc.is_dying(writer.pid)
        writer.kill()
        assert proc.is_dying(writer.pid)
        assert proc.is_alive(writer.pid, None)
        fs.thaw(directory)
        writer.wait()
    assert not proc.is_dying(writer.pid)
