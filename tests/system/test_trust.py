"""A daemon that does not trust itself observes, says so, and goes on when that is over."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from fswatchd.engine.trust import Trust
from fswatchd.events import SourceState
from fswatchd.store.store import Store
from tests.system import rules
from tests.system.conftest import fswatch, wait_until
from tests.system.test_hearing import Scene, scene  # noqa: F401 - a fixture


def told(receiver) -> list[str]:
    prefix = "org.fswatchd.trust."
    kinds = [notice["type"] for _, notice in receiver.notices]
    return [kind.removeprefix(prefix) for kind in kinds if kind.startswith(prefix)]


def doubts(daemon) -> list[str]:
    return [one["what"] for one in daemon.status()["distrust"]]


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x")


def test_a_state_directory_without_room_is_no_trust_until_there_is_room(
    daemon, receiver, work
) -> None:
    (work / "secret").write_text(receiver.secret)
    (work / "state").mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", str(work / "state")]
    subprocess.run(small, check=True)
    daemon.configure(
        mode="auto", rules=rules.TELL, channels=rules.channel(receiver.url, work / "secret")
    )
    daemon.start()
    assert (daemon.status()["mode"], doubts(daemon)) == ("auto", [])
    fill(work / "state" / "rest")
    for number in range(3):
        fswatch(daemon, "disarm", "--label", f"n={number}", "--reason", "x" * 20_000)
    wait_until(lambda: doubts(daemon) == ["store"])
    status = daemon.status()
    assert (status["mode"], status["configured_mode"]) == ("observe", "auto")
    shown = fswatch(daemon, "status")
    assert shown.returncode == 2
    assert "does not trust itself: it only observes, not auto [FSW-DISTRUST]" in shown.stdout
    wait_until(lambda: told(receiver) == ["lost"])
    (work / "state" / "rest").unlink()
    wait_until(lambda: doubts(daemon) == [], 90)
    assert daemon.status()["mode"] == "auto"
    wait_until(lambda: told(receiver) == ["lost", "regained"])


def test_on_a_database_that_cannot_be_read_nothing_is_repaired_until_a_person_has_looked(
    daemon, make_ve, work
) -> None:
    daemon.configure(mode="auto", rules=rules.repair())
    (work / "state").mkdir()
    (work / "state" / "fswatchd.db").write_bytes(b"no database" * 1000)
    ve = make_ve(quiet=True)
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)
    trigger = Path(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error")
    trigger.write_text("test")
    incident = daemon.wait_for_incident("open")
    wait_until(lambda: "does not trust itself" in daemon.why(incident["id"]))
    assert daemon.incidents("ve101")[0]["steps"] == []
    assert list((work / "state").glob("fswatchd.db.unreadable-*"))
    assert doubts(daemon) == ["records"]
    armed = fswatch(daemon, "arm", "--node", "--reason", "looked", "--json")
    assert json.loads(armed.stdout)["accepted"]
    assert doubts(daemon) == []
    wait_until(lambda: daemon.incidents("ve101")[0]["steps"])
    assert "looked" in {one["reason"] for one in daemon.status()["operations"]}


async def test_a_source_that_dies_is_no_trust_until_a_canary_is_heard(
    scene: Scene,  # noqa: F811
    work: Path,
) -> None:
    store = Store(work / "trust.db")
    await store.open()
    kinds: list[str] = []
    trust = Trust(store, lambda kind, data: kinds.append(f"{kind} {data['what']}"))
    scene.hearing.on_deaf = trust.follow_sources
    await scene.proved("fanotify", "kmsg", "state", "uevent")
    assert trust.why == ""
    os.close(scene.sources["kmsg"]._fd)  # epoll forgets it: no error, no event, nothing any more
    await scene.until(lambda: trust.why)
    assert "kmsg does not hear" in trust.why
    await scene.until(lambda: not trust.why)
    assert scene.state("kmsg") is SourceState.OK
    assert kinds == ["lost source kmsg", "regained source kmsg"]
    # One that is switched off is no reason, nor is a canary that goes on.
    await scene.sources["uevent"].stop()
    scene.sources["uevent"].status.state = SourceState.OFF
    await scene.proved("fanotify", "kmsg", "state")
    await asyncio.sleep(0)
    assert len(kinds) == 2
    await store.close()


def test_without_descriptors_it_does_not_trust_itself_until_it_has_some(daemon) -> None:
    daemon.configure(mode="auto", rules=rules.TELL)
    daemon.start()
    usual = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: "the mounts of this node cannot be read" in daemon.log())
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, usual)
    wait_until(lambda: doubts(daemon) == [])
    assert daemon.status()["mode"] == "auto"
    assert "they were read again" in daemon.log()
