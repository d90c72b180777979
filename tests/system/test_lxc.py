"""The main job, end to end, on LXC containers with a loop image as their root filesystem."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.drill.receiver import Receiver
from fswatchd.kernel import block, cgroup, loop, proc
from fswatchd.platforms.lxc import LxcPlatform
from tests.system import rules
from tests.system.conftest import wait_until

pytestmark = pytest.mark.skipif(shutil.which("lxc-start") is None, reason="LXC is not installed")

CONFIG = """
lxc.rootfs.path = loop:{image}
lxc.net.0.type = empty
lxc.uts.name = "{name}"
lxc.autodev = 1
lxc.tty.max = 1
lxc.pty.max = 64
lxc.signal.halt = SIGUSR1
lxc.mount.auto = cgroup:mixed proc:mixed sys:ro
lxc.mount.entry = /lib lib none ro,bind,create=dir 0 0
lxc.mount.entry = /lib64 lib64 none ro,bind,create=dir 0 0
lxc.mount.entry = {exchange} exchange none bind,create=dir 0 0
lxc.apparmor.profile = unconfined
"""

# Writes a file, syncs it, and only then notes its name outside the container's filesystem.
WRITER = """#!/bin/sh
n=0
boot=$(cat /proc/sys/kernel/random/uuid)
while true; do
    name=w-$boot-$n
    if echo "$name" > /work/$name && sync -d /work/$name 2>/dev/null || sync; then
        [ "$(cat /work/$name 2>/dev/null)" = "$name" ] && echo "$name" >> /exchange/acked
    fi
    n=$((n+1))
    sleep 0.02
