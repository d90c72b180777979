"""Podman's containers for real; a Docker daemon that is played, with cgroups that are real."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from fswatchd import process
from fswatchd.inventory.model import Ve
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import engines, incus
from fswatchd.platforms.engines import EnginePlatform
from tests.system.conftest import wait_until
from tests.system.test_lxc import Container
from tests.system.test_nspawn import Nspawn, containers, make_tree

__all__ = ["containers"]

podman_only = pytest.mark.skipif(
    shutil.which("podman") is None or shutil.which("runc") is None,
    reason="podman and runc are not installed",
)


class Podman:
    """Podman with a storage of its own, or the node's where a daemon has to find it."""

    def __init__(self, work: Path, *options: str) -> None:
        self.work = work
        self.options = ("--cgroup-manager", "cgroupfs", "--runtime", "runc", *options)
        self.started: list[str] = []

    def run(self, *arguments: str) -> str:
        argv = ["podman", *self.options, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, name: str, *options: str, overlay: bool = False) -> str:
        """Run a container that sleeps, on its tree or an overlay of it; returns its id."""
        tree = self.work / f"tree-{name}"
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = ("--ulimit", f"nofile={limit}:{limit}", "--ulimit", "nproc=1000:1000")
        more = ("--name", name, "--network", "none", "--stop-timeout", "1", *limits, *options)
        native_id = self.run(
            "run",
            "--detach",
            *more,
            "--rootfs",
            f"{make_tree(tree)}{':O' if overlay else ''}",
            "/bin/sleep",
            "1000",
        ).splitlines()[-1]
        self.started.append(native_id)
        return native_id

    def close(self) -> None:
        for native_id in self.started:
            self.run("rm", "--force", "--ignore", "--time", "0", native_id)


@pytest.fixture
def podman(work: Path) -> Iterator[Podman]:
    places = ("--root", str(work / "storage"), "--runroot", str(work / "run"))
    made = Podman(work, *places, "--storage-driver", "vfs", "--events-backend", "file")
    yield made
    made.close()


@pytest.fixture
async def driver(podman: Podman) -> AsyncIterator[EnginePlatform]:
    """The driver for it."""
    platform = engines.podman(*podman.options, storage=str(podman.work / "storage"))
    yield platform
    await platform.asked.close()


async def listed(platform: EnginePlatform, native_id: str) -> Ve | None:
    """As a second refresh sees it, when the engine has answered the first one."""
    await platform.list_ves()
    await platform.asked.settle()
    return next((ve for ve in await platform.list_ves() if ve.native_id == native_id), None)


@podman_only
async def test_a_container_is_known_by_its_cgroup_before_podman_is_asked(
    podman: Podman, driver
) -> None:
    native_id = podman.start("web", "--label", "tier=gold")
    platform = driver
    (ve,) = [ve for ve in await platform.list_ves() if ve.native_id == native_id]
    assert (ve.name, ve.state) == (native_id[:12], "running")
    assert ve.init_pid == int(podman.run("inspect", "--format", "{{.State.Pid}}", "web"))
    assert ve.init_started == proc.start_time(ve.init_pid)
    assert ve.namespace == proc.mount_namespace_inode(ve.init_pid)
    assert ve.cgroup is not None
    assert set(cgroup.pids(ve.cgroup)) == {ve.init_pid}


@podman_only
async def test_name_and_labels_come_with_podmans_answer(podman: Podman, driver) -> None:
    native_id = podman.start("web", "--label", "tier=gold")
    platform, told = driver, []
    platform.asked.changed = lambda: told.append(True)
    ve = await listed(platform, native_id)
    assert ve is not None
    assert (ve.ve_id, ve.name) == (f"podman:{native_id[:12]}", "web")
    assert (ve.labels["tier"], told) == ("gold", [True])
    assert ve.commands.start == ("podman", "start", native_id)


@podman_only
async def test_a_stop_is_seen_at_once_and_the_container_stays_known(podman: Podman, driver) -> None:
    native_id = podman.start("web")
    platform = driver
    await listed(platform, native_id)
    podman.run("stop", "--time", "0", "web")
    (ve,) = [ve for ve in await platform.list_ves() if ve.native_id == native_id]
    assert (ve.name, ve.state, ve.init_pid, ve.cgroup) == ("web", "stopped", None, None)
    podman.run("rm", "web")
    assert await listed(platform, native_id) is None


