"""Instances of User-mode Linux: a real one where it is installed, and processes that look like one.

What looks like one is Python under the name of a kernel: it has the console's socket and the disks
open that it is told to, as the real one was seen to have them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import block, proc
from fswatchd.platforms import uml
from fswatchd.platforms.uml import UmlPlatform
from tests.system.conftest import DaemonUnderTest, make_host, wait_until

pytestmark = pytest.mark.root

NOBODY = 65534
# As User-mode Linux 6.1 writes it, see tests/unit/kernel/test_cow.py.
COW = struct.pack(">4sIIQIII", b"OOOM", 3, 0, 1 << 20, 512, 4096, 0) + b"/base".ljust(4096, b"\0")
FAKE = """
import os, socket, sys, time
console, user, files = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.makedirs(os.path.dirname(console))
mconsole = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
mconsole.bind(console)
held = [os.open(name[1:], os.O_RDWR if name[0] == "w" else os.O_RDONLY)
        for name in files.split(";") if name]
os.setresgid(user, user, user)
os.setresuid(user, user, user)
print("ready", flush=True)
time.sleep(1000)
"""


class Instances:
    """Starts what looks like an instance, and ends it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.kernel = work / "linux"
        self.children: list[subprocess.Popen[str]] = []
        shutil.copy(os.path.realpath(sys.executable), self.kernel)

    def file(self, name: str, content: bytes = b"\0" * 8192, user: int = 0) -> Path:
        path = self.work / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.chown(path, user, user)
        return path

    def start(
        self,
        umid: str,
        *said: str,
        opened: str = "",
        user: int = 0,
        where: str = "uml",
        before: tuple[str, ...] = (),
    ) -> int:
        """`said` are words of its command line; `opened`: files after `w` or `r`, with `;`."""
        console = self.work / where / umid / "mconsole"
        argv = [*before, str(self.kernel), "-I", "-S", "-c", FAKE, str(console), str(user), opened]
        child = subprocess.Popen(
            [*argv, *said], stdout=subprocess.PIPE, text=True, cwd=self.work, start_new_session=True
        )
        self.children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child.pid

    async def look(self, platform: UmlPlatform | None = None) -> dict[str, Ve]:
        """The instances of this test: others may run on the machine."""
        try:
            return self.ours(await (platform or UmlPlatform()).list_ves())
        except PlatformError as error:
            self.problem = str(error)
            return self.ours(error.partial)

    def ours(self, ves: list[Ve]) -> dict[str, Ve]:
        pids = {child.pid for child in self.children}
        return {ve.ve_id: ve for ve in ves if ve.init_pid in pids}

    def end(self) -> None:
        for child in self.children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its helpers would live on
            child.wait(20)
            if child.stdout is not None:
                child.stdout.close()


@pytest.fixture
def instances(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instances]:
    monkeypatch.setattr(uml, "_ANSWER_S", 60.0)  # a busy machine is no hanging path
    made = Instances(work)
    try:
        yield made
    finally:
        made.end()


async def test_an_instance_of_root(instances: Instances) -> None:
    cow, raw = instances.file("my.cow", COW), instances.file("data.img")
    said = ("ubda=my.cow,base.img", f"ubd1={raw}", "mem=64M")
    pid = instances.start("web", *said, opened=f"w{cow};w{raw}")
    (ve,) = (await instances.look()).values()
    assert (ve.ve_id, ve.name, ve.init_pid, ve.state) == ("uml:web", "web", pid, "running")
    assert (ve.namespace, ve.cgroup, ve.guest) == (None, None, True)
    assert "own kernel" in (ve.unrepairable or "")
    assert ve.volumes == (
        Volume(image=str(cow), mountpoint="/", format="cow"),
        Volume(image=str(raw), mountpoint="", format="ubd"),
    )
    console = ("uml_mconsole", str(instances.work / "uml/web/mconsole"))
    assert ve.commands.kill == (*console, "halt")
    assert (ve.commands.freeze, ve.commands.thaw) == ((*console, "stop"), (*console, "go"))


async def test_a_user_takes_nobodys_name_and_gives_root_nothing_to_run(
    instances: Instances,
) -> None:
    root = instances.start("web")
    his = instances.start("web", user=NOBODY, where="his")
    found = await instances.look()
    assert {ve_id: ve.init_pid for ve_id, ve in found.items()} == {
        "uml:web": root,
        f"uml:{NOBODY}/web": his,
    }
    commands = found[f"uml:{NOBODY}/web"].commands
    assert not any((commands.stop, commands.kill, commands.freeze, commands.thaw))


async def test_a_user_claims_his_own_files_only(instances: Instances) -> None:
    roots = instances.file("roots.img")
    his = instances.file("his.img", user=NOBODY)
    instances.file("home/elsewhere.img", user=NOBODY)
    os.chown(instances.work / "home", NOBODY, NOBODY)
    elsewhere = instances.work / "home/elsewhere.img"
    said = [f"ubd{number}={path}" for number, path in enumerate((roots, his, elsewhere))]
    instances.start("x", *said, opened=f"w{roots};w{his};w{elsewhere}", user=NOBODY)
    (ve,) = (await instances.look()).values()
    assert [one.image for one in ve.volumes] == [str(his)]


async def test_what_is_only_said_or_only_read_is_no_volume(instances: Instances) -> None:
    said, read, gone, flagged = (instances.file(f"{name}.img") for name in ("s", "r", "g", "f"))
    words = [f"ubda={said}", f"ubdb={read}", f"ubdc={gone}", f"ubddr={flagged}", "ubde=missing"]
    instances.start("web", *words, opened=f"r{read};w{gone};w{flagged}")
    gone.unlink()
    instances.file("g.img")  # another file, of the same name
    (ve,) = (await instances.look()).values()
    assert ve.volumes == ()


