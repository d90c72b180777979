"""What minds the marks of filesystems. Sources and inventory are stand-ins."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import listening
from fswatchd.engine.listening import Listening


class Node:
    """What `keep_marked` is given; `marks` are the answers to which marks are missing."""

    def __init__(self, *marks: set[Devno] | OSError) -> None:
        self.marks = list(marks)
        self.unreadable: set[Devno] = set()
        self.announced: asyncio.Queue[object] = asyncio.Queue()
        self.changes: asyncio.Queue[object] = asyncio.Queue()
        self.is_reached = True
        self.poked = asyncio.Event()
        self._watch = SimpleNamespace(changes=lambda: self.changes, poke=self.poked.set)
        self._fanotify = SimpleNamespace(unmarked=self._unmarked)
        self.state = SimpleNamespace(lost=lambda: set(self.unreadable))
        self._inventory = SimpleNamespace(announce=self._tell)
        self._superblock = str

    def _unmarked(self) -> set[Devno]:
        answer = self.marks.pop(0) if self.marks else set[Devno]()
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def _tell(self, superblock: str) -> bool:
        self.announced.put_nowait(superblock)
        return self.is_reached

    async def _announce(self, superblocks: Any) -> None:
        await Listening._announce(cast("Any", self), superblocks)

    async def first_announced(self) -> object:
        """What is announced first."""
        running = asyncio.create_task(Listening.keep_marked(cast("Any", self)))
        told = asyncio.create_task(self.announced.get())
        await asyncio.wait({running, told}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert told.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return told.result()


async def test_marks_that_cannot_be_read_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing changes any more: the filesystem has no mark, and nobody hears it."""
    monkeypatch.setattr(listening, "_MARKS_AGAIN_S", 0.0)
    node = Node(OSError(24, "Too many open files"), {Devno(7, 3)})
    node.changes.put_nowait("a change")
    assert await node.first_announced() == "7:3"


async def test_a_mark_that_is_lost_without_any_change_is_set_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Linux 6.12 the new mount of a filesystem may have the id of the old one."""
    monkeypatch.setattr(listening, "_MARKS_EVERY_S", 0.0)
    assert await Node(set(), {Devno(7, 3)}).first_announced() == "7:3"


async def test_one_whose_probe_reads_nothing_any_more_is_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a kernel without fanotify's errors that is all there is."""
    monkeypatch.setattr(listening, "_MARKS_EVERY_S", 0.0)
    node = Node()
    node.unreadable = {Devno(252, 0)}
    assert await node.first_announced() == "252:0"


@pytest.mark.parametrize("is_reached", [True, False])
async def test_what_cannot_be_announced_is_looked_at_soon(*, is_reached: bool) -> None:
    node = Node()
    node.is_reached = is_reached
    await node._announce(["7:3", "7:4"])
    assert node.announced.qsize() == 2
    assert node.poked.is_set() is not is_reached
