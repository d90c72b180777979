"""A volume that was taken out of a VE: whatever comes in between, it is given back or told of."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd import process
from fswatchd.inventory.model import Ve
from fswatchd.inventory.model import Volume as Declared
from fswatchd.repair import hot_volume, into_use, owner, resume, storage, ve_control, verify
from fswatchd.repair.outage import Outage
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings, Next, StepEnded, refuse
from fswatchd.store.store import StoreError
from tests.unit.repair.test_outage import VE as STOPPED
from tests.unit.repair.test_outage import Context

HELD = "/dev/loop0 is still attached"


async def nothing(*_: object, **__: object) -> None:
    """What is done elsewhere."""


class World:
    """A VE, and a volume of it that is `held` or not; what `attach` does is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        path = directory / "data.img"
        path.write_bytes(b"1")
        self.image = ImageFile.at(str(path))
        self.hot = Declared(
            image=str(path), mountpoint="/srv", detach=("out",), attach=("in", "again")
        )
        self.ve = replace(STOPPED, volumes=(self.hot,), init_pid=10, init_started=1)
        self.running: Ve | None = self.ve
        self.held: str | None = None
        self.ran: list[str] = []
        self.returncode = 0
        self.mounts = True
        monkeypatch.setattr(process, "run", self._run)
        monkeypatch.setattr(ve_control, "wait_running", self._wait_running)
        monkeypatch.setattr(ve_control, "is_running", lambda _: self.running is not None)
        monkeypatch.setattr(ve_control, "wait_released", self._wait_released)
        monkeypatch.setattr(ve_control, "start", self._start)
        monkeypatch.setattr(ImageFile, "held_by", lambda *_: self.held)

    async def _run(self, argv: Any, **_: object) -> process.Completed:
        self.ran.append(argv[0])
        self.held = HELD if argv[0] == "in" and self.mounts else self.held
        return process.Completed(
            argv=tuple(argv), returncode=self.returncode, output="", duration_s=0.1
        )

    async def _wait_running(self, *_: object) -> Ve | None:
        return self.running

    async def _wait_released(self, *_: object) -> str | None:
        return self.held

    async def _start(self, *_: object) -> str:
        self.ran.append("start")
        self.running = self.ve
        return "start: exit code 0"

    async def ends(self, *, dead: bool = False, ve_down: bool = False) -> str:
        """What is told where the state disk is full while the volume is out."""
        outage = Outage(Context())  # type: ignore[arg-type]
        outage.begin(self.ve, None, self.image, self.hot)
        if dead:
            outage.volume_is_dead()
        if ve_down:
            outage.ve_goes_down()
        with pytest.raises(StepEnded) as caught:
            await outage.__aexit__(StoreError, StoreError("disk full"), None)
        assert caught.value.result.next is Next.OPERATOR
        return caught.value.result.detail


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


async def test_after_an_error_it_is_put_back_into_its_ve(world: World) -> None:
    assert "runs, /srv with it" in await world.ends()
    assert world.ran == ["in"]


@pytest.mark.parametrize(("held", "told"), [(None, ", and has not mounted /srv"), (HELD, "runs")])
async def test_nothing_is_mounted_twice_in_a_ve_that_was_started_since(
    world: World, held: str | None, told: str
) -> None:
    world.running, world.held = replace(world.ve, init_pid=99, init_started=5), held
    assert (await world.ends()).endswith(told)
    assert world.ran == []


async def test_a_ve_that_had_to_be_stopped_after_all_is_started(world: World) -> None:
    world.running = None
    assert "runs again, and has not mounted /srv" in await world.ends(ve_down=True)
    assert world.ran == ["start"]


async def test_a_ve_that_somebody_else_has_stopped_is_left_so(world: World) -> None:
    world.running = None
    assert "nothing of this repair stopped it" in await world.ends()
    assert world.ran == []


async def test_an_attach_that_ends_well_and_mounts_nothing_is_not_believed(world: World) -> None:
    world.mounts = False
    assert "/srv is left out" in await world.ends()


async def test_a_filesystem_that_we_have_shut_down_is_not_said_to_be_well(world: World) -> None:
    world.held = HELD
    told = await world.ends(dead=True)
    assert "it was shut down: it gives errors until it is mounted anew" in told
    assert world.ran == []


