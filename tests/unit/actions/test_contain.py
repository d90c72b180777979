"""While the journal is aborted nothing of the VE runs, and afterwards it does."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from fswatchd.actions import contain
from fswatchd.repair import ve_freeze
from fswatchd.repair.condition import Condition
from fswatchd.repair.ve_freeze import HoldError
from fswatchd.rules.model import ContainStep
from fswatchd.steps import Next, StepResult

STEP = ContainStep(do="contain")


class Node:
    """A VE on an ext4, and what happens to it in order."""

    def __init__(self, monkeypatch, *, frozen: bool = False) -> None:
        self.happened: list[str] = []
        self.hold_fails = self.abort_fails = False
        ve = SimpleNamespace(
            ve_id="lxc:ve101",
            cgroup="/ve101",
            guest=False,
            commands=SimpleNamespace(freeze=(), thaw=()),
        )
        superblock = SimpleNamespace(fstype="ext4", devno="7:0", device="loop0")
        node = self

        class Tasks:
            async def hold(self, ve: Any, deadline_s: float) -> str:
                assert deadline_s > contain._SYNC_TIMEOUT_S
                if node.hold_fails:
                    raise HoldError("it did not freeze")
                node.happened.append("hold")
                return "cgroup"

            async def thaw(self) -> bool:
                node.happened.append("thaw")
                return True

        async def resolve(_context: Any) -> Any:
            return SimpleNamespace(superblock=superblock, ve=ve)

        async def writable(*_: Any) -> Condition:
            return Condition.WRITABLE

        def abort(_mount: int) -> None:
            if self.abort_fails:
                raise OSError(5, "Input/output error")
            self.happened.append("abort")

        monkeypatch.setattr(contain.scope, "resolve", resolve)
        monkeypatch.setattr(contain.condition, "of", writable)
        monkeypatch.setattr(ve_freeze, "TaskFreeze", Tasks)
        monkeypatch.setattr(ve_freeze.cgroup, "is_frozen", lambda _: frozen)
        monkeypatch.setattr(contain, "_sync", lambda _: self.happened.append("sync"))
        monkeypatch.setattr(contain.fs, "abort", abort)

    @asynccontextmanager
    async def opened(self, _superblock: Any):
        yield 0

    async def contain(self) -> StepResult:
        async def journal(**facts: Any) -> None:
            if "frozen_cgroup" in facts:
                self.happened.append("journal" if facts["frozen_cgroup"] else "forgotten")

        context = SimpleNamespace(inventory=self, journal=journal, reached=lambda _: None)
        return await contain.ContainAction().run(cast("Any", context), STEP)


async def test_tasks_are_held_from_before_the_sync_until_after_the_abort(monkeypatch) -> None:
    node = Node(monkeypatch)
    result = await node.contain()
    assert result.result == "contained"
    assert node.happened == ["journal", "hold", "sync", "abort", "thaw", "forgotten"]


async def test_tasks_that_cannot_be_held_are_no_reason_to_abort(monkeypatch) -> None:
    node = Node(monkeypatch)
    node.hold_fails = True
    result = await node.contain()
    assert (result.next, result.result) == (Next.FAILED, "not contained")
    assert node.happened == ["journal"]


async def test_they_run_again_also_when_the_abort_fails(monkeypatch) -> None:
    node = Node(monkeypatch)
    node.abort_fails = True
    result = await node.contain()
    assert result.next is Next.FAILED
    assert node.happened == ["journal", "hold", "sync", "thaw", "forgotten"]


async def test_what_an_earlier_step_has_frozen_stays_frozen(monkeypatch) -> None:
    node = Node(monkeypatch, frozen=True)
    await node.contain()
    assert node.happened == ["sync", "abort"]