async def test_a_disk_that_two_have_open_is_nobodys(instances: Instances) -> None:
    shared, own = instances.file("shared.img"), instances.file("own.img")
    instances.start("one", f"ubda={shared}", f"ubdb={own}", opened=f"w{shared};w{own}")
    instances.start("two", f"ubda={shared}", opened=f"w{shared}")
    found = await instances.look()
    assert [one.image for one in found["uml:one"].volumes] == [str(own)]
    assert found["uml:two"].volumes == ()
    assert "one is not alone on it" in instances.problem


async def test_two_of_one_name_are_none(instances: Instances) -> None:
    instances.start("web")
    instances.start("web", where="again")
    assert await instances.look() == {}
    assert "is called web too" in instances.problem


async def test_a_name_that_forges_a_line_of_the_table_leads_to_nobody(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = instances.start("web")
    links = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
    (inode,) = (link[8:-1] for link in links if link.startswith("socket:["))
    (instances.work / f"x\n0: 2 0 0 2 1 {inode} /a/other").mkdir(parents=True)
    monkeypatch.chdir(instances.work)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as forged:
        forged.bind(f"x\n0: 2 0 0 2 1 {inode} /a/other/mconsole")
        assert await instances.look() == {}
        assert "pretends to be" in instances.problem
    assert list(await instances.look()) == ["uml:web"]


async def test_what_runs_in_a_container_is_the_containers(instances: Instances) -> None:
    instances.start("web", before=("unshare", "--mount"))
    assert await instances.look() == {}


async def test_another_program_with_such_a_socket_is_none(instances: Instances) -> None:
    instances.kernel = instances.kernel.rename(instances.work / "linuxoid")
    instances.start("web")
    assert await instances.look() == {}


async def test_one_that_has_ended_is_gone_and_a_new_one_known(instances: Instances) -> None:
    platform = UmlPlatform()
    instances.start("one")
    assert list(await instances.look(platform)) == ["uml:one"]
    child = instances.children[0]
    child.kill()
    child.wait(20)
    assert await instances.look(platform) == {}
    instances.start("two")
    assert list(await instances.look(platform)) == ["uml:two"]


async def test_an_error_of_the_filesystem_below_concerns_it(instances: Instances) -> None:
    image = instances.file("web.img")
    instances.start("web", f"ubda={image}", opened=f"w{image}")
    inventory = Inventory([UmlPlatform()])
    try:
        await inventory.refresh()
    finally:
        await inventory.close()
    below = next(key for key in inventory.view.image_owners if key[1] == image.stat().st_ino)
    assert "uml:web" in inventory.view.affected(below[0])


def test_the_user_of_a_process(instances: Instances) -> None:
    assert proc.user(instances.start("web", user=NOBODY)) == NOBODY
    assert proc.user(os.getpid()) == os.getuid()


def test_an_incident_of_the_filesystem_below_names_it(
    instances: Instances, daemon: DaemonUnderTest, work: Path
) -> None:
    host = make_host(work, "ext4", 256 << 20)
    image = instances.file(f"{host.name}/web.img")
    pid = instances.start("web", f"ubda={image}", opened=f"w{image}")
    daemon.configure(mode="observe")
    daemon.start()

    def ours() -> list[dict[str, Any]]:
        return [ve for ve in daemon.status()["ves"] if ve["id"] == "uml:web"]

    (ve,) = wait_until(ours, 60.0, "the instance in the status")
    assert (ve["platform"], ve["state"]) == ("uml", "running")
    assert proc.is_alive(pid, None)
    device = block.name_of(Devno.of(host.stat().st_dev))
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("test")
    incident = daemon.wait_for_incident(ve="uml:web")
    assert incident["filesystem"]["device"] == device


@pytest.mark.skipif(
    not (shutil.which("linux.uml") and shutil.which("uml_mconsole")),
    reason="user-mode-linux or uml-utilities is not installed",
)
async def test_a_real_instance(instances: Instances) -> None:
    work = instances.work
    tree = work / "tree"
    for name in ("bin", "dev", "mnt"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    # It opens a disk when that is used.
    lines = (
        "#!/bin/busybox sh",
        "/bin/busybox mount -t ext4 /dev/ubdb /mnt",
        "exec /bin/busybox sleep 1000",
    )
    (tree / "init").write_text("\n".join(lines))
    (tree / "init").chmod(0o755)
    for name in ("base.img", "data.img"):
        argv = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(work / name), "16M"]
        subprocess.run(argv, check=True, capture_output=True)
    argv = ["linux.uml", "ubda=my.cow,base.img", "ubdb=data.img", "umid=web", f"uml_dir={work}/"]
    argv += ["mem=64M", "root=/dev/ubda", "rw", "init=/init", "con=null", "con0=null"]
    child = subprocess.Popen(
        argv,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    instances.children.append(child)

    platform = UmlPlatform()
    wanted = (
        Volume(image=str(work / "my.cow"), mountpoint="/", format="cow"),
        Volume(image=str(work / "data.img"), mountpoint="", format="ubd"),
    )
    found: dict[str, Ve] = {}
    async with asyncio.timeout(60):
        while not found or found["uml:web"].volumes != wanted:
            found = await instances.look(platform)
            await asyncio.sleep(0.05)
    commands = found["uml:web"].commands
    for argv in (commands.freeze, commands.thaw, commands.kill):
        told = await asyncio.to_thread(subprocess.run, argv, capture_output=True, timeout=30)
        assert told.returncode == 0
        assert b"OK" in told.stdout
    await asyncio.to_thread(wait_until, lambda: child.poll() is not None, 60.0, "its end")
    assert await instances.look(platform) == {}
