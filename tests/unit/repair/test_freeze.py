"""A freeze ends also when its guard is killed before it has told that it froze."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fswatchd.helpers.client import HelperError
from fswatchd.repair import freeze
from fswatchd.repair.freeze import Freeze
from fswatchd.steps import StepEnded
from tests.unit.repair.test_format import MOUNTED


class Guard:
    """A guard that gives no answer, and what is left of it."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    async def request(self, *_: object, **__: object) -> Any:
        raise HelperError("ended")

    async def close(self, **_: object) -> int | None:
        return self._code


class Inventory:
    """Opens the place that it was given as any filesystem."""

    def __init__(self, place: Path) -> None:
        self._place = place

    @asynccontextmanager
    async def opened(self, _: object):
        fd = os.open(self._place, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)


@pytest.mark.parametrize(("code", "thaws"), [(-9, True), (1, True), (0, False), (None, False)])
async def test_a_guard_that_was_killed_while_it_froze(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int | None, *, thaws: bool
) -> None:
    """One that ended by itself has undone it, and one that hangs in the kernel will."""
    thawed: list[object] = []

    async def leftover(_: object, which: object) -> bool:
        thawed.append(which)
        return True

    monkeypatch.setattr(freeze, "thaw_leftover", leftover)
    held = Freeze()
    held._guard = Guard(code)  # type: ignore[assignment]
    with pytest.raises(HelperError):
        await held.hold(Inventory(tmp_path), MOUNTED, 1.0)  # type: ignore[arg-type]
    assert not held.held
    assert bool(thawed) is thaws
    await held.release()


async def test_a_guard_that_was_killed_while_it_wrote_back_has_frozen_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is frozen then is somebody else's."""
    monkeypatch.setattr(freeze, "thaw_leftover", None)
    held = Freeze()
    held._guard = Guard(-9)  # type: ignore[assignment]
    with pytest.raises(HelperError, match="written back"):
        await held.hold(Inventory(tmp_path), MOUNTED, 1.0, sync_first=True)  # type: ignore[arg-type]
    assert not held.held
    await held.release()


async def test_who_gives_up_while_it_is_written_back_leaves_nothing_open(tmp_path: Path) -> None:
    """A descriptor that is left keeps the superblock, and its image could not be exchanged."""

    class Hangs(Guard):
        async def request(self, *_: object, **__: object) -> Any:
            await asyncio.sleep(3600)

    held = Freeze()
    held._guard = Hangs(0)  # type: ignore[assignment]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await held.hold(Inventory(tmp_path), MOUNTED, 1.0, sync_first=True)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_could_not_be_thawed_then_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def leftover(*_: object) -> bool:
        raise OSError(5, "EIO")

    monkeypatch.setattr(freeze, "thaw_leftover", leftover)
    monkeypatch.setattr(freeze.fs, "has_superblock", lambda _: True)
    held = Freeze()
    held._guard = Guard(-9)  # type: ignore[assignment]
    with pytest.raises(HelperError):
        await held.hold(Inventory(tmp_path), MOUNTED, 1.0)  # type: ignore[arg-type]
    with pytest.raises(StepEnded, match="may still be frozen"):
        await held.release()