done
"""
INITTAB = """::sysinit:/etc/init.d/rcS
::respawn:/writer
::shutdown:/bin/umount -a -r
"""


class Container:
    """One LXC container."""

    def __init__(self, work: Path, host: Path, name: str, path: str = "lxc") -> None:
        self.name = f"{work.name}-{name}"
        self._path = work / path
        self._path.mkdir(exist_ok=True)
        self.image = host / f"{path}-{name}.img"
        self.exchange = work / f"exchange-{path}-{name}"
        self.exchange.mkdir()
        self._create(work)

    def _create(self, work: Path) -> None:
        argv = ["lxc-create", "-t", "busybox", "-n", self.name, "-P", str(self._path)]
        subprocess.run(argv, check=True, capture_output=True)
        tree = self._path / self.name / "rootfs"
        self.contents = {}
        for number in range(400):
            path = tree / "data" / f"{number // 100}" / f"file-{number:04d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hashlib.sha256(str(path.name).encode()).digest() * 64)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.contents[digest] = str(path.relative_to(tree))
        (tree / "work").mkdir()
        (tree / "writer").write_text(WRITER)
        (tree / "writer").chmod(0o755)
        (tree / "etc" / "inittab").write_text(INITTAB)
        with self.image.open("xb") as file:
            file.truncate(300 << 20)
        argv = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", str(tree), str(self.image)]
        subprocess.run(argv, check=True, capture_output=True)
        shutil.rmtree(tree)
        config = CONFIG.format(image=self.image, name=self.name, exchange=self.exchange)
        (self._path / self.name / "config").write_text(config)

    def _run(self, program: str, *more: str) -> subprocess.CompletedProcess[str]:
        argv = [program, "-n", self.name, "-P", str(self._path), *more]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    def start(self) -> None:
        done = self._run("lxc-start")
        assert done.returncode == 0, done.stderr
        wait_until(self.acked, what="the writer's first file")

    def destroy(self) -> None:
        self._run("lxc-stop", "-k")

    @property
    def init(self) -> int:
        return int(self._run("lxc-info", "-p", "-H").stdout)

    @property
    def device(self) -> str:
        status = self.image.stat()
        (found,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
        return found

    def acked(self) -> list[str]:
        path = self.exchange / "acked"
        return path.read_text().split() if path.exists() else []

    def root(self) -> Path:
        return Path(f"/proc/{self.init}/root")

    def damage(self) -> None:
        """Random bytes over the block of a directory, and somebody who looks at it."""
        inode = (self.root() / "data" / "1").stat().st_ino
        argv = ["debugfs", "-R", f"blocks <{inode}>", self.device]
        blocks: list[str] = []
        while not blocks:
            blocks = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        fd = os.open(self.device, os.O_RDWR)
        os.pwrite(fd, os.urandom(4096), int(blocks[0]) * 4096)
        os.fsync(fd)
        os.close(fd)
        block.drop_buffers(self.device)
        self._run("lxc-attach", "--", "/bin/ls", "/data/1")

    def manifest(self) -> dict[str, str]:
        """Digest → path of every regular file, read past the caches."""
        block.drop_buffers(self.device)
        root = self.root()
        found = {}
        for directory in ("data", "lost+found", "work"):
            for parent, _, names in os.walk(root / directory):
                for name in names:
                    path = Path(parent, name)
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[digest] = str(path.relative_to(root))
        return found


@pytest.fixture
def containers(work: Path, host: Path) -> Iterator[tuple[Container, Container]]:
    made = (Container(work, host, "ve101"), Container(work, host, "ve102"))
    yield made
    for container in made:
        container.destroy()


def test_one_of_two_containers_is_damaged_and_repaired_with_nobodys_help(
    daemon, work, containers, receiver: Receiver
) -> None:
    damaged, other = containers
    (work / "secret").write_text(receiver.secret)
    daemon.configure(rules=rules.repair(), channels=rules.channel(receiver.url, work / "secret"))
    daemon.start()
    for container in containers:
        container.start()
    daemon.wait_until_known(damaged.name, other.name)
    others_init = (other.init, proc.start_time(other.init))
    others_image = other.image.stat().st_ino
    image_before = damaged.image.stat().st_ino

    damaged.damage()

    incident = daemon.wait_for_incident("closed", "needs-operator", ve=damaged.name)
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert [i["id"] for i in daemon.incidents(damaged.name)] == [incident["id"]]
    assert daemon.incidents(other.name) == []
    assert len({"kmsg", "fanotify", "state"} & set(incident["sources"])) >= 2
    assert len(incident["ves"]) == 1
    assert incident["ves"][0].endswith(damaged.name)
    assert damaged.image.stat().st_ino != image_before

    wait_until(lambda: len(damaged.acked()) > 0)
    before = len(damaged.acked())
    wait_until(lambda: len(damaged.acked()) > before, what="new writes after the repair")
    acked = damaged.acked()  # before the look at the files: the writer goes on meanwhile
    found = damaged.manifest()
    lost = [path for digest, path in damaged.contents.items() if digest not in found]
    assert lost == []
    for name in acked:
        assert hashlib.sha256(f"{name}\n".encode()).hexdigest() in found, name

    assert (other.init, proc.start_time(other.init)) == others_init
    assert other.image.stat().st_ino == others_image
    moment = len(other.acked())
    wait_until(lambda: len(other.acked()) > moment)

    wait_until(lambda: any(n["type"].endswith(".closed") for _, n in receiver.notices))
    assert receiver.bad_signatures == 0
    kinds = [notice["type"].rpartition(".")[2] for _, notice in receiver.notices]
    assert kinds[0] == "opened"
    assert "repaired" in kinds


def test_a_container_is_known_soon_after_it_has_started(daemon, containers) -> None:
    daemon.configure(mode="observe")
    daemon.start()
    first, second = containers
    first.start()
    daemon.wait_until_known(first.name)

    def health() -> str:
        (ve,) = [v for v in daemon.status()["ves"] if v["name"] == first.name]
        assert (ve["platform"], ve["state"]) == ("lxc", "running")
        rootfs = next(fs for fs in ve["filesystems"] if "/" in fs["mountpoints"])
        assert rootfs["backing"]["image"] == str(first.image)
        return str(rootfs["health"])

    wait_until(lambda: health() == "ok", 60)
    assert second.name not in {v["name"] for v in daemon.status()["ves"] if v["state"] == "running"}
    first.destroy()
    begin = time.monotonic()
    wait_until(
        lambda: (
            not [v for v in daemon.status()["ves"] if v["name"] == first.name and v["filesystems"]]
        )
    )
    assert time.monotonic() - begin < 10


async def test_containers_of_one_name_on_two_paths_are_two(work, host) -> None:
    """The second one's cgroup has a number after the name; neither gets the other's processes."""
    made = [Container(work, host, "ve101", path) for path in ("one", "two")]
    try:
        for container in made:
            container.start()
        listed = {ve.ve_id: ve for ve in await LxcPlatform(str(work / "one")).list_ves()}
        found = [listed[f"lxc:{made[0].name}"], listed[f"lxc:{work}/two/{made[1].name}"]]
        assert [ve.init_pid for ve in found] == [container.init for container in made]
        for ve in found:
            assert ve.init_pid in cgroup.pids(ve.cgroup or "")
        assert found[0].cgroup != found[1].cgroup
        made[0].destroy()
        listed = {ve.ve_id: ve for ve in await LxcPlatform(str(work / "one")).list_ves()}
        assert listed[found[0].ve_id].init_pid is None
        assert listed[found[1].ve_id].init_pid == found[1].init_pid
    finally:
        for container in made:
            container.destroy()