async def test_what_cannot_be_woken_is_not_said_of_the_ve(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wake(*_: object) -> None:
        raise OSError(5, "vgs: cannot read metadata")

    monkeypatch.setattr(storage, "wake", wake)
    told = await world.ends()
    assert "declared:ve101 runs, and /srv could not be given back" in told


async def test_a_failed_attach_is_told_of(world: World) -> None:
    world.returncode = 1
    assert "/srv with it, but what uses it may not run: in again: exit code 1" in await world.ends()


def context_of(journal: dict[str, Any]) -> Any:
    async def note_down(**facts: Any) -> None:
        journal.update(facts)

    async def lock(ve: Ve) -> Ve:
        return ve

    return SimpleNamespace(
        record=SimpleNamespace(journal=journal),
        incident=SimpleNamespace(incident_id="20261123-abcde", filesystem=None),
        inventory=SimpleNamespace(view=None),
        settings=ActionSettings(),
        state=None,
        journal=note_down,
        lock_ve=lock,
        about_to_start=nothing,
        progress=lambda *_: None,
        reached=lambda _: None,
        filesystem_is_now=lambda _: None,
        note=lambda _: None,
    )


@pytest.mark.parametrize(
    ("returncode", "held", "facts", "ran", "then"),
    [
        (0, None, {}, ["in"], Next.CONTINUE),
        (1, None, {}, ["in"], Next.OPERATOR),
        (0, None, {"attaching": True}, [], Next.OPERATOR),
        (0, HELD, {}, [], Next.OPERATOR),
        (0, None, {"init": [9, 9]}, [], Next.CONTINUE),
        (0, None, {"ve_down": True}, [], Next.CONTINUE),
    ],
    ids=[
        "all well",
        "a service does not start",
        "cut off in the middle",
        "mounted by somebody else",
        "the VE was started anew",
        "the VE had to be stopped",
    ],
)
async def test_mounted_is_not_all_that_attach_is_for(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    returncode: int,
    held: str | None,
    facts: dict[str, Any],
    ran: list[str],
    then: Next,
) -> None:
    world.returncode, world.held = returncode, held
    journal = {
        "image": world.image.describe(),
        "clone": world.image.describe(),
        "kept": "/kept",
        "detached": world.hot.path,
        "init": [world.ve.init_pid, world.ve.init_started],
    } | facts
    context = context_of(journal)

    async def mounted(*_: object) -> object:
        return world.ve, SimpleNamespace()

    monkeypatch.setattr(into_use.scope, "require_volume", lambda _: world.image)
    monkeypatch.setattr(into_use.owner, "declares", lambda *_: True)
    monkeypatch.setattr(verify, "find_mounted", mounted)
    monkeypatch.setattr(verify, "healthy", nothing)
    target: Any = SimpleNamespace(ve=world.ve)
    ended = await into_use.start(context, Outage(context), target, keep_s=1.0, done="1 change")
    assert ended.next is then, ended.detail
    assert ended.undo is not None
    assert world.ran == ran


async def test_a_ve_that_was_stopped_while_its_volume_was_out_is_not_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.running = None
    file = world.image.describe()
    journal = {"image": file, "clone": file, "kept": "/kept", "detached": world.hot.path}
    context = context_of(journal)
    monkeypatch.setattr(into_use.scope, "require_volume", lambda _: world.image)
    monkeypatch.setattr(into_use.owner, "declares", lambda *_: True)
    target: Any = SimpleNamespace(ve=world.ve)
    ended = await into_use.start(context, Outage(context), target, keep_s=1.0, done="1 change")
    assert ended.next is Next.OPERATOR
    assert "which no command of this repair has done" in ended.detail
    assert world.ran == []


class Resumed:
    """A repair that is taken up, and what becomes of it."""

    def __init__(self, world: World, ending: StepEnded, *, comes_out: bool) -> None:
        self._world = world
        self._ending = ending
        self._comes_out = comes_out
        self.finished = False

    async def run(self) -> None:
        if self._comes_out:
            self._world.held = None
        raise self._ending

    def resume_outage(self, *_: object) -> None: ...

    async def finish(self, *_: object, **__: object) -> str:
        self.finished = True
        return "finished"


async def resumed(world: World, monkeypatch: pytest.MonkeyPatch, repair: Resumed) -> Any:
    async def find(*_: object, **__: object) -> Ve:
        return world.ve

    monkeypatch.setattr(owner, "find", find)
    monkeypatch.setattr(owner, "wait_seen", nothing)
    monkeypatch.setattr(ve_control, "dead_are_gone", nothing)
    world.held = HELD
    journal = {
        "image": world.image.describe(),
        "ve": world.ve.ve_id,
        "stopping": True,
        "detached": world.hot.path,
    }
    return await resume.resume(repair, context_of(journal))  # type: ignore[arg-type]


async def test_what_comes_out_only_after_the_daemon_was_killed_is_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = refuse("cancelled", "loop0 is no longer mounted", Next.CANCELLED)
    repair = Resumed(world, ending, comes_out=True)
    assert await resumed(world, monkeypatch, repair) == "finished"
    assert repair.finished


@pytest.mark.parametrize("then", [Next.CANCELLED, Next.WAIT, Next.OPERATOR])
async def test_what_was_begun_with_it_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch, then: Next
) -> None:
    repair = Resumed(world, refuse("disarmed", "disarmed by ann", then), comes_out=False)
    with pytest.raises(StepEnded, match="disarmed by ann") as caught:
        await resumed(world, monkeypatch, repair)
    assert caught.value.result.next is Next.OPERATOR
    assert not repair.finished


def test_a_ve_that_runs_without_it_is_still_the_one_of_the_volume(world: World) -> None:
    root = SimpleNamespace(
        device="loop0", backing=SimpleNamespace(image="/vz/root.raw", inode_key=None)
    )
    view: Any = SimpleNamespace(
        superblocks_of=lambda _: [root],
        superblocks={},
        image_owners={(world.image.devno, world.image.inode): world.ve.ve_id},
    )
    assert owner.why_another(view, world.ve, [world.image]) is None
    elsewhere = SimpleNamespace(
        device="loop1",
        devno=(7, 1),
        backing=SimpleNamespace(
            image=world.image.path, inode_key=(world.image.devno, world.image.inode)
        ),
    )
    view.superblocks = {(7, 1): elsewhere}
    view.users = {(7, 1): SimpleNamespace(ves=["lxc:other"])}
    assert "lxc:other" in (owner.why_another(view, world.ve, [world.image]) or "")
    view.superblocks = {}
    cold = replace(world.ve, volumes=(replace(world.hot, detach=(), attach=()),))
    assert "has not mounted" in (owner.why_another(view, cold, [world.image]) or "")


def test_a_volume_is_found_by_whichever_name_it_is_declared(world: World, tmp_path: Path) -> None:
    link = tmp_path / "link"
    os.symlink(world.image.path, link)
    ve = replace(world.ve, volumes=(replace(world.hot, image=str(link)),))
    assert hot_volume.of(ve, world.image) is not None
    other = tmp_path / "other.img"
    other.write_bytes(b"2")
    ve = replace(world.ve, volumes=(replace(world.hot, image=str(other)),))
    assert hot_volume.of(ve, world.image) is None