@podman_only
async def test_podman_is_asked_when_something_has_changed_and_not_else(
    podman: Podman, driver
) -> None:
    podman.start("web")
    platform = driver
    asked = 0
    ask = platform.asked._ask

    async def counted() -> engines.Containers:
        nonlocal asked
        asked += 1
        return await ask()

    platform.asked._ask = counted
    for _ in range(20):
        await platform.list_ves()
        await platform.asked.settle()
    assert asked == 1
    podman.run("rename", "web", "shop")
    for _ in range(20):
        found = await platform.list_ves()
        await platform.asked.settle()
    assert asked == 2
    assert "shop" in {ve.name for ve in found}


@podman_only
async def test_a_podman_that_hangs_holds_up_no_refresh(
    work: Path, podman: Podman, driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_id = podman.start("web")
    (work / "bin").mkdir()
    (work / "bin" / "podman").write_text("#!/bin/sh\nexec sleep 1000\n")
    (work / "bin" / "podman").chmod(0o755)
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", f"{work}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(engines, "_DEADLINE_S", 1.0)
    platform = driver
    before = time.monotonic()
    found = await platform.list_ves()
    took = time.monotonic() - before
    await platform.asked.settle()
    assert took < (time.monotonic() - before) / 2
    assert native_id in {ve.native_id for ve in found}
    with pytest.raises(PlatformError, match="did not end within") as caught:
        await platform.list_ves()
    assert native_id in {ve.native_id for ve in caught.value.partial}


@asynccontextmanager
async def docker_daemon(
    path: Path, listed: list[dict] | dict, volumes: list[dict] | None = None, status: str = "200 OK"
) -> AsyncIterator[list[str]]:
    """Answers on a socket as dockerd does to HTTP/1.0; yields what was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split(" ")[1])
        answer = {"Volumes": volumes, "Warnings": None} if "/volumes" in head else listed
        body = json.dumps(answer).encode() + b"\n"
        lines = f"HTTP/1.0 {status}\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n"
        writer.write(lines.encode() + b"Server: Docker/20.10.24 (linux)\r\n\r\n" + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield asked


@pytest.fixture
def docker_group() -> Iterator[Callable[[], str]]:
    """Cgroups as the cgroupfs driver of Docker makes them."""
    made: list[Path] = []

    def make() -> str:
        native_id = secrets.token_hex(32)
        made.append(cgroup.hierarchies()[0] / "docker" / native_id)
        made[-1].mkdir(parents=True)
        return native_id

    yield make
    for directory in made:
        cgroup.kill(f"/docker/{directory.name}")
        wait_until(lambda d=directory: not cgroup.pids(f"/docker/{d.name}"))
        directory.rmdir()
    with suppress(OSError):
        made[0].parent.rmdir()


def run_in(group: str) -> subprocess.Popen[bytes]:
    directory = cgroup.hierarchies()[0] / group.lstrip("/")
    line = f"echo $$ > {directory}/cgroup.procs; exec unshare -mpf --kill-child sleep 1000"
    child = subprocess.Popen(["sh", "-c", line])
    wait_until(lambda: any(proc.is_container_init(pid) for pid in cgroup.pids(group)))
    return child


async def test_docker_is_asked_through_its_socket(work: Path, docker_group) -> None:
    native_id, stopped = docker_group(), secrets.token_hex(32)
    child = run_in(f"/docker/{native_id}")
    listing = [
        {"Id": native_id, "Names": ["/web"], "Labels": {"tier": "gold"}, "Mounts": []},
        {"Id": stopped, "Names": ["/db"], "Labels": {}, "Mounts": []},
    ]
    platform = engines.docker(str(work / "docker.sock"), str(work))
    async with docker_daemon(work / "docker.sock", listing) as asked:
        ve = await listed(platform, native_id)
        other = await listed(platform, stopped)
    child.kill()
    child.wait()
    assert asked == ["/containers/json?all=1", "/volumes"]
    assert ve is not None
    assert other is not None
    assert (ve.name, ve.labels, ve.state) == ("web", {"tier": "gold"}, "running")
    assert ve.cgroup == f"/docker/{native_id}"
    assert proc.mount_namespace_inode("self") != ve.namespace
    assert (other.name, other.state, other.init_pid) == ("db", "stopped", None)


async def test_a_docker_that_is_down_hides_no_container(work: Path, docker_group) -> None:
    native_id = docker_group()
    child = run_in(f"/docker/{native_id}")
    platform = engines.docker(str(work / "docker.sock"), str(work))
    try:
        await platform.list_ves()
        await platform.asked.settle()
        with pytest.raises(PlatformError, match=r"docker\.sock") as caught:
            await platform.list_ves()
    finally:
        child.kill()
        child.wait()
    assert native_id in {ve.native_id for ve in caught.value.partial}


async def test_an_error_of_docker_is_told(work: Path) -> None:
    path = work / "docker.sock"
    async with docker_daemon(path, [], status="500 Internal Server Error"):
        with pytest.raises(PlatformError, match="500 Internal"):
            await engines.http_get(str(path), "/volumes", 5)


async def test_a_docker_that_never_answers(work: Path) -> None:
    path = work / "docker.sock"
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other side gives up
        writer.close()
        await writer.wait_closed()
        ended.set()

    async with await asyncio.start_unix_server(listen, path):
        with pytest.raises(PlatformError, match="does not answer"):
            await engines.http_get(str(path), "/volumes", 0.2)
        await ended.wait()


@podman_only
def test_one_status_shows_the_ves_of_all_platforms(
    daemon, work: Path, host: Path, make_ve, containers: Nspawn
) -> None:
    podman = Podman(work)  # the node's storage: there the daemon looks
    declared = make_ve("ve101")
    declared.declare()
    daemon.configure()
    daemon.start()
    declared.start()
    spawned = f"{work.name}-spawned"
    containers.start(spawned, "-D", str(make_tree(work / "spawned")))
    name = f"{work.name}-pod"
    lxc = Container(work, host, "lxc")
    try:
        lxc.start()
        podman.start(name, "--label", "tier=gold")
        started = ("ve101", spawned, name, lxc.name)
        daemon.wait_until_known(*started)
        ves = {ve["name"]: ve for ve in daemon.status()["ves"]}
        platforms = [ves[n]["platform"] for n in started]
        assert platforms == ["declared", "nspawn", "podman", "lxc"]
        assert {ves[n]["state"] for n in started} == {"running"}
        assert ves[name]["labels"] == {"tier": "gold"}
        assert len({ve["id"] for ve in daemon.status()["ves"]}) == len(daemon.status()["ves"])
    finally:
        lxc.destroy()
        podman.close()


async def test_incus_is_asked_through_its_socket(work: Path) -> None:
    name = work.name
    group = f"/lxc.payload.{name}"
    (cgroup.hierarchies()[0] / group.lstrip("/")).mkdir()
    child = run_in(group)
    (pid,) = [pid for pid in cgroup.pids(group) if proc.is_container_init(pid)]
    other = {"name": f"{name}-b", "type": "container", "state": {"pid": pid}}
    answer = {"metadata": [{"name": name, "type": "container", "state": {"pid": pid}}, other]}
    platform = incus.IncusPlatform("incus", ("incus", str(work / "unix.socket")))
    try:
        async with docker_daemon(work / "unix.socket", answer) as asked:
            await platform.list_ves()
            await platform.asked.settle()
            ve, wrong = await platform.list_ves()
    finally:
        child.kill()
        child.wait()
        wait_until(lambda: not cgroup.pids(group))
        (cgroup.hierarchies()[0] / group.lstrip("/")).rmdir()
    assert asked == ["/1.0/instances?recursion=2&all-projects=true"]
    assert (ve.init_pid, ve.cgroup, ve.state) == (pid, group, "running")
    # The API named the same process for another one, whose cgroup it is not in.
    assert (wrong.init_pid, wrong.state) == (None, "stopped")
