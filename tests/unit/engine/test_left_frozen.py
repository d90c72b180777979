"""What cannot be thawed stays written down, is shown, and is tried again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from fswatchd.engine import left_frozen
from fswatchd.engine.freezer import Freezer
from fswatchd.engine.left_frozen import KEY, LeftFrozen
from fswatchd.errors import ConflictError
from fswatchd.events import VeState
from fswatchd.inventory.model import Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import proc
from fswatchd.repair import freeze, ve_freeze
from fswatchd.store.store import Store
from tests.unit.inventory.test_lookup import ve

VE101 = VeId("lxc:ve101")


class Node:
    """One with a VE that an earlier run has frozen, filesystems and processes."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.stuck: set[str] = set()
        self.tried: list[str] = []
        self.tasks_run = True
        self.adjust: list[Callable[[Ve], Ve]] = []
        self.ve: Ve | None = ve("lxc", "ve101", init_pid=7, init_started=11)
        self.thawed = asyncio.Event()
        monkeypatch.setattr(freeze, "thaw_marked", self._thaw_marked)
        monkeypatch.setattr(ve_freeze, "thaw_journaled", self._thaw_journaled)
        monkeypatch.setattr(left_frozen, "_AGAIN_S", 0.0)
        self.left = LeftFrozen(store, cast("Any", self), self._on_thawed)

    @property
    def view(self) -> NodeView:
        return NodeView(ves={} if self.ve is None else {VE101: self.ve})

    async def refresh(self) -> None:
        """The view is always of now."""

    async def _on_thawed(self) -> None:
        if not self.left.current():
            self.thawed.set()

    async def _thaw_marked(self, _inventory: object, marked: str) -> str | None:
        self.tried.append(marked)
        if marked in self.stuck:
            raise OSError(5, "Input/output error")
        return marked

    async def _thaw_journaled(self, left: dict[str, Any]) -> bool:
        return left["frozen_cgroup"] is None or self.tasks_run

    async def begin(self, **more: Any) -> None:
        left = {"boot": proc.boot_id(), "started": 11, "marks": ["inner", "outer"]}
        left |= {"frozen_cgroup": "/ve101", "thaw_command": [], **more}
        await self.store.set_fact(KEY + VE101, left)
        await self.left.recover()

    async def kept(self) -> dict[str, Any]:
        return await self.store.facts(KEY)


