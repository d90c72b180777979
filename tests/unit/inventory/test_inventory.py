"""What a refresh owes to its subscribers, also when it does not get to its end."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from fswatchd.events import VeState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve, VeId
from fswatchd.inventory.platform import PlatformError
from fswatchd.inventory.view import NodeView
from fswatchd.inventory.watch import InventoryWatch
from tests.unit.inventory.test_lookup import INSIDE, superblock

MOUNTED = [superblock(n, (INSIDE, "/")) for n in range(3)]


class Node:
    """An inventory of three mounted filesystems; `opens` is called before one is opened."""

    def __init__(self) -> None:
        self.inventory = Inventory([], cast("Any", SimpleNamespace()))
        self.inventory.subscribe(on_superblock=lambda found, _: self.told(found.device))
        self.unread = ""
        reader = SimpleNamespace(
            read=self._read,
            forget=lambda: None,
            devices=lambda _: {},
            unread=lambda: self.unread,
        )
        self.inventory._reader = cast("Any", reader)
        self.inventory._open = self._open  # type: ignore[method-assign, assignment]
        self.heard: list[str] = []
        self.told: Callable[[str], None] = self.heard.append
        self.opening: list[str] = []
        self.hangs = asyncio.Event()
        self.lost: set[str] = set()
        self.fsid = "0" * 16

    def _read(self, _ves: object, before: NodeView) -> NodeView:
        known = before.superblocks or {one.devno: one for one in MOUNTED}
        return NodeView(superblocks=dict(known))

    async def _open(self, found: Any) -> tuple[int, dict[str, object]]:
        self.opening.append(found.device)
        if found.device == "loop1" and not self.hangs.is_set():
            await self.hangs.wait()
        if found.device in self.lost:
            raise FileNotFoundError(2, "it is not mounted", found.device)
        answer = {"fsid": self.fsid} if found.device == "loop2" else {}
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), dict[str, object](answer)


async def test_what_a_cancelled_refresh_did_not_get_to_is_told_of_by_the_next() -> None:
    """Steps of a plan have deadlines, and a preview that nobody wants any more is cancelled."""
    node = Node()
    asked = asyncio.create_task(node.inventory.refresh())
    async with asyncio.timeout(30):
        while "loop1" not in node.opening:
            await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert asked.cancelled()
    assert node.heard == ["loop0"]
    assert node.inventory.is_behind()
    node.hangs.set()
    changes = await node.inventory.refresh()
    assert node.heard == ["loop0", "loop1", "loop2"]
    assert [found.device for found in changes.appeared] == ["loop1", "loop2"]
    assert not node.inventory.is_behind()
    assert (await node.inventory.refresh()).appeared == ()


async def test_who_looks_once_more_as_all_ends_is_not_refused() -> None:
    """A VE of a drill is taken away while the daemon ends: no traceback is its last word."""
    node = Node()
    node.hangs.set()
    await node.inventory.refresh()
    await node.inventory.close()
    await node.inventory.refresh()
    assert len(node.inventory.view.superblocks) == len(MOUNTED)


async def test_one_that_cannot_be_handed_on_does_not_keep_the_others_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node()
    node.hangs.set()

    def told(device: str) -> None:
        if device == "loop0" and "loop0" not in node.inventory.unreached():
            raise OSError(24, "Too many open files")
        node.heard.append(device)

    monkeypatch.setattr(node, "told", told)
    await node.inventory.refresh()
    assert (node.heard, node.inventory.unreached()) == (["loop1", "loop2"], ["loop0"])
    await node.inventory.refresh()
    assert node.heard == ["loop1", "loop2", "loop0"]
    assert node.inventory.unreached() == []


async def test_a_look_that_fails_is_told_until_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, told = Node(), list[str]()
    node.hangs.set()
    node.inventory.on_refreshed = told.append
    read = node.inventory._reader.read

    def fails(*_: object) -> NoReturn:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(node.inventory._reader, "read", fails)
    with pytest.raises(OSError, match="Too many"):
        await node.inventory.refresh()
    assert node.inventory.is_behind()
    monkeypatch.setattr(node.inventory._reader, "read", read)
    await node.inventory.refresh()
    assert told == ["[Errno 24] Too many open files", ""]
    assert not node.inventory.is_behind()


async def test_mounts_that_are_not_understood_are_told_of_and_cost_no_others() -> None:
    node, told = Node(), list[str]()
    node.hangs.set()
    node.inventory.on_refreshed = told.append
    node.unread = "process 7 has mounts that are not understood"
    await node.inventory.refresh()
    node.unread = ""
    await node.inventory.refresh()
    assert told == ["process 7 has mounts that are not understood", ""]
    assert node.heard == ["loop0", "loop1", "loop2"]


class Driver:
    """A platform; with `error` nothing can be asked of it."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error = name, error

    async def list_ves(self) -> list[Ve]:
        if self.error is not None:
            raise self.error
        ve_id, state = VeId(f"{self.name}:a"), VeState.STOPPED
        return [Ve(ve_id=ve_id, platform=self.name, native_id="a", name="a", state=state)]

    def watch_directories(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return [f"/run/{self.name}"]


async def test_a_driver_that_stumbles_is_told_of_and_hides_no_other_ones_ves(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, listed = Node(), list[dict[VeId, Ve]]()
    node.hangs.set()

    def read(ves: dict[VeId, Ve], _before: NodeView) -> NodeView:
        listed.append(ves)
        return NodeView()

    monkeypatch.setattr(node.inventory._reader, "read", read)
    stumbling = Driver("lxc", ValueError("not enough values to unpack \udcff\r"))
    node.inventory.platforms = [stumbling, Driver("docker")]
    for _ in range(2):
        assert node.inventory.watch_directories() == {"/run/docker"}
        await node.inventory.refresh()
    assert [list(ves) for ves in listed] == [["docker:a"]] * 2
    assert node.inventory.problems == {
        what: rf"{what} cannot be read: ValueError('not enough values to unpack \udcff\r')"
        for what in ("lxc directories", "lxc")
    }
    shown = [record.getMessage() for record in caplog.records if record.exc_info]
    assert shown == [f"the platform {text}" for text in node.inventory.problems.values()]
    stumbling.error = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(OSError, match="Too many"):  # says nothing of LXC: the look fails
        await node.inventory.refresh()
    stumbling.error = PlatformError("it does not answer")
    await node.inventory.refresh()
    assert node.inventory.problems["lxc"] == "it does not answer"
    stumbling.error = None
    node.inventory.watch_directories()
    await node.inventory.refresh()
    assert (node.inventory.problems, len(listed[-1])) == ({}, 2)


async def test_the_watch_survives_whatever_a_look_comes_across(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, told = Node(), list[str]()
    node.hangs.set()
    node.inventory.on_refreshed = told.append
    watch = InventoryWatch(node.inventory)
    read = node.inventory._reader.read

    def fails(*_: object) -> NoReturn:
        raise ValueError("no such line")

    monkeypatch.setattr(node.inventory._reader, "read", fails)
    await watch._refresh()
    await watch._refresh()
    monkeypatch.setattr(node.inventory._reader, "read", read)
    await watch._refresh()
    assert told == ["no such line", "no such line", ""]
    assert watch.refreshes == 1
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_two_threads_never_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be cancelled, and what it remembers from look to look is not locked."""
    node, goes_on = Node(), threading.Event()
    node.hangs.set()
    reading: list[str] = []
    both: list[str] = []

    def read(_ves: object, _before: NodeView) -> NodeView:
        both.extend(reading)
        reading.append("one")
        goes_on.wait(30)
        reading.remove("one")
        return NodeView()

    monkeypatch.setattr(node.inventory._reader, "read", read)
    first = asyncio.create_task(node.inventory.refresh())
    async with asyncio.timeout(30):
        while not reading:
            await asyncio.sleep(0.001)
    first.cancel()
    second = asyncio.create_task(node.inventory.refresh())
    await asyncio.wait({second}, timeout=0.05)
    goes_on.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert both == []


async def test_what_is_announced_is_told_of_once_more() -> None:
    node = Node()
    node.hangs.set()
    await node.inventory.refresh()
    node.heard.clear()
    assert await node.inventory.announce(MOUNTED[0])
    assert node.heard == ["loop0"]
    assert (await node.inventory.refresh()).appeared == ()
    assert node.heard == ["loop0"]


async def test_what_cannot_be_announced_is_unreached_until_a_refresh_reaches_it() -> None:
    """A source that was started again on a busy node may have lost it."""
    node = Node()
    node.hangs.set()
    await node.inventory.refresh()
    node.heard.clear()
    node.lost = {"loop0"}
    assert not await node.inventory.announce(MOUNTED[0])
    assert (node.heard, node.inventory.unreached()) == ([], ["loop0"])
    node.lost.clear()
    await node.inventory.refresh()
    assert (node.heard, node.inventory.unreached()) == (["loop0"], [])


async def test_one_that_was_made_anew_with_the_same_numbers_is_another_one() -> None:
    node = Node()
    node.hangs.set()
    await node.inventory.refresh()
    gone: list[bytes | None] = []
    node.inventory.subscribe(on_vanished=lambda old: gone.append(old.fsid))
    devno = MOUNTED[2].devno
    assert await node.inventory.announce(node.inventory.view.superblocks[devno])
    assert gone == []
    node.fsid = "1" * 16
    assert await node.inventory.announce(node.inventory.view.superblocks[devno])
    assert gone == [bytes(8)]
    assert node.inventory.view.superblocks[devno].fsid == b"\x11" * 8
