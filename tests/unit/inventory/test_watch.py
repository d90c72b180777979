"""Which mount namespaces tell of their mounts. The kernel is a stand-in."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.inventory import watch
from fswatchd.inventory.inventory import Changes
from fswatchd.inventory.model import NamespaceKey
from fswatchd.inventory.watch import InventoryWatch

INODE = NamespaceKey(4026532201)


class Kernel:
    """One descriptor for each namespace, by its id; `scan` is one look at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.marked: list[int] = []
        self.namespaces: dict[int, NamespaceKey] = {}
        self.has_ids = True
        monkeypatch.setattr(watch.mounts, "namespace_id", self._id)
        mark = cast("Any", lambda _group, fd: self.marked.append(fd))
        monkeypatch.setattr(watch.fanotify, "mark_mount_namespace", mark)
        inventory = SimpleNamespace(
            refresh=self._refresh, platforms=[], watch_directories=lambda: {"/var/lib/lxc"}
        )
        self.watch = InventoryWatch(cast("Any", inventory))
        self.watch._mounts = 99

    def _id(self, fd: int) -> int:
        if not self.has_ids:
            raise OSError(25, "Inappropriate ioctl for device")
        return fd

    async def _refresh(self, *, forget: bool) -> Changes:
        for namespace_id, inode in self.namespaces.items():
            self.watch._mark_namespace(inode, namespace_id)
        return Changes()

    async def look(self, **namespaces: NamespaceKey) -> list[int]:
        """The ids of those that were marked at a look at these."""
        self.marked.clear()
        self.namespaces = {int(name[1:]): inode for name, inode in namespaces.items()}
        await self.watch._refresh()
        return list(self.marked)


async def test_a_namespace_is_marked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    assert await kernel.look(n1=INODE) == [1]
    assert await kernel.look(n1=INODE) == []


async def test_a_ve_that_is_started_again_gets_a_mark_with_the_same_inode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where no look saw the node without it."""
    kernel = Kernel(monkeypatch)
    await kernel.look(n1=INODE)
    assert await kernel.look(n2=INODE) == [2]
    assert kernel.watch._marked == {2}


async def test_without_ids_one_that_was_away_is_marked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel(monkeypatch)
    kernel.has_ids = False
    assert await kernel.look(n1=INODE) == [1]
    assert await kernel.look(n1=INODE) == []
    await kernel.look()
    assert await kernel.look(n2=INODE) == [2]


async def test_a_directory_that_does_not_answer_keeps_nobody_from_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may lie on a server that is lost. It is asked again once it has answered."""
    kernel, answers, asked = Kernel(monkeypatch), threading.Event(), []

    def mark(_group: int, path: str) -> None:
        asked.append(path)
        answers.wait(60)

    monkeypatch.setattr(watch, "_MARK_S", 0.05)
    monkeypatch.setattr(watch.fanotify, "mark_directory", mark)
    kernel.watch._directories = 98
    try:
        async with asyncio.timeout(30):
            assert await kernel.look(n1=INODE) == [1]
            assert await kernel.look(n1=INODE, n2=INODE) == [2]
        assert asked == ["/var/lib/lxc"]
    finally:
        answers.set()
    while len(asked) < 2:
        await kernel.look(n1=INODE)
