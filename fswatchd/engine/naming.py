"""Which files are hurt where a device fails, or data do not match their checksum.

The kernel names a sector or an inode, people want a path. It is looked up by reading the
filesystem's own tables, and never by a path within the VE; nothing waits for it, and what cannot
be found out stays a number.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from fswatchd import process
from fswatchd.book import IncidentBook
from fswatchd.errors import FswatchError
from fswatchd.events import EventClass, FsEvent, LostWrite
from fswatchd.helpers.client import HelperError
from fswatchd.incidents import Incident
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import extfs
from fswatchd.repair import xfs_names
from fswatchd.repair.volume import ImageFile
from fswatchd.sandbox import Sandbox
from fswatchd.sources.probes.loop import missing_bytes
from fswatchd.steps import ActionSettings, StepEnded

log = logging.getLogger(__name__)

_TIMEOUT_S = 60.0
_MAX_BLOCKS = 64
_SETTLE_S = 0.05  # lines come in bursts
# Printed by the kernel itself (blk_print_req_error, fs/btrfs/btrfs_inode.h): nobody chooses it.
_SECTOR = re.compile(r", sector (\d{1,18}) op 0x0:\(READ\)")
_BTRFS = re.compile(r"csum failed root (\d{1,18}) ino (\d{1,18}) off (\d{1,18})")
_ICHECK = re.compile(r"^(\d+)\t(\d+)$", re.MULTILINE)
_NCHECK = re.compile(r"^(\d+)\t(/.*)$", re.MULTILINE)


class Naming:
    """Adds the names of lost files to incidents."""

    def __init__(self, book: IncidentBook, inventory: Inventory, settings: ActionSettings) -> None:
        self._book = book
        self._settings = settings
        self._inventory = inventory
        self._heard: dict[str, tuple[Superblock, set[str]]] = {}
        self._known: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        book.subscribe(lambda _, after: self._changed(after))

    def heard(self, event: FsEvent, incident_id: str, superblock: Superblock) -> None:
        """An event of this incident may tell where data are lost."""
        if event.klass not in {EventClass.IO_ERROR, EventClass.DATA_LOSS}:
            return
        if event.device is not None and event.device != superblock.device:
            return  # a sector of a disk is not that of its partition
        _, details = self._heard.setdefault(incident_id, (superblock, set()))
        if not details:
            task = asyncio.create_task(self._look(incident_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if len(details) < _MAX_BLOCKS:
            details.add(event.detail)

    def _changed(self, incident: Incident) -> None:
        if not incident.is_open:
            self._known.pop(incident.incident_id, None)

    async def _look(self, incident_id: str) -> None:
        await asyncio.sleep(_SETTLE_S)
        superblock, details = self._heard.pop(incident_id)
        known = self._known.setdefault(incident_id, set())
        fresh = details - known
        known |= fresh
        if self._book.get(incident_id) is None:
            self._known.pop(incident_id, None)
            return
        try:
            if superblock.fstype == "btrfs":
                found = await self._on_btrfs(superblock, fresh)
            elif superblock.fstype.startswith("ext"):
                found = await _on_ext(superblock, fresh)
            elif superblock.fstype == "xfs":
                found = await self._on_xfs(superblock, fresh)
            else:
                return
        except (OSError, HelperError, FswatchError, StepEnded) as error:
            log.warning("cannot name the files hurt on %s: %s", superblock.device, error)
            return
        incident = self._book.get(incident_id)
        if incident is None:
            return
        for file in found:
            incident = incident.with_lost(file)
        if found:
            names = ", ".join(file.path or f"inode {file.inode}" for file in found)
            incident = incident.noted(time.time_ns(), f"cannot be read: {names}")
            self._book.put(incident)

    async def _on_btrfs(self, superblock: Superblock, details: set[str]) -> list[LostWrite]:
        """btrfs names the inode and its tree; a copy may be left where data are kept twice."""
        if not _only_copy(superblock):
            return []
        wanted = {
            (int(match[1]), int(match[2])): int(match[3])
            for detail in sorted(details)
            if (match := _BTRFS.search(detail)) is not None
        }
        if not wanted:
            return []
        found = []
        async with self._inventory.opened(superblock) as mount:
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
            try:
                place = f"/proc/self/fd/{directory}"
                root = (await _ask(("rootid", place), directory)).strip()
                for (tree, inode), offset in wanted.items():
                    path = None
                    if root == str(tree):
                        listed = await _ask(("inode-resolve", str(inode), place), directory)
                        path = listed.partition("\n")[0].removeprefix(place) or None
                    found.append(LostWrite(inode=inode, offset=offset, path=path))
            finally:
                os.close(directory)
        return found

    async def _on_xfs(self, superblock: Superblock, details: set[str]) -> list[LostWrite]:
        """xfs_db reads its tables on a clone; a volume on a device has none."""
        sectors = _sectors(details)
        path, key = superblock.backing.image, superblock.backing.inode_key
        if not sectors or path is None:
            return []
        image = await asyncio.to_thread(ImageFile.at, path)
        if (image.devno, image.inode) != key:
            return []
        return await xfs_names.of_sectors(image, sectors[:_MAX_BLOCKS], self._settings)


def _sectors(details: set[str]) -> list[int]:
    return sorted(int(found[1]) for text in details if (found := _SECTOR.search(text)) is not None)


async def _ask(words: Sequence[str], fd: int) -> str:
    argv = ("btrfs", "inspect-internal", *words)
    ended = await process.run(argv, timeout_s=_TIMEOUT_S, heavy=True, pass_fds=(fd,))
    return ended.output if ended.succeeded else ""


def _only_copy(superblock: Superblock) -> bool:
    """Whether there is one copy of data only (/sys/fs/btrfs/UUID/allocation/data)."""
    kinds = Path(f"/sys/fs/btrfs/{superblock.uuid}/allocation/data")
    profiles = {entry.name for entry in kinds.iterdir() if entry.is_dir()}
    return bool(profiles) and profiles <= {"single", "raid0"}


async def _on_ext(superblock: Superblock, details: set[str]) -> list[LostWrite]:
    """From sectors to blocks, from these to inodes and names: debugfs(8) reads the tables."""
    device = f"/dev/{superblock.device}"
    size = await asyncio.to_thread(extfs.block_size, device)
    if size is None:
        return []
    blocks = {sector * 512 // size for sector in _sectors(details)}
    if short := missing_bytes(superblock):
        end = _bytes(superblock) // size
        first = end - -(-short // size)
        blocks |= set(range(first, min(end, first + _MAX_BLOCKS)))
    chosen = sorted(blocks)[:_MAX_BLOCKS]
    if not chosen:
        return []
    inodes = {
        int(inode)
        for _, inode in _ICHECK.findall(
            await _debugfs(device, f"icheck {' '.join(map(str, chosen))}")
        )
    }
    if not inodes:
        return []
    names = await _debugfs(device, f"ncheck {' '.join(map(str, sorted(inodes)))}")
    paths = {int(inode): path for inode, path in _NCHECK.findall(names)}
    return [LostWrite(inode=inode, path=paths.get(inode)) for inode in sorted(inodes)]


async def _debugfs(device: str, request: str) -> str:
    argv = ("debugfs", "-R", request, device)
    sandbox = Sandbox(device=device, readonly=True, cpu_s=_TIMEOUT_S)
    return (await process.run(argv, timeout_s=_TIMEOUT_S, heavy=True, sandbox=sandbox)).output


def _bytes(superblock: Superblock) -> int:
    fd = os.open(f"/dev/{superblock.device}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
