"""Only what a journal says was frozen by us is thawed after a restart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import block, fs, proc
from fswatchd.repair import freeze
from tests.system.conftest import wait_until


@pytest.fixture
async def mounted(work: Path) -> AsyncIterator[tuple[Inventory, Superblock, int]]:
    """A filesystem, and a descriptor of its root."""
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
        yield inventory, superblock, directory
    finally:
        if fs.is_frozen(directory):
            fs.thaw(directory)
        os.close(directory)
        await inventory.close()


@pytest.fixture
def frozen(
    mounted: tuple[Inventory, Superblock, int],
) -> tuple[Inventory, Superblock, int]:
    """The same, and somebody has frozen it."""
    fs.freeze(mounted[2])
    return mounted


async def test_what_is_only_in_memory_is_written_before_writers_are_held(
    mounted: tuple[Inventory, Superblock, int], work: Path
) -> None:
    inventory, superblock, directory = mounted
    (work / "a" / "file").write_bytes(os.urandom(4 << 20))
    held = freeze.Freeze()
    request = held._guard.request
    written: dict[str, int] = {}

    async def watched(message: Any, *rest: Any, **more: Any) -> Any:
        written[message["op"]] = block.sectors_written(superblock.devno) or 0
        return await request(message, *rest, **more)

    held._guard.request = watched  # type: ignore[method-assign]
    before = block.sectors_written(superblock.devno) or 0
    await held.hold(inventory, superblock, 10.0, sync_first=True)
    assert fs.is_frozen(directory)
    assert written["freeze"] - before >= (4 << 20) // 512
    assert await held.thaw()
    assert not fs.is_frozen(directory)


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
