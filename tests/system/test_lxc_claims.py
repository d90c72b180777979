"""Anybody can listen where an LXC monitor would, and say anything: what is believed of it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd import process
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import lxc, lxc_config
from tests.system.conftest import wait_until

Claim = Callable[[Path, str], None]


@pytest.fixture
def claim() -> Iterator[Claim]:
    """Listen on a monitor's socket."""
    held: list[socket.socket] = []

    def listen(path: Path, name: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        held.append(sock)
        sock.bind(f"\0{path}/{name}/command")
        sock.listen()

    yield listen
    for sock in held:
        sock.close()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """What whoever listens answers when lxc-info asks for the init."""

    def say(pid: int) -> None:
        async def run(argv: tuple[str, ...], **_: object) -> process.Completed:
            return process.Completed(argv=argv, returncode=0, output=f"{pid}\n", duration_s=0)

        monkeypatch.setattr(process, "run", run)

    return say


@pytest.fixture
def first_process(work: Path) -> Iterator[Callable[[str], int]]:
    """The first process of a PID and mount namespace of its own, in a cgroup of the test's."""
    started: list[subprocess.Popen[bytes]] = []

    def start(group: str) -> int:
        directory = cgroup.hierarchies()[0] / group
        directory.mkdir(exist_ok=True)
        line = f"echo $$ > {directory}/cgroup.procs; exec unshare -mpf --kill-child sleep 1000"
        child = subprocess.Popen(["sh", "-c", line])
        started.append(child)

        def inits() -> list[int]:
            found = [p for p in cgroup.pids(f"/{group}") if proc.command_name(p) == "sleep"]
            return [p for p in found if proc.is_container_init(p)]

        return int(wait_until(inits, what="the first process")[0])

    yield start
    for child in started:
        child.kill()
        child.wait()
    for directory in cgroup.hierarchies()[0].glob(f"*{work.name}*"):
        wait_until(lambda name=directory.name: not cgroup.pids(f"/{name}"), what="its end")
        with suppress(OSError):
            directory.rmdir()


def container(path: Path, name: str, *lines: str) -> None:
    (path / name).mkdir(parents=True)
    (path / name / "config").write_text("".join(f"{line}\n" for line in lines))


async def test_who_is_first_in_the_containers_cgroup_is_its_init(
    work: Path, claim: Claim, first_process
) -> None:
    name = f"{work.name}-a"
    container(work, name)
    claim(work, name)
    pid = first_process(f"lxc.payload.{name}")
    (ve,) = await lxc.LxcPlatform(str(work)).list_ves()
    assert (ve.init_pid, ve.cgroup) == (pid, f"/lxc.payload.{name}")
    assert ve.namespace == proc.mount_namespace_inode(pid)


async def test_a_cgroup_that_the_configuration_names(
    work: Path, claim: Claim, answer, first_process
) -> None:
    group = f"{work.name}-101"
    container(work, "ve101", f"lxc.cgroup.dir.container = {group}")
    claim(work, "ve101")
    pid = first_process(group)
    answer(pid)
    (ve,) = await lxc.LxcPlatform(str(work)).list_ves()
    assert (ve.init_pid, ve.cgroup) == (pid, f"/{group}")


async def test_a_process_that_is_no_containers_init_is_not_believed(
    work: Path, claim: Claim, answer
) -> None:
    container(work, "ve101")
    claim(work, "ve101")
    for pid in (1, os.getpid(), 2):
        answer(pid)
        with pytest.raises(PlatformError, match=f"names process {pid}") as caught:
            await lxc.LxcPlatform(str(work)).list_ves()
        (ve,) = caught.value.partial
        assert (ve.state, ve.init_pid, ve.namespace, ve.cgroup) == ("stopped", None, None, None)


async def test_the_init_of_another_cgroup_is_not_believed(
    work: Path, claim: Claim, answer, first_process
) -> None:
    container(work, "ve101")
    claim(work, "ve101")
    answer(first_process(f"{work.name}-elsewhere"))
    with pytest.raises(PlatformError) as caught:
        await lxc.LxcPlatform(str(work)).list_ves()
    assert [ve.init_pid for ve in caught.value.partial] == [None]


async def test_a_process_that_two_containers_claim_belongs_to_none(
    work: Path, claim: Claim, answer, first_process
) -> None:
    name = f"{work.name}-a"
    for path in (work / "one", work / "two"):
        container(path, name)
        claim(path, name)
    answer(first_process(f"lxc.payload.{name}"))
    with pytest.raises(PlatformError, match="claimed more than once") as caught:
        await lxc.LxcPlatform(str(work / "one")).list_ves()
    assert [ve.init_pid for ve in caught.value.partial] == [None, None]


async def test_what_is_not_configured_is_no_container(work: Path, claim: Claim) -> None:
    claim(work, "invented")
    assert await lxc.LxcPlatform(str(work)).list_ves() == []


@pytest.mark.parametrize("how", ["owner", "writable", "parent", "link", "proc", "dots"])
async def test_a_path_that_others_can_write_is_not_looked_at(
    work: Path, claim: Claim, how: str
) -> None:
    path = work / "parent" / "lxc"
    container(path, "ve101")
    assert lxc_config.only_root_writes(str(path))
    if how == "owner":
        os.chown(path, 1000, 0)
    elif how == "writable":
        path.chmod(0o1777)
    elif how == "parent":
        path.parent.chmod(0o777)
    elif how == "link":
        (work / "link").symlink_to(path)
        os.chown(work / "link", 1000, 1000, follow_symlinks=False)
        path = work / "link"
    elif how == "proc":
        path = Path(f"/proc/{os.getpid()}/root{path}")
    text = f"{work}/parent/../parent/lxc" if how == "dots" else str(path)
    claim(Path(text) if how != "dots" else work / "parent" / ".." / "parent" / "lxc", "ve101")
    assert not lxc_config.only_root_writes(text)
    assert await lxc.LxcPlatform(str(work / "default")).list_ves() == []
