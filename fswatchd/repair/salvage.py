"""What the live mount still shows and the clone lacks: copy it out before the VE is stopped.

After a journal abort the page cache still serves files that were written and never reached the
disk. Files that changed shortly before the fault are compared with the clone (which is read past
the kernel, it is never mounted); what differs is copied beside the image.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory.model import Superblock
from fswatchd.repair import clone
from fswatchd.repair.volume import ImageFile
from fswatchd.shielded import ended, to_the_end
from fswatchd.steps import ActionContext

# Longer than the kernel keeps dirty data and its journal (vm.dirty_*_centisecs, commit=) usually.
_BEFORE_FAULT_S = 60.0
_DIRTY = ("dirty_expire_centisecs", "dirty_writeback_centisecs")
_MARGIN_S = 5.0
_MAX_FILES = 10_000
_MAX_NAMESPACES = 1000  # of a VE with containers of its own; a request has room for no more
_LOOK_S = 120.0
_COMPARE_S = 60.0
_COPY_S = 60.0
_ANSWER_S = 30.0  # what one file may take beyond that
_NAMES_TOLD = 20


@dataclass(slots=True)
class Salvaged:
    """What was found: paths in the VE, some of them with the reason, and what was not looked at."""

    copied: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unreadable: int = 0
    unseen: int = 0
    cut: bool = False

    def add(self, path: str, outcome: str) -> None:
        """What has become of one; see `helpers.salvage`."""
        kind, _, why = outcome.partition(": ")
        match kind:
            case "copied":
                self.copied.append(path)
            case "lost":
                self.lost.append(f"{path} ({why})")
            case _:
                self.unknown.append(f"{path} ({why})")

    def sentence(self, target: Path) -> str:
        """For the incident's story."""
        parts = []
        if self.copied:
            parts.append(
                f"{len(self.copied)} files never reached the disk and were copied to {target}: "
                f"{_names(self.copied)}"
            )
        if self.lost:
            parts.append(f"{len(self.lost)} files could not be saved: {_names(self.lost)}")
        if self.unknown:
            parts.append(f"{len(self.unknown)} files could not be compared: {_names(self.unknown)}")
        if self.cut:
            parts.append(f"more than {_MAX_FILES} files had changed; not all were looked at")
        if self.unseen:
            parts.append(f"{self.unseen} files were not looked at within {_COMPARE_S:.0f} s")
        if self.unreadable:
            parts.append(f"{self.unreadable} directories could not be read")
        return "; ".join(parts) or "no file was found whose content had not reached the disk"


