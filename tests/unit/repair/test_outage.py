"""A VE that we stopped: given back after an error, and never on what is still held."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, Ve, VeId
from fswatchd.repair import ve_control
from fswatchd.repair.outage import Outage
from fswatchd.repair.scope import image_file
from fswatchd.steps import ActionSettings, Next, StepEnded, refuse
from fswatchd.store.store import StoreError
from tests.unit.inventory.test_lookup import INSIDE, superblock

VE = Ve(
    ve_id=VeId("declared:ve101"),
    platform="declared",
    native_id="ve101",
    name="ve101",
    state=VeState.STOPPED,
    commands=Commands(start=("start-ve101",)),
)


class Context:
    """As much of an ActionContext as an outage uses."""

    def __init__(self) -> None:
        self.settings = ActionSettings(start_timeout_s=0.1)
        self.notes: list[str] = []

    async def lock_ve(self, ve: Any) -> Any:
        return ve

    async def about_to_start(self, _: object) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


class World:
    """What holds the image, and whether the VE was started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holder: str | None = None
        self.started = 0
        monkeypatch.setattr(ve_control, "wait_released", self._wait_released)
        monkeypatch.setattr(ve_control, "wait_running", self._wait_running)
        monkeypatch.setattr(ve_control, "start", self._start)

    async def _wait_released(self, *_: object) -> str | None:
        return self.holder

    async def _wait_running(self, *_: object) -> Ve | None:
        return VE if self.started else None

    async def _start(self, *_: object) -> str:
        self.started += 1
        return "start-ve101: exit code 0"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def ending_with(error: BaseException, image: Any = None, *, begun: bool = True) -> Context:
    context = Context()
    async with Outage(context) as outage:  # type: ignore[arg-type]
        if begun:
            outage.begin(VE, None, image)
        raise error
    return context


@pytest.mark.parametrize(
    "error", [StoreError("disk full"), OSError(5, "EIO"), refuse("not curable", "damage is left")]
)
async def test_after_an_error_the_ve_is_given_back_and_a_person_told(
    world: World, error: Exception
) -> None:
    with pytest.raises(StepEnded) as caught:
        await ending_with(error)
    assert world.started == 1
    assert caught.value.result.next is Next.OPERATOR
    assert caught.value.result.detail.startswith(str(error))
    assert "runs again" in caught.value.result.detail


async def test_what_is_still_held_is_not_started(world: World) -> None:
    world.holder = "/dev/loop7 is still attached to /vz/ve101.raw"
    with pytest.raises(StepEnded, match="left stopped, /dev/loop7") as caught:
        await ending_with(OSError(5, "EIO"))
    assert world.started == 0
    assert caught.value.result.next is Next.OPERATOR


async def test_another_file_under_the_images_name_is_not_started(world: World, tmp_path) -> None:
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"1")
    image = image_file(str(path))
    os.rename(path, tmp_path / "aside")
    path.write_bytes(b"2")
    with pytest.raises(StepEnded, match="is not the image it had"):
        await ending_with(OSError(5, "EIO"), image)
    assert world.started == 0


async def test_a_ve_that_was_not_stopped_by_us_is_let_alone(world: World) -> None:
    with pytest.raises(StoreError):
        await ending_with(StoreError("disk full"), begun=False)
    assert world.started == 0


async def test_the_end_of_the_daemon_goes_on_as_what_it_is(world: World) -> None:
    with pytest.raises(asyncio.CancelledError):
        await ending_with(asyncio.CancelledError())
    assert world.started == 1


async def test_without_an_error_nothing_is_started(world: World) -> None:
    context = Context()
    async with Outage(context) as outage:  # type: ignore[arg-type]
        outage.begin(VE, None, None)
    assert world.started == 0


async def test_a_start_asks_once_more_whether_the_image_is_attached(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"1")
    monkeypatch.setattr(ve_control.loop, "holders", lambda *_: ["/dev/loop7"])
    monkeypatch.setattr(ve_control, "_VOLUMES_TIMEOUT_S", 0.1)
    story = await ve_control.start(VE, ActionSettings(), image_file(str(path)))
    assert story.startswith("not started: /dev/loop7")


async def test_on_another_file_than_the_proven_one_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """Somebody has put another one there: it may be anything."""
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"proven")
    image = image_file(str(path))
    other = tmp_path / "other"
    other.write_bytes(b"another")
    os.rename(other, path)
    started: list[object] = []

    async def command(*argv: object, **_: object) -> str:
        started.append(argv)
        return ""

    monkeypatch.setattr(ve_control, "_command", command)
    story = await ve_control.start(VE, ActionSettings(), image)
    assert story.startswith(f"not started: {path} is another volume")
    assert started == []
    await ve_control.start(VE, ActionSettings(), image_file(str(path)))
    assert len(started) == 1


@pytest.mark.parametrize(("devno", "held"), [(Devno(7, 1), True), (Devno(0, 40), False)])
def test_of_a_btrfs_its_devices_name_says_nothing_once_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, devno: Devno, *, held: bool
) -> None:
    """loop1 may have an ext4 of somebody else's by then, and a btrfs has no number of its own."""
    seen = replace(superblock(1, (INSIDE, "/")), devno=devno, device="loop1", disk_sequence=None)
    monkeypatch.setattr(ve_control.block, "disk_sequence", lambda _: None)
    monkeypatch.setattr(ve_control.fs, "has_superblock", lambda _: True)
    image: Any = SimpleNamespace(holder=lambda: None)
    assert (ve_control._holder(seen, image) is not None) is held
