"""Killing and thawing are one step: a kill alone would wait for ever on a frozen filesystem."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.process import ProcessError
from fswatchd.repair import clone_repair, ve_control
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.freeze import LEFT_FROZEN
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import Next, StepEnded, refuse
from tests.unit import builders
from tests.unit.repair.test_format import MOUNTED
from tests.unit.repair.test_outage import VE
from tests.unit.repair.test_stale import Context


class Freeze:
    """A freeze that tells what happens to it; `still` is whether it holds when it is asked."""

    def __init__(self, happened: list[str], *, still: bool) -> None:
        self._happened = happened
        self._still = still
        self.held = True

    async def still_held(self) -> bool:
        return self._still

    async def seal(self) -> bool:
        self._happened.append("seal")
        return True

    async def thaw(self) -> bool:
        self._happened.append("thaw")
        self.held = False
        return True

    async def release(self) -> None:
        if self.held:
            await self.thaw()


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    async def cleaned(*_: object) -> str:
        found.append("clean up")
        return "killed"

    async def released(*_: object) -> None:
        found.append("wait")

    monkeypatch.setattr(clone_repair.scope, "still_the_same", lambda *_: None)
    monkeypatch.setattr(ve_control, "send_kill", lambda _: found.append("kill"))
    monkeypatch.setattr(ve_control, "clean_up_after_kill", cleaned)
    monkeypatch.setattr(ve_control, "wait_released", released)
    return found


def repair(happened: list[str], tmp_path: Any, *, still: bool = True) -> tuple[CloneRepair, Target]:
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"1")
    context: Any = Context()

    async def about_to_stop(_: object) -> None:
        happened.append("asked")

    context.about_to_stop = about_to_stop
    found = CloneRepair(context, SimpleNamespace())  # type: ignore[arg-type]
    found._freeze = Freeze(happened, still=still)  # type: ignore[assignment]
    image = ImageFile.at(str(path))
    return found, Target(filesystem=builders.filesystem(), ve=VE, superblock=MOUNTED, image=image)


async def test_the_thaw_follows_the_kill_at_once_and_only_then_is_waited(
    happened: list[str], tmp_path: Any
) -> None:
    found, target = repair(happened, tmp_path)
    await found._stop(target)
    assert happened == ["asked", "kill", "seal", "thaw", "clean up", "wait"]


async def test_where_the_kill_is_refused_it_is_thawed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, happened: list[str], tmp_path: Any
) -> None:
    def refused(_: object) -> None:
        raise ve_control.WrongTargetError("processes of the node itself pass for its own")

    async def given_back(*_: object) -> str:
        return "it runs"

    monkeypatch.setattr(ve_control, "send_kill", refused)
    monkeypatch.setattr(clone_repair.Outage, "_give_back", given_back)
    found, target = repair(happened, tmp_path)
    with pytest.raises(StepEnded, match="pass for its own"):
        async with found:
            await found._stop(target)
    assert happened == ["asked", "thaw"]


async def test_what_somebody_else_has_thawed_is_no_reason_to_kill(
    happened: list[str], tmp_path: Any
) -> None:
    found, target = repair(happened, tmp_path, still=False)
    with pytest.raises(StepEnded, match="stale"):
        await found._stop(target)
    assert happened == []


async def not_curable(found: CloneRepair) -> None:
    async with found:
        raise refuse("not curable", "damage is left")


@pytest.mark.parametrize("begun", [True, False])
async def test_what_cannot_be_thawed_keeps_neither_the_ve_nor_the_clone_from_their_end(
    monkeypatch: pytest.MonkeyPatch, happened: list[str], tmp_path: Any, *, begun: bool
) -> None:
    async def stuck() -> None:
        raise refuse(LEFT_FROZEN, "loop3 may still be frozen", Next.OPERATOR)

    async def given_back(*_: object) -> str:
        return "ve101 is left stopped"

    notes: list[str] = []
    found, target = repair(happened, tmp_path)
    monkeypatch.setattr(found._freeze, "release", stuck)
    monkeypatch.setattr(found._context, "note", notes.append)
    monkeypatch.setattr(clone_repair.Outage, "_give_back", given_back)
    found._in(target)
    (tmp_path / "clone").write_bytes(b"1")
    found._clone = ImageFile.at(str(tmp_path / "clone"))
    if begun:
        found._outage.begin(target.ve, None, target.image)
    with pytest.raises(StepEnded) as caught:
        await not_curable(found)
    ended = caught.value.result
    assert (ended.next, ended.result) == (Next.OPERATOR, LEFT_FROZEN)
    assert "may still be frozen" in ended.detail
    assert ("left stopped" in ended.detail) is begun
    assert notes == ["damage is left"]
    assert not (tmp_path / "clone").exists()


async def test_a_clone_that_cannot_be_deleted_keeps_no_ve_from_being_given_back(
    monkeypatch: pytest.MonkeyPatch, happened: list[str], tmp_path: Any
) -> None:
    async def fails(*_: object) -> None:
        raise ProcessError("lvremove cannot be run")

    async def given_back(*_: object) -> str:
        return "ve101 runs again"

    found, target = repair(happened, tmp_path)
    monkeypatch.setattr(found, "_drop_clone", fails)
    monkeypatch.setattr(clone_repair.Outage, "_give_back", given_back)
    found._outage.begin(target.ve, None, target.image)
    with pytest.raises(StepEnded, match="damage is left; ve101 runs again"):
        await not_curable(found)