class Search:
    """Looks at what the kernel has in memory from `async with` on, before it forgets any of it.

    The filesystem itself is held only while files are compared and copied: its VE may be stopped
    meanwhile, by whom it belongs to.
    """

    def __init__(self, context: ActionContext, superblock: Superblock) -> None:
        self._context = context
        self._superblock = superblock
        self._helper = Helper("fswatchd.helpers.salvage")
        self._look: asyncio.Task[None] | None = None
        self._compared: asyncio.Task[Salvaged] | None = None

    async def __aenter__(self) -> Search:
        # With lazytime the inodes on the device may lack what has changed.
        if "lazytime" not in self._superblock.options:
            self._look = asyncio.create_task(self._look_at_device())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        running = [task for task in (self._look, self._compared) if task is not None]
        for task in running:
            task.cancel()
        try:
            await ended(asyncio.gather(*running, return_exceptions=True))
        finally:
            # What it has open keeps the VE's filesystem mounted.
            await to_the_end(self._helper.close(kill=True))

    async def _look_at_device(self) -> None:
        with await asyncio.to_thread(self._open_device) as device:
            request = {"op": "held", "limit": _MAX_FILES}
            await self._helper.request(request, (device.fileno(),), timeout_s=_LOOK_S)

    def _open_device(self) -> BinaryIO:
        path = f"/dev/{self._superblock.device}"
        if Devno.of(os.stat(path).st_rdev) != self._superblock.devno:
            raise OSError(f"{path} is another device by now")
        return open(path, "rb")

    def compare(self, made: ImageFile) -> None:
        """Begin to look for what the clone lacks; anew, where something has been written to it.

        That goes on beside whatever else only reads the clone.
        """
        self._compared = asyncio.create_task(self._compare(made, self._compared))

    async def _compare(self, made: ImageFile, earlier: asyncio.Task[Salvaged] | None) -> Salvaged:
        if earlier is not None:
            await asyncio.gather(earlier, return_exceptions=True)
        found = Salvaged()
        namespaces = {int(place.namespace) for place in self._superblock.mounts}
        request = {
            "op": "compare",
            "limit": _MAX_FILES,
            "until": self._context.incident.opened_ns / 1e9,
            "before_s": before_s(self._superblock.options),
            "devno": list(self._superblock.devno),
            "namespaces": sorted(namespaces)[:_MAX_NAMESPACES],
            "within_s": _COMPARE_S,
        }
        async with self._context.inventory.opened(self._superblock) as mount:
            if self._look is not None:
                await asyncio.shield(self._look)
            else:
                walk = {"op": "walk", "limit": _MAX_FILES}
                walked, _ = await self._helper.request(walk, (mount,), timeout_s=_LOOK_S)
                found.unreadable = walked["unreadable"]
            with (
                await asyncio.to_thread(self._open_device) as device,
                open(made.path, "rb") as clone_file,
            ):
                fds = (mount, device.fileno(), clone_file.fileno())
                timeout_s = _COMPARE_S + _ANSWER_S
                answer, _ = await self._helper.request(request, fds, timeout_s=timeout_s)
        found.unseen, found.cut = answer["unseen"], answer["cut"]
        return found

    async def copy(self, image: ImageFile, max_bytes: int) -> str:
        """Copy what the clone lacks that `compare` was told of; a sentence for the incident.

        What cannot be is only told.
        """
        target = Path(f"{image.path}.salvaged-{self._context.incident.incident_id}")
        found, problem = Salvaged(), ""
        try:
            if self._compared is None:
                raise OSError("nothing was compared")
            found = await self._compared
            room = max(clone.room(image.directory, self._context.settings), 0)
            async with self._context.inventory.opened(self._superblock) as mount:
                await self._copy(found, mount, target, min(max_bytes, room))
        except (OSError, HelperError) as error:
            problem = f"files that never reached the disk could not be looked for: {error}"
        if problem and not (found.copied or found.lost):
            return problem
        return "; ".join(part for part in (found.sentence(target), problem) if part)

    async def _copy(self, found: Salvaged, mount: int, target: Path, max_bytes: int) -> None:
        request = {
            "op": "copy",
            "target": str(target),
            "max_bytes": max_bytes,
            "within_s": _COPY_S,
        }
        with tempfile.TemporaryFile("w+", dir=target.parent, encoding="utf-8") as told:
            fds = (mount, told.fileno())
            try:
                await self._helper.request(request, fds, timeout_s=_COPY_S + _ANSWER_S)
            finally:
                told.seek(0)
                for line in told:
                    if line.endswith("\n"):
                        found.add(*json.loads(line))


def before_s(options: Collection[str]) -> float:
    """How long the kernel may keep what was written in memory, in seconds."""
    wait_s = [0.0]
    with suppress(OSError, ValueError):
        wait_s = [int(Path("/proc/sys/vm", name).read_text()) / 100 for name in _DIRTY]
    commit_s = [
        float(option.removeprefix("commit="))
        for option in options
        if option.startswith("commit=") and option[7:].isdecimal()
    ]
    return max(_BEFORE_FAULT_S, sum(wait_s) + max(commit_s, default=_MARGIN_S) + _MARGIN_S)


def _names(paths: list[str]) -> str:
    shown = ", ".join(printable(path, 120) for path in paths[:_NAMES_TOLD])
    return shown if len(paths) <= _NAMES_TOLD else f"{shown} and {len(paths) - _NAMES_TOLD} more"
