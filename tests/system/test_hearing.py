"""Canaries, deafness and stalls, on the real kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from fswatchd.engine.canary import CanaryFilesystem
from fswatchd.engine.hearing import Hearing
from fswatchd.events import FsEvent, Lost, SourceState
from fswatchd.kernlog import grammar
from fswatchd.sources.fanotify import FanotifySource
from fswatchd.sources.kmsg import KmsgSource
from fswatchd.sources.state import StateSource
from fswatchd.sources.uevent import UeventSource
from tests.system import rules
from tests.system.conftest import fswatch, wait_until

PROVED = ("fanotify", "kmsg", "state", "uevent")


class Nothing:
    """A cursor and a memory that remember nothing."""

    def load(self, *_: object) -> None:
        return None

    def save(self, *_: object) -> None:
        pass


class NoMounts:
    """What a filesystem that is mounted nowhere answers."""

    def current_options(self, _: object) -> None:
        return None

    def at_once(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def root_error(self, _: object) -> int:
        return 0

    async def btrfs_error(self, _: object) -> int:
        return 0


class Ear:
    """The sink, and what the daemon does with canaries."""

    def __init__(self) -> None:
        self.events: list[FsEvent] = []
        self.losses: list[Lost] = []
        self.hearing: Hearing | None = None

    def event(self, event: FsEvent) -> None:
        if event.devno is not None and event.devno == self.hearing.devno:
            self.hearing.heard(event.source, None)
        else:
            self.events.append(event)

    def lost(self, lost: Lost) -> None:
        self.losses.append(lost)

    def canary(self, source: str, token: str) -> None:
        self.hearing.heard(source, token)

    def deaf(self) -> list[str]:
        """The sources that did not hear a canary."""
        return [lost.source for lost in self.losses if "canary" in lost.reason]


class Scene:
    """The real sources, minded by a `Hearing` that is impatient."""

    def __init__(self) -> None:
        self.ear = Ear()
        self.sources = {
            "fanotify": FanotifySource(self.ear, lambda _: ()),
            "kmsg": KmsgSource(self.ear, grammar.shipped(), Nothing()),
            "state": StateSource(self.ear, NoMounts(), Nothing()),
            "uevent": UeventSource(self.ear, lambda _: None, lambda: None),
        }
        self.reattached = 0
        self.hearing = Hearing(self.sources, self.ear, 0.5, self._reattach, answer_s=3.0)
        self.ear.hearing = self.hearing

    async def _reattach(self) -> None:
        self.reattached += 1

    def state(self, name: str) -> SourceState:
        return self.sources[name].status.state

    async def until(self, question, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not question():
                await asyncio.sleep(0.02)

    async def found_deaf(self, name: str) -> None:
        """Until the canary has shown that this source, and no other, does not hear."""
        await self.until(self.ear.deaf)
        assert set(self.ear.deaf()) == {name}

    async def proved(self, *names: str) -> None:
        since = time.time_ns()
        await self.until(
            lambda: all((self.sources[n].status.proven_ns or 0) > since for n in names)
        )


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    for source in scene.sources.values():
        await source.start()
    minding = asyncio.create_task(scene.hearing.run())
    yield scene
    minding.cancel()
    await asyncio.gather(minding, return_exceptions=True)
    for source in scene.sources.values():
        await source.stop()


async def test_every_source_hears_the_canary_and_nobody_else_does(scene: Scene) -> None:
    await scene.proved(*PROVED)
    device = scene.hearing._filesystem.superblock.device
    await scene.proved(*PROVED)
    assert [event for event in scene.ear.events if event.device == device] == []
    assert scene.ear.deaf() == []
    assert f"/dev/{device} " not in Path("/proc/self/mountinfo").read_text()
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert f"EXT4-fs error (device {device})" not in log[log.rindex(f"({device}): mounted") :]


async def test_every_group_of_fanotify_has_to_answer(scene: Scene) -> None:
    await scene.proved("fanotify")
    source = scene.sources["fanotify"]
    source._open_group()
    await scene.proved("fanotify")
    asyncio.get_running_loop().remove_reader(source._groups[1].fd)
    await scene.found_deaf("fanotify")


@pytest.mark.parametrize("name", ["fanotify", "kmsg", "uevent"])
async def test_a_reader_that_is_never_called_again_is_deaf_then_started_again(
    scene: Scene, name: str
) -> None:
    await scene.proved(*PROVED)
    source = scene.sources[name]
    fd = {
        "fanotify": lambda: source._groups[0].fd,
        "kmsg": lambda: source._fd,
        "uevent": lambda: source._socket,
    }[name]()
    asyncio.get_running_loop().remove_reader(fd)
    await scene.found_deaf(name)
    since, until, _ = source.status.blind[-1]
    assert since < until
    await scene.until(lambda: scene.state(name) is SourceState.OK)
    assert scene.reattached
    others = {other for other in PROVED if other != name}
    assert all(scene.sources[other].status.blind == [] for other in others)


async def test_a_reader_whose_descriptor_was_closed_is_started_again(scene: Scene) -> None:
    await scene.proved("kmsg")
    source = scene.sources["kmsg"]
    os.close(source._fd)
    # epoll forgets a closed descriptor: nobody is told, but for the canary.
    await scene.found_deaf("kmsg")
    await scene.proved("kmsg")
    assert scene.state("kmsg") is SourceState.OK


async def test_a_read_that_fails_makes_a_source_blind_and_it_is_started_again(
    scene: Scene, monkeypatch
) -> None:
    await scene.proved("fanotify")
    source = scene.sources["fanotify"]
    broken = source._groups[0].fd
    read = os.read

    def fails(fd: int, size: int) -> bytes:
        if fd == broken:
            raise OSError(5, "Input/output error")
        return read(fd, size)

    monkeypatch.setattr(os, "read", fails)
    await scene.until(lambda: scene.state("fanotify") is SourceState.BLIND)
    monkeypatch.undo()
    await scene.until(lambda: scene.state("fanotify") is SourceState.OK)
    assert any(lost.source == "fanotify" for lost in scene.ear.losses)


async def test_the_canary_leaves_nothing_behind() -> None:
    canary = await CanaryFilesystem.make()
    device = canary.superblock.device
    assert Path(f"/sys/fs/ext4/{device}").is_dir()
    canary.close()
    gone = Path(f"/sys/fs/ext4/{device}/errors_count")
    backing = Path(f"/sys/block/{device}/loop/backing_file")
    async with asyncio.timeout(10):
        while gone.exists() or (backing.exists() and "fswatchd-canary" in backing.read_text()):
            await asyncio.sleep(0.01)


def proven(daemon) -> dict[str, str]:
    return {s["name"]: s["proven"] for s in daemon.status()["sources"] if s["proven"]}


def test_the_daemon_is_proved_and_tells_nobody(daemon) -> None:
    daemon.configure(mode="observe", rules=rules.TELL, daemon='canary = "1s"')
    daemon.start()
    wait_until(lambda: set(PROVED) <= proven(daemon).keys())
    first = proven(daemon)
    wait_until(lambda: all(proven(daemon)[name] > first[name] for name in PROVED))
    assert daemon.status()["canary"]["problem"] == ""
    told = daemon.client.get("/v1/events", since=0)["events"]
    assert not [event for event in told if "canary" in event["detail"]]


def test_a_stopped_daemon_knows_that_it_was_blind_and_reads_the_state_again(
    daemon, make_ve
) -> None:
    daemon.configure(mode="observe", rules=rules.TELL)
    daemon.start()
    ve = make_ve()
    ve.declare()
    ve.start()
    daemon.wait_until_known("ve101")
    os.kill(daemon.pid, signal.SIGSTOP)
    stopped = time.time()
    try:
        for _ in range(40):
            Path(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error").write_text("burst")
            time.sleep(0.1)  # a burst that lasts longer than what is taken for a busy node
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    incident = daemon.wait_for_incident("open")
    wait_until(lambda: {"fanotify", "state"} <= set(daemon.incidents("ve101")[0]["sources"]))
    wait_until(lambda: daemon.incidents("ve101")[0]["events"] == 40)
    assert daemon.incidents("ve101")[0]["id"] == incident["id"]
    blind = wait_until(lambda: next(s["blind"] for s in daemon.status()["sources"]))
    since = time.strptime(blind[-1]["since"][:19], "%Y-%m-%dT%H:%M:%S")
    assert abs(time.mktime(since) - time.timezone - stopped) < 3
    assert "blind " in fswatch(daemon, "status").stdout
