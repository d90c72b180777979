"""The lock that keeps a platform's own tools, and its other nodes, away from a VE.

Where it cannot be had nothing is done. A lock that is a command's outlives the daemon, so it is in
the step's journal before it is taken, and with what proves that it is ours once it is: another one
of the same kind may have been taken since by somebody else, and is not given away.

One that is a file ends with the daemon; it is let go before the VE is started, because most tools
that start a VE take the very same one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fswatchd import process
from fswatchd.errors import FswatchError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Lock, Ve, VeId
from fswatchd.steps import Next, refuse

_FILE_S = 5.0
# `pct` waits ten seconds for the file that guards the lock.
_COMMAND_S = 30.0
_POLL_S = 0.05

Journal = Callable[..., Awaitable[None]]


class LockedError(FswatchError):
    """Somebody else has the lock."""


@dataclass(slots=True)
class _Held:
    """`taken` is not set before that is certain: who is cut off while it takes one cannot tell.

    While it is `given_back` the inventory shows it as it is.
    """

    lock: Lock
    owner: str
    fd: int | None = None
    taken: bool = False
    given_back: bool = False


class VeLocks:
    """The locks that plans hold; `owner` is the incident whose plan it is."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._held: dict[VeId, _Held] = {}
        inventory.adjust.append(self.seen)

    def seen(self, ve: Ve) -> Ve:
        """The VE for the inventory: our own lock is no reason to wait, and needs other commands."""
        held = self._held.get(ve.ve_id)
        if held is None or not held.taken or held.given_back:
            return ve
        return as_locked(ve, held.lock)

    async def take(self, ve: Ve, owner: str, journal: Journal) -> Ve:
        """Lock the VE for `owner`; returns it with the commands that work then.

        Raises StepEnded where somebody is at work on it. Without a lock that alone is asked, here
        and again right before the VE is stopped (`scope.still_the_same`).
        """
        held = self._held.get(ve.ve_id)
        if held is not None and held.owner == owner and held.taken:
            return as_locked(ve, held.lock)
        now = self._inventory.view.ves.get(ve.ve_id)
        if now is not None and now.busy:
            raise refuse("busy", f"{ve.ve_id} is busy: {now.busy}", Next.WAIT)
        if ve.lock is None:
            return ve
        await journal(lock=describe(ve.ve_id, ve.lock))
        held = self._held[ve.ve_id] = _Held(ve.lock, owner)
        try:
            held.fd = await _take(ve.lock)
        except LockedError as error:
            del self._held[ve.ve_id]
            await journal(lock=None)
            raise refuse("busy", f"{ve.ve_id} is busy: {error.message}", Next.WAIT) from None
        held.taken = True
        if ve.lock.written_in is not None:
            stamp = await _stamp(ve.lock.written_in)
            await journal(lock={**describe(ve.ve_id, ve.lock), "stamp": stamp})
        if ve.lock.busy is not None:
            await self._inventory.refresh()
        return as_locked(ve, ve.lock)

    def holds(self, ve_id: VeId) -> bool:
        """Whether a lock on the VE is ours, or may be."""
        return ve_id in self._held

    async def adopt(self, facts: object, owner: str) -> str | None:
        """Take over a lock that an earlier run of the daemon has taken; what is for a person, in
        words.

        Where that run was killed while it took the lock, or the lock was written since, the one
        that is there may be somebody else's: nothing is done under it, also where the plan has
        stopped the VE (its volume may be on its way to elsewhere), and it is not given back.
        """
        ve_id, lock = read(facts)
        if lock is None or lock.file is not None:
            return None
        if await _is_as_taken(lock, facts):
            self._held[ve_id] = _Held(lock, owner, taken=True)
            return None
        return await self._uncertain(ve_id, lock)

    async def _uncertain(self, ve_id: VeId, lock: Lock) -> str | None:
        """What to tell of a lock that may be ours; None where there is none."""
        await self._inventory.refresh()
        ve = self._inventory.view.ves.get(ve_id)
        if ve is None or ve.busy != lock.busy:
            return None  # there is none like ours
        return (
            f"{ve_id} stays locked ({ve.busy}), and as it is: nobody can tell whether that lock is "
            "ours, because fswatchd was killed while it took one, or the lock was written since; "
            f"if nothing of the platform works on the VE, take it away: {' '.join(lock.release)}"
        )

    def before_start(self, ve_id: VeId) -> None:
        """Let a file go, which the start command may take itself."""
        held = self._held.get(ve_id)
        if held is not None and held.fd is not None:
            os.close(held.fd)
            del self._held[ve_id]

    async def release(self, owner: str) -> list[str]:
        """Give back all that `owner` holds; returns what could not be. Who is cut off in the middle
        holds it still, and may ask again."""
        problems = []
        for ve_id, held in list(self._held.items()):
            if held.owner == owner:
                held.given_back = True
                problem = await self._release(ve_id, held)
                self._held.pop(ve_id, None)
                if problem is not None:
                    problems.append(problem)
        return problems

    async def _release(self, ve_id: VeId, held: _Held) -> str | None:
        if held.fd is not None:
            os.close(held.fd)
            held.fd = None
        if not held.lock.release:
            return None
        if not held.taken:
            return await self._uncertain(ve_id, held.lock)
        await self._inventory.refresh()
        ve = self._inventory.view.ves.get(ve_id)
        if ve is None or (held.lock.busy is not None and ve.busy != held.lock.busy):
            return None  # gone; what there may be now is somebody else's
        try:
            done = await process.run(held.lock.release, timeout_s=_COMMAND_S)
        except process.ProcessError as error:
            return f"{ve_id} stays locked: {error.message}"
        await self._inventory.refresh()
        return None if done.succeeded else f"{ve_id} stays locked: {done.describe()}"


