"""Whether a base still reads as it did: digests of every backing file, taken again in idle time.

`bases` sees that somebody has written; this sees what nobody has told the filesystem: a disk that
gives back something else, a write past the filesystem. The first pass over a base records, the
later ones compare. A pass goes on after a restart where it was. Where fs-verity is on
(Documentation/filesystems/fsverity.rst) the kernel compares too, and answers EIO, which is told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from fswatchd import process
from fswatchd.engine import bases
from fswatchd.engine.attribution import Attribution
from fswatchd.events import EventClass, FsEvent
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import ImageKey

log = logging.getLogger(__name__)

PIECE = 256 << 20
_TIMEOUT_S = 300.0
_LOOK_EVERY_S = 60.0
_AGAIN_S = 3600.0
_FORGOTTEN_S = 90 * 86400.0
# Of the time that it takes to read a piece, so much again passes before the next one.
_REST = 19
_IDLE = ("ionice", "-c", "3", "nice", "-n", "19")


Reader = Callable[[str, int, int], Awaitable[dict[str, Any]]]


class Facts(Protocol):
    """Where manifests are kept (store.Store)."""

    async def facts(self, prefix: str) -> dict[str, Any]:
        """Every one whose key starts so."""
        ...

    def set_fact(self, key: str, value: object | None) -> object:
        """Keep a JSON value; None forgets it."""
        ...


@dataclass(slots=True)
class _Manifest:
    """`file` is inode, modification time (ns) and size; `position` the next piece of this pass."""

    file: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    position: int = 0
    passed: float = 0.0  # seconds of CLOCK_REALTIME, as the next one
    seen: float = 0.0


class BaseDigests:
    """One piece of one base at a time. `every_s` is from pass to pass."""

    _PREFIX = "digests:"

    def __init__(
        self,
        inventory: Inventory,
        facts: Facts,
        report: Callable[[FsEvent, Attribution], None],
        every_s: float,
        piece: int = PIECE,
        read: Reader | None = None,
    ) -> None:
        self._inventory = inventory
        self._facts = facts
        self._report = report
        self._every_s = every_s
        self._piece = piece
        self._read = read or _read
        self._manifests: dict[str, _Manifest] = {}
        self._read_s = 0.0

    async def run(self) -> None:
        """Read for ever."""
        await self.load_stored()
        while True:
            if await self.step():
                await asyncio.sleep(self._read_s * _REST)
            else:
                await asyncio.sleep(min(_LOOK_EVERY_S, self._every_s))

    async def load_stored(self) -> None:
        """Take up what an earlier run has recorded."""
        stored = await self._facts.facts(self._PREFIX)
        self._manifests = {
            key.removeprefix(self._PREFIX): _Manifest(**value) for key, value in stored.items()
        }

    async def step(self) -> bool:
        """Read one piece; False where nothing is due."""
        view = self._inventory.view
        paths = {view.image_paths[base]: base for base in view.image_bases.values()}
        # Nobody looks whether a file is still there: what held it may not answer any more.
        for gone in self._manifests.keys() - paths.keys():
            if time.time() - self._manifests[gone].seen > _FORGOTTEN_S:
                del self._manifests[gone]
                self._facts.set_fact(f"{self._PREFIX}{gone}", None)
        due = [path for path in paths if self._is_due(path)]
        if not due:
            return False
        path = min(due, key=lambda one: (self._manifest(one).position == 0, one))
        await self._read_piece(path, paths[path])
        return True

    def _manifest(self, path: str) -> _Manifest:
        return self._manifests.setdefault(path, _Manifest())

    def _is_due(self, path: str) -> bool:
        known = self._manifest(path)
        rested_s = time.time() - known.passed
        # A clock that was set back must not put off the next pass for years.
        return known.position > 0 or not 0 <= rested_s < self._every_s

    async def _read_piece(self, path: str, base: ImageKey) -> None:
        known = self._manifest(path)
        known.seen = time.time()
        number, offset = known.position, known.position * self._piece
        answer = await self._read(path, offset, self._piece)
        self._read_s = float(answer.get("seconds", 1.0))
        if "file" not in answer:
            # Somebody writes to it, or it cannot be read: this pass ends here.
            known.position = 0
            known.passed = time.time() - max(self._every_s - _AGAIN_S, 0.0)
            if answer.get("errno") is not None:
                words = os.strerror(answer["errno"])
                self._tell(path, base, EventClass.IO_ERROR, f"cannot be read ({words})", offset)
        elif answer["file"] != known.file and number > 0:
            known.position = 0  # written meanwhile, which `bases` tells: from the beginning
        else:
            if answer["file"] != known.file:
                known.file, known.digests = answer["file"], []
            if number == len(known.digests):
                known.digests.append(answer["digest"])
            elif known.digests[number] != answer["digest"]:
                text = "does not read as it did, and nobody has written to it"
                self._tell(path, base, EventClass.CORRUPTION, text, offset)
            known.position += 1
            if known.position * self._piece >= known.file[2]:
                known.position, known.passed = 0, time.time()
        self._facts.set_fact(f"{self._PREFIX}{path}", asdict(known))

    def _tell(self, path: str, base: ImageKey, klass: EventClass, what: str, offset: int) -> None:
        view = self._inventory.view
        mebibytes = (offset >> 20, (offset + self._piece) >> 20)
        text = f"the base {path} {what}, between MiB {mebibytes[0]} and {mebibytes[1]},"
        self._report(*bases.event_about(view, base, path, klass, text, confirms=True))


async def _read(path: str, offset: int, length: int) -> dict[str, Any]:
    """The answer of helpers.digest; empty where there is none."""
    argv = (*_IDLE, sys.executable, "-m", "fswatchd.helpers.digest", path, str(offset), str(length))
    try:
        ended = await process.run(argv, timeout_s=_TIMEOUT_S, heavy=True)
        answer = json.loads(ended.output) if ended.succeeded else None
    except (process.ProcessError, ValueError) as error:
        log.warning("cannot read the base %s: %s", path, error)
        return {}
    if not isinstance(answer, dict):
        log.warning("cannot read the base %s: %s", path, ended.describe())
        return {}
    return answer