@pytest.fixture
async def node(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    made = Node(store, monkeypatch)
    yield made
    await made.left.close()


async def test_what_is_thawed_is_forgotten(node: Node) -> None:
    await node.begin()
    assert node.tried == ["outer", "inner"]
    assert (await node.kept(), node.left.current(), node.left.busy(VE101)) == ({}, [], None)


async def test_what_is_not_thawed_is_kept_shown_and_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.stuck, node.tasks_run = {"inner"}, False
    monkeypatch.setattr(left_frozen, "_AGAIN_S", 3600.0)
    await node.begin()
    (shown,) = node.left.current()
    assert (shown["ve"], shown["state"]) == (VE101, "left frozen")
    assert "Input/output error" in shown["problem"]
    assert "do not run again" in shown["problem"]
    assert node.left.busy(VE101) is not None
    (kept,) = (await node.kept()).values()
    assert (kept["marks"], kept["frozen_cgroup"]) == (["inner"], "/ve101")
    node.tried.clear()
    node.stuck = set()
    assert "do not run again" in str(await node.left.thaw(VE101))
    assert node.tried == ["inner"]  # the other one may be frozen by somebody else now
    node.tasks_run = True
    assert await node.left.thaw(VE101) is None
    assert (await node.kept(), node.left.current(), node.left.busy(VE101)) == ({}, [], None)


async def test_it_goes_on_by_itself_until_all_is_thawed(node: Node) -> None:
    node.stuck = {"outer"}
    await node.begin()
    assert node.left.current() != []
    node.stuck = set()
    async with asyncio.timeout(10):
        await node.thawed.wait()
    assert await node.kept() == {}


async def test_what_another_boot_has_frozen_is_not_frozen_any_more(node: Node) -> None:
    node.stuck = {"outer"}
    await node.begin(boot="another")
    assert (node.tried, await node.kept(), node.left.current()) == ([], {}, [])


@pytest.mark.parametrize(
    ("now", "written"),
    [
        (ve("lxc", "ve101", init_pid=8, init_started=99), {}),
        (ve("lxc", "ve101", init_pid=7, init_started=11, guest=True), {}),
        (ve("lxc", "ve101", init_pid=7, init_started=11), {"init": 1 << 22}),  # that one is dead
        (None, {"init": 1 << 22}),
    ],
    ids=["started again", "its platform says that it runs", "its init has ended", "not listed"],
)
async def test_processes_that_are_not_frozen_any_more_need_no_thaw(
    node: Node, now: Ve | None, written: dict[str, Any]
) -> None:
    node.ve, node.tasks_run = now, False
    await node.begin(**written)
    assert (await node.kept(), node.left.current()) == ({}, [])


@pytest.mark.parametrize(
    ("now", "written"),
    [
        (None, {}),
        (None, {"init": os.getpid(), "started": None}),
        (ve("lxc", "ve101"), {"init": os.getpid(), "started": None}),
        (
            ve("lxc", "ve101", init_pid=7, init_started=11, guest=True),
            {"thaw_command": ["virsh", "domfsthaw", "ve101"]},
        ),
    ],
    ids=["not listed", "not listed, its init runs", "its init runs", "its agent has frozen it"],
)
async def test_who_cannot_be_asked_about_is_still_frozen(
    node: Node, now: Ve | None, written: dict[str, Any]
) -> None:
    node.ve, node.tasks_run = now, False
    await node.begin(**written)
    assert [one["ve"] for one in node.left.current()] == [VE101]
    assert await node.kept() != {}


async def test_what_this_run_could_not_thaw_is_tried_again(node: Node) -> None:
    left = {"boot": proc.boot_id(), "started": 11, "marks": ["inner"]}
    await node.store.set_fact(KEY + VE101, left | {"frozen_cgroup": None, "thaw_command": []})
    await node.left.take_over(VE101, "the guard has ended")
    assert [one["problem"] for one in node.left.current()] == ["the guard has ended"]
    async with asyncio.timeout(10):
        await node.thawed.wait()
    assert (await node.kept(), node.tried) == ({}, ["inner"])


async def test_a_guest_that_its_platform_shows_as_paused_is_still_frozen(node: Node) -> None:
    assert node.ve is not None
    node.ve, node.tasks_run = replace(node.ve, guest=True, state=VeState.FROZEN), False
    await node.begin()
    assert [one["ve"] for one in node.left.current()] == [VE101]


@pytest.mark.parametrize("for_s", [0.0, 5 * 3600.0])
async def test_a_time_that_cannot_be_is_a_wrong_request_and_no_wrong_file(
    node: Node, for_s: float
) -> None:
    """What the API answers to a ValueError; see `mute`."""
    nobody = cast("Any", None)
    freezer = Freezer(node.store, nobody, cast("Any", node), nobody, nobody, nobody)
    with pytest.raises(ValueError, match="60 min at the most"):
        await freezer.freeze("ve101", "root", "", for_s)


async def test_a_ve_that_was_left_frozen_is_busy_and_cannot_be_frozen_anew(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would write over what there is to thaw."""
    monkeypatch.setattr(left_frozen, "_AGAIN_S", 3600.0)
    nobody = cast("Any", None)
    freezer = Freezer(node.store, nobody, cast("Any", node), nobody, nobody, nobody)
    node.left, node.stuck = freezer._left, {"inner"}
    await node.begin()
    assert [one["problem"] is not None for one in freezer.current()] == [True]
    assert node.ve is not None
    (adjust,) = node.adjust
    assert "left frozen" in adjust(node.ve).busy
    with pytest.raises(ConflictError, match="left frozen"):
        await freezer.freeze("ve101", "root", "", 60.0)
    ((_, kept),) = (await node.kept()).items()
    assert kept["marks"] == ["inner"]
