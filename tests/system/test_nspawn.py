"""Real containers of systemd-nspawn, with and without a registration at machined."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import nspawn
from fswatchd.platforms.nspawn import NspawnPlatform
from tests.system.conftest import wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-nspawn") is None, reason="systemd-container is not installed"
)

RUN = Path("/run/systemd")


def make_tree(path: Path) -> Path:
    """The smallest tree that nspawn takes."""
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "run", "var", "root", "usr/bin"):
        (path / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin")
    for name in ("sh", "sleep", "ls", "touch"):
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc" / "os-release").write_text("ID=test\n")
    return path


class Nspawn:
    """Starts containers, and ends them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.started: list[subprocess.Popen[bytes]] = []
        self.groups: list[Path] = []

    def start(self, name: str, *options: str, group: str | None = None) -> int:
        """Run one whose program sleeps; returns its first process. `group`: a cgroup to be in."""
        line = 'exec systemd-nspawn -q --register=no --keep-unit "$@" /bin/sleep 1000'
        if group is not None:
            directory = cgroup.hierarchies()[0] / group.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
            self.groups.append(directory)
            line = f"echo $$ > '{directory}/cgroup.procs'; {line}"
        argv = ["sh", "-c", line, "sh", f"--machine={name}", *options]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        self.started.append(child)
        (found,) = wait_until(lambda: self._first(child.pid), what=f"{name} to run")
        return int(found)

    def _first(self, supervisor: int) -> list[int]:
        found = proc.children(supervisor)
        return [p for p in found if proc.is_container_init(p) and proc.command_name(p) == "sleep"]

    def end(self) -> None:
        for child in self.started:
            for pid in self._first(child.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            child.wait(20)
        for mark in (RUN / "nspawn" / "propagate").glob(f"{self.work.name}*"):
            mark.rmdir()  # where /run is on a disk, nspawn leaves it
        for directory in self.groups:
            for below in (*directory.glob("*"), directory):
                if below.is_dir():
                    wait_until(lambda b=below: _removed(b), what=f"the end of {below}")


def _removed(directory: Path) -> bool:
    with suppress(OSError):
        directory.rmdir()
    return not directory.exists()


@pytest.fixture
def containers(work: Path) -> Iterator[Nspawn]:
    made = Nspawn(work)
    yield made
    made.end()


@pytest.fixture
def platform(work: Path) -> NspawnPlatform:
    return NspawnPlatform(machines=str(work / "machines"))


@pytest.fixture
def register(work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NspawnPlatform]:
    """A platform whose machined has written this state file (src/machine/machine.c)."""
    run = work / "run"
    (run / "machines").mkdir(parents=True)
    (run / "nspawn").mkdir()
    (run / "nspawn" / "propagate").symlink_to(RUN / "nspawn" / "propagate")

    def write(name: str, leader: int, unit: str) -> NspawnPlatform:
        unit = unit.replace("\\", "\\\\")
        text = f"NAME={name}\nSCOPE={unit}\nSERVICE=systemd-nspawn\nLEADER={leader}\n"
        (run / "machines" / name).write_text(f"{text}CLASS=container\n")
        return NspawnPlatform(str(run), str(work / "machines"))

    return write


async def listed(platform: NspawnPlatform, name: str) -> nspawn.Ve | None:
    return next((ve for ve in await platform.list_ves() if ve.name == name), None)


async def test_one_that_was_started_by_hand(work: Path, containers: Nspawn, platform) -> None:
    name = f"{work.name}-hand"
    pid = containers.start(name, "-D", str(make_tree(work / "tree")))
    ve = await listed(platform, name)
    assert ve is not None
    assert (ve.ve_id, ve.state, ve.init_pid) == (f"nspawn:{name}", "running", pid)
    assert ve.init_started == proc.start_time(pid)
    assert ve.namespace == proc.mount_namespace_inode(pid)
    # It shares /payload with any other such container: a kill of that would reach them all.
    assert (ve.cgroup, ve.commands.start, ve.commands.kill) == (None, (), ())


async def test_it_is_gone_when_it_has_ended(work: Path, containers: Nspawn, platform) -> None:
    name = f"{work.name}-gone"
    containers.start(name, "-D", str(make_tree(work / "tree")))
    assert await listed(platform, name)
    containers.end()
    assert await listed(platform, name) is None


async def test_two_of_them_are_two(work: Path, containers: Nspawn, platform) -> None:
    names = [f"{work.name}-{end}" for end in "ab"]
    pids = [containers.start(name, "-D", str(make_tree(work / name))) for name in names]
    found = [await listed(platform, name) for name in names]
    assert [ve and ve.init_pid for ve in found] == pids
    assert len({ve.namespace for ve in found if ve}) == 2


async def test_two_of_one_name_are_none(work: Path, containers: Nspawn, platform) -> None:
    name = f"{work.name}-twin"
    for tree in "ab":
        containers.start(name, "-D", str(make_tree(work / tree)))
    with pytest.raises(nspawn.PlatformError, match=name) as caught:
        await platform.list_ves()
    assert [ve for ve in caught.value.partial if ve.name == name] == []


async def test_one_in_a_scope_of_its_name(work: Path, containers: Nspawn, register) -> None:
    name = f"{work.name}-1"
    unit = f"machine-{nspawn.unit_escaped(name)}.scope"
    group = f"/machine.slice/{unit}"
    pid = containers.start(name, "-D", str(make_tree(work / "tree")), group=group)
    ve = await listed(register(name, pid, unit), name)
    assert ve is not None
    assert (ve.init_pid, ve.cgroup) == (pid, f"{group}/payload")
    assert cgroup.pids(ve.cgroup) == [pid]
    assert ve.commands.stop == ("systemctl", "stop", unit)
    # Whoever has started it by hand has chosen its options: no command repeats that.
    assert ve.commands.start == ()


async def test_one_that_its_service_runs(work: Path, containers: Nspawn, platform) -> None:
    name = f"{work.name}-1"
    unit = f"systemd-nspawn@{nspawn.unit_escaped(name)}.service"
    group = f"/machine.slice/{unit}"
    pid = containers.start(name, "-D", str(make_tree(work / "tree")), group=group)
    ve = await listed(platform, name)
    assert ve is not None
    assert (ve.init_pid, ve.cgroup) == (pid, f"{group}/payload")
    assert ve.commands.start == ("systemctl", "start", unit)


async def test_a_state_file_that_names_another_process_is_not_believed(
    work: Path, containers: Nspawn, register
) -> None:
    name, other = f"{work.name}-a", f"{work.name}-b"
    pid = containers.start(name, "-D", str(make_tree(work / "a")))
    others = containers.start(other, "-D", str(make_tree(work / "b")))
    unit = f"machine-{nspawn.unit_escaped(name)}.scope"
    for leader in (1, os.getpid(), others):
        ve = await listed(register(name, leader, unit), name)
        assert ve is not None
        assert ve.init_pid == pid


def _names(pid: int) -> bool:
    return any(proc.command_name(p) == "systemd-nspawn" for p in proc.children(pid))


async def test_a_program_that_only_has_the_name_is_not_believed(work: Path, platform) -> None:
    name = f"{work.name}-fake"
    mark = RUN / "nspawn" / "propagate" / name
    mark.mkdir(parents=True)
    # grep takes "-i NAME" too, and waits for the fifo.
    shutil.copy("/bin/grep", work / "systemd-nspawn")
    os.mkfifo(work / "fifo")
    program = [str(work / "systemd-nspawn"), "-i", name, str(work / "fifo")]
    child = subprocess.Popen(["unshare", "-mpf", "--kill-child", *program])
    try:
        wait_until(lambda: _names(child.pid), what="it to run")
        assert await listed(platform, name) is None
    finally:
        child.kill()
        child.wait()
        mark.rmdir()


def test_a_container_on_an_image_is_the_only_user_of_it(daemon, work: Path, containers) -> None:
    """nspawn's own --image needs udev: a mount of the image that the node drops comes to the
    same."""
    name, tree = f"{work.name}-img", make_tree(work / "tree")
    image, point = work / "web.img", work / "point"
    with image.open("xb") as file:
        file.truncate(64 << 20)
    argv = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image)]
    subprocess.run(argv, check=True, capture_output=True)
    point.mkdir()
    daemon.configure()
    daemon.start()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    containers.start(name, "-D", str(point))
    argv = ["findmnt", "-n", "-o", "SOURCE", str(point)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    device = device.removeprefix("/dev/")
    subprocess.run(["umount", str(point)], check=True)
    daemon.wait_until_known(name)
    (ve,) = [v for v in daemon.status()["ves"] if v["name"] == name]
    assert (ve["id"], ve["state"]) == (f"nspawn:{name}", "running")
    wait_until(lambda: device in _devices(daemon, name), what=f"{device} to be known")


def _devices(daemon, name: str) -> dict[str, str]:
    (ve,) = [v for v in daemon.status()["ves"] if v["name"] == name]
    return {found["device"]: found["fstype"] for found in ve["filesystems"]}
