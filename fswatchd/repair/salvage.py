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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory.model import Superblock
from fswatchd.repair import clone
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionContext

# Longer than the kernel keeps dirty data (vm.dirty_expire_centisecs) and its journal (commit=).
_BEFORE_FAULT_S = 60
_MAX_FILES = 10_000
_LOOK_S = 120.0
_COPY_S = 120.0
_ANSWER_S = 30.0  # what one file may take beyond that
_NAMES_TOLD = 20


@dataclass(slots=True)
class Salvaged:
    """What was found: paths in the VE, and what could not be looked at."""

    copied: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreadable: int = 0
    unseen: int = 0
    cut: bool = False

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
        if self.cut:
            parts.append(f"more than {_MAX_FILES} files had changed; not all were looked at")
        if self.unseen:
            parts.append(f"{self.unseen} files were not looked at within {_COPY_S:.0f} s")
        if self.unreadable:
            parts.append(f"{self.unreadable} directories could not be read")
        return "; ".join(parts) or "nothing was written that had not reached the disk"


class Search:
    """Looks at what changed from `async with` on, while the clone is being repaired.

    The filesystem itself is held only for as long as `copy` runs: its VE may be stopped meanwhile,
    by whom it belongs to.
    """

    def __init__(self, context: ActionContext, superblock: Superblock) -> None:
        self._context = context
        self._superblock = superblock
        self._helper = Helper("fswatchd.helpers.salvage")
        self._looks: list[asyncio.Task[dict[str, Any]]] = []

    async def __aenter__(self) -> Search:
        if not self._walks:
            self._looks.append(asyncio.create_task(self._look_at_device()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)
        await self._helper.close(kill=True)

    def look_at(self, path: str) -> None:
        """At the clone too, as soon as its journal is replayed: a check reads the same inodes."""
        if not self._walks:
            self._looks.append(asyncio.create_task(self._look_at_clone(path)))

    @property
    def _walks(self) -> bool:
        """Whether the inodes on the device may lack what has changed."""
        return "lazytime" in self._superblock.options

    async def _look_at_device(self) -> dict[str, Any]:
        path = f"/dev/{self._superblock.device}"
        with await asyncio.to_thread(open, path, "rb") as device:
            if Devno.of(os.fstat(device.fileno()).st_rdev) != self._superblock.devno:
                raise OSError(f"{path} is another device by now")
            return await self._look("held", device.fileno())

    async def _look_at_clone(self, path: str) -> dict[str, Any]:
        with await asyncio.to_thread(open, path, "rb") as file:
            return await self._look("clone", file.fileno())

    async def _look(self, op: str, fd: int) -> dict[str, Any]:
        answer, _ = await self._helper.request({"op": op, **self._bounds}, (fd,), timeout_s=_LOOK_S)
        return answer

    @property
    def _bounds(self) -> dict[str, Any]:
        since = self._context.incident.opened_ns / 1e9 - _BEFORE_FAULT_S
        return {"since": since, "limit": _MAX_FILES}

    async def copy(self, made: ImageFile, image: ImageFile, max_bytes: int) -> str:
        """Copy what the clone lacks; a sentence for the incident. What cannot be is only told."""
        target = Path(f"{image.path}.salvaged-{self._context.incident.incident_id}")
        found = Salvaged()
        try:
            room = max(clone.room(image.directory, self._context.settings), 0)
            async with self._context.inventory.opened(self._superblock) as mount:
                if self._walks:
                    found.unreadable = (await self._look("walk", mount))["unreadable"]
                    await self._look_at_clone(made.path)
                for look in self._looks:
                    await look
                await self._copy(found, mount, made, target, min(max_bytes, room))
        except (OSError, HelperError) as error:
            return f"files that never reached the disk could not be looked for: {error}"
        return found.sentence(target)

    async def _copy(
        self, found: Salvaged, mount: int, made: ImageFile, target: Path, max_bytes: int
    ) -> None:
        request = {
            "op": "copy",
            **self._bounds,
            "target": str(target),
            "max_bytes": max_bytes,
            "within_s": _COPY_S,
        }
        with (
            open(made.path, "rb") as clone_file,
            tempfile.TemporaryFile("w+", dir=target.parent, encoding="utf-8") as told,
        ):
            fds = (mount, clone_file.fileno(), told.fileno())
            answer, _ = await self._helper.request(request, fds, timeout_s=_COPY_S + _ANSWER_S)
            found.unseen, found.cut = answer["unseen"], answer["cut"]
            told.seek(0)
            for line in told:
                path, outcome = json.loads(line)
                (found.copied if outcome == "copied" else found.lost).append(path)


def _names(paths: list[str]) -> str:
    shown = ", ".join(printable(path, 120) for path in paths[:_NAMES_TOLD])
    return shown if len(paths) <= _NAMES_TOLD else f"{shown} and {len(paths) - _NAMES_TOLD} more"