def as_locked(ve: Ve, lock: Lock) -> Ve:
    """The VE as it is while we hold the lock."""
    mine, usual = lock.commands, ve.commands
    return replace(
        ve,
        busy=None if ve.busy == lock.busy else ve.busy,
        commands=replace(
            usual,
            start=mine.start or usual.start,
            stop=mine.stop or usual.stop,
            kill=mine.kill or usual.kill,
        ),
    )


def describe(ve_id: VeId, lock: Lock) -> dict[str, Any]:
    """A lock for the journal."""
    return {
        "ve": ve_id,
        "file": lock.file,
        "release": list(lock.release),
        "busy": lock.busy,
        "written_in": lock.written_in,
        "commands": {
            "start": list(lock.commands.start),
            "stop": list(lock.commands.stop),
            "kill": list(lock.commands.kill),
        },
    }


def read(facts: object) -> tuple[VeId, Lock | None]:
    """A lock as `describe` has written it down; None where nothing was."""
    if not isinstance(facts, Mapping):
        return VeId(""), None
    commands = {action: tuple(argv) for action, argv in facts["commands"].items()}
    lock = Lock(
        file=facts["file"],
        release=tuple(facts["release"]),
        busy=facts["busy"],
        written_in=facts.get("written_in"),
    )
    return VeId(facts["ve"]), replace(lock, commands=replace(lock.commands, **commands))


async def _is_as_taken(lock: Lock, facts: object) -> bool:
    stamp = facts.get("stamp") if isinstance(facts, Mapping) else None
    if not stamp or lock.written_in is None:
        return False
    return list(stamp) == await _stamp(lock.written_in)


async def _stamp(path: str) -> list[int] | None:
    """What changes whenever the file is written; None where it cannot be looked at."""
    try:
        async with asyncio.timeout(_FILE_S):
            found = await asyncio.to_thread(os.stat, path)
    except (OSError, TimeoutError):
        return None
    return [found.st_mtime_ns, found.st_size, found.st_ino]


async def _take(lock: Lock) -> int | None:
    if lock.file is not None:
        return await _lock_file(lock.file)
    try:
        done = await process.run(lock.take, timeout_s=_COMMAND_S)
    except process.ProcessError as error:
        raise LockedError(error.message) from None
    if not done.succeeded:
        raise LockedError(done.describe())
    return None


async def _lock_file(path: str) -> int:
    """A descriptor on the file, locked; the file is made where there is none, as flock(1) does."""
    deadline = time.monotonic() + _FILE_S
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LockedError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except OSError:
            pass
        os.close(fd)
        if time.monotonic() > deadline:
            raise LockedError(f"somebody has locked {path}")
        await asyncio.sleep(_POLL_S)


def _is_at(fd: int, path: str) -> bool:
    """Whether the file is still the one of that name: who had the lock may have deleted it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False
