"""A platform that does not answer yet says nothing about its VEs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.inventory.view import NodeView
from fswatchd.repair import offline, owner, put_back, resume, rollback, ve_control
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.volume import ImageFile
from fswatchd.rules.model import FsckStep
from fswatchd.steps import Next, StepEnded, StepResult
from tests.unit import builders
from tests.unit.repair import test_rollback, test_stale
from tests.unit.repair.test_outage import VE

ID = builders.incident().incident_id
STEP = FsckStep(do="fsck")


class Inventory:
    """Of a node whose platform says nothing, or no longer knows the VE, for so many looks."""

    def __init__(self, looks: int, problem: str | None = "it does not answer") -> None:
        self.view = NodeView()
        self.problems = {VE.platform: problem} if problem else {}
        self.looks = looks

    async def refresh(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            self.view, self.problems = NodeView(ves={VE.ve_id: VE}), {}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_PAUSE_S", 0.0)
    monkeypatch.setattr(owner, "_GONE_S", 0.0)


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    (tmp_path / "ve101.raw").write_bytes(b"before")
    return ImageFile.at(str(tmp_path / "ve101.raw"))


def cut_off(inventory: Inventory, **journal: Any) -> Any:
    context: Any = test_stale.Context()
    context.inventory = inventory
    context.progress = lambda *_: None
    context.record.journal = {"ve": str(VE.ve_id), **journal}
    return context


async def ending(plan: Any) -> StepResult:
    with pytest.raises(StepEnded) as ended:
        await plan
    return ended.value.result


@pytest.mark.parametrize("problem", ["it does not answer", None])
async def test_a_repair_that_has_stopped_its_ve_waits_for_the_platform(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, problem: str | None
) -> None:
    """Some say nothing at all before they have answered for the first time."""
    monkeypatch.setattr(owner, "_GONE_S", 60.0)

    async def released(*_: object) -> None: ...

    monkeypatch.setattr(ve_control, "is_running", lambda _: False)
    monkeypatch.setattr(ve_control, "dead_are_gone", released)
    monkeypatch.setattr(ve_control, "wait_released", released)
    context = cut_off(Inventory(3, problem), image=image.describe(), stopping=True)
    repair = test_stale.Repair(context, lambda _: None)
    assert await resume.resume(repair, context) == "started"  # type: ignore[comparison-overlap]


async def test_a_repair_in_place_waits_for_the_platform(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile
) -> None:
    async def again(*_: object, **__: object) -> str:
        return "checked again"

    async def released(*_: object) -> None: ...

    monkeypatch.setattr(ve_control, "is_running", lambda _: False)
    monkeypatch.setattr(ve_control, "wait_released", released)
    monkeypatch.setattr(offline, "repair_stopped", again)
    context = cut_off(Inventory(3), image=image.describe(), stopping=True)
    assert await offline.recover(context, STEP) == "checked again"  # type: ignore[comparison-overlap]


async def test_a_rollback_waits_for_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(put_back._Way, "prepare", _reached)
    context: Any = test_rollback.Context(tmp_path)
    context.inventory = Inventory(3)
    with pytest.raises(ReachedError):
        await rollback.run(context)


class ReachedError(Exception):
    """The VE was found."""


async def _reached(*_: object) -> None:
    raise ReachedError


@pytest.mark.parametrize("problem", [None, "it does not answer"])
@pytest.mark.parametrize("name", ["", ".damaged-x", ".fswatchd-clone-x"])
async def test_who_has_to_go_on_with_a_repair_is_told_where_the_original_is(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, name: str, problem: str | None
) -> None:
    monkeypatch.setattr(owner, "_PATIENCE_S", -1.0)
    stands = Path(image.path).rename(image.path + name)
    clone = SimpleNamespace(path=image.path + ".fswatchd-clone-x", inode=0, birth_ns=0)
    context = cut_off(
        Inventory(99, problem),
        image=image.describe(),
        clone={**image.describe(), "path": clone.path, "inode": 0, "birth_ns": 0},
        keeping=f"{image.path}.damaged-x",
        stopping=True,
        swapping=bool(name),
    )
    found = await ending(resume.resume(CloneRepair(context, STEP), context))
    assert (found.next, found.result) == (Next.OPERATOR, "stopped half-way")
    assert found.detail.endswith(f" is {stands}")
    assert str(VE.ve_id) in found.detail
    assert ("is gone" in found.detail) is (problem is None)
    assert (problem or "is gone") in found.detail


async def test_who_has_to_go_on_in_place_is_told_where_the_volume_is(image: ImageFile) -> None:
    aside = Path(image.path).rename(f"{image.path}.under-repair-{ID}")
    context = cut_off(Inventory(99, None), image=image.describe(), stopping=True, writing=True)
    found = await ending(offline.recover(context, STEP))
    assert (found.next, found.result) == (Next.OPERATOR, "stopped half-way")
    assert found.detail.endswith(f" is {aside}")


async def test_what_has_not_begun_is_only_cancelled(image: ImageFile) -> None:
    context = cut_off(Inventory(99, None), image=image.describe(), stopping=False)
    found = await ending(resume.resume(CloneRepair(context, STEP), context))
    assert found.next is Next.CANCELLED


@pytest.mark.parametrize("half_way", [True, False])
async def test_what_is_only_remembered_of_a_ve_is_waited_for_in_the_middle_of_a_plan(
    half_way: bool,
) -> None:
    """A platform lists it as busy while it does not answer: to give up would leave the VE down."""
    inventory = Inventory(3)
    remembered = replace(VE, busy="LXC: /var/lib/lxc does not answer")
    inventory.view = NodeView(ves={VE.ve_id: remembered})
    context: Any = SimpleNamespace(inventory=inventory, progress=lambda *_: None)
    found = await owner.find(context, VE.ve_id, half_way=half_way, left="here")
    assert found == (VE if half_way else remembered)


async def test_a_ve_that_others_are_busy_with_is_not_waited_for() -> None:
    inventory = Inventory(3, problem=None)
    backup = replace(VE, busy="Proxmox: lock: backup")
    inventory.view = NodeView(ves={VE.ve_id: backup})
    context: Any = SimpleNamespace(inventory=inventory, progress=lambda *_: None)
    assert await owner.find(context, VE.ve_id, half_way=True, left="here") == backup
