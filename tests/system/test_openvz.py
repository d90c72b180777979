"""Real processes where the tools of OpenVZ put a container's, on a kernel that is not theirs."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve, VeId, Volume
from fswatchd.inventory.owners import NODE
from fswatchd.inventory.view import describe
from fswatchd.kernel import block, cgroup, proc
from fswatchd.platforms import openvz
from fswatchd.platforms.openvz import OpenvzPlatform
from fswatchd.repair import scope
from fswatchd.steps import StepEnded
from tests.system.conftest import wait_until
from tests.unit.builders import incident

pytestmark = pytest.mark.root

# What read_descriptor needs of one; the whole of it is in tests/unit/platforms/test_openvz.py.
DESCRIPTOR = """<?xml version="1.0"?>
<Parallels_disk_image>
  <StorageData>
    <Storage>
      <Image>
        <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
        <Type>Plain</Type>
        <File>root.hds</File>
      </Image>
    </Storage>
  </StorageData>
</Parallels_disk_image>
"""


class Container:
    """A configuration, and processes in namespaces and a cgroup of their own."""

    def __init__(self, work: Path) -> None:
        self.ctid = str(uuid.uuid4())
        self.work = work
        self.slice = f"{work.name}.slice"
        self.group = f"/{self.slice}/{self.ctid}"
        self.children: list[subprocess.Popen[bytes]] = []
        (work / "etc/conf").mkdir(parents=True)
        (work / "run").mkdir()
        (work / "etc/vz.conf").write_text(f"VE_CGROUP_SLICE={self.slice}\nLOCKDIR={work}/lock\n")
        (work / f"etc/conf/{self.ctid}.conf").write_text(f'NAME="web"\nVE_ROOT="{work}/root"\n')
        self.directory.mkdir(parents=True)

    @property
    def directory(self) -> Path:
        return cgroup.hierarchies()[0] / self.group.lstrip("/")

    def start(self) -> int:
        """Run a process that is the first in namespaces of its own; returns its number."""
        command = "unshare --fork --pid --mount --kill-child sleep 1000"
        found = self.run(f"echo $$ > {self.directory}/cgroup.procs; exec {command}")
        (init,) = wait_until(lambda: self._inits(found), what="the first process")
        return int(init)

    def run(self, line: str) -> int:
        child = subprocess.Popen(["sh", "-c", line], stdin=subprocess.DEVNULL)
        self.children.append(child)
        return child.pid

    def _inits(self, parent: int) -> list[int]:
        children = proc.children(parent)
        return [
            p for p in children if proc.is_container_init(p) and proc.command_name(p) == "sleep"
        ]

    def say_first(self, pid: int) -> None:
        """As libvzctl writes it when it has started the container."""
        (self.work / f"run/{self.ctid}.init.pid").write_text(str(pid))

    async def look(self) -> Ve:
        platform = OpenvzPlatform(str(self.work / "etc"), str(self.work / "run"))
        (ve,) = await platform.list_ves()
        return ve

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait(20)
        wait_until(lambda: not cgroup.pids(self.group), what="the end of all processes")
        for directory in (self.directory, self.directory.parent):
            wait_until(lambda d=directory: _removed(d), what=f"the end of {directory}")


def _removed(directory: Path) -> bool:
    with suppress(OSError):
        directory.rmdir()
    return not directory.exists()


@pytest.fixture
def container(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    monkeypatch.setattr(openvz, "_ANSWER_S", 60.0)  # a busy machine is no hanging storage
    made = Container(work)
    try:
        yield made
    finally:
        made.end()


async def test_a_container_that_runs_is_known_with_its_first_process(container: Container) -> None:
    assert (await container.look()).state is VeState.STOPPED
    init = container.start()
    for said in (None, init):
        if said is not None:
            container.say_first(said)
        ve = await container.look()
        assert (ve.state, ve.init_pid, ve.cgroup) == (VeState.RUNNING, init, container.group)
        assert ve.namespace == proc.mount_namespace_inode(init)
        assert ve.busy is None


async def test_a_frozen_container_is_shown_as_such(container: Container) -> None:
    container.start()
    assert cgroup.freeze(container.group, 20)
    try:
        assert (await container.look()).state is VeState.FROZEN
    finally:
        cgroup.thaw(container.group, 20)
    assert (await container.look()).state is VeState.RUNNING


async def test_a_pid_file_does_not_make_a_process_of_the_node_the_first(
    container: Container,
) -> None:
    container.say_first(container.run("exec sleep 1000"))
    ve = await container.look()
    assert (ve.state, ve.init_pid) == (VeState.STOPPED, None)
    init = container.start()
    assert (await container.look()).init_pid == init


async def test_processes_without_a_first_one_are_no_stopped_container(
    container: Container,
) -> None:
    pid = container.run(f"echo $$ > {container.directory}/cgroup.procs; exec sleep 1000")
    wait_until(lambda: pid in cgroup.pids(container.group), what="the process in the cgroup")
    ve = await container.look()
    assert (ve.state, ve.init_pid) == (VeState.UNKNOWN, None)
    assert "cannot be told" in (ve.busy or "")


async def test_the_disk_that_is_mounted_on_the_node_is_the_containers(
    container: Container,
) -> None:
    """A loop device stands in for the device-mapper that ploop is: sysfs is told to call it so."""
    work = container.work
    root, disk = work / "root", work / "private/root.hdd"
    disk.mkdir(parents=True)
    root.mkdir()
    image = disk / "root.hds"
    argv = ["mke2fs", "-q", "-t", "ext4", str(image), "8M"]
    subprocess.run(argv, check=True, capture_output=True)
    (disk / "DiskDescriptor.xml").write_text(DESCRIPTOR)
    config = work / f"etc/conf/{container.ctid}.conf"
    with config.open("a") as file:
        file.write(f'VE_LAYOUT="ploop"\nVE_PRIVATE="{work}/private"\n')
    subprocess.run(["mount", "-o", "loop", str(image), str(root)], check=True)
    devno = Devno.of(root.stat().st_dev)
    loop = block.name_of(devno)
    assert loop is not None
    (work / f"sys/{loop}/dm").mkdir(parents=True)
    (work / f"sys/{loop}/dm/name").write_text("ploop1000p1\n")
    (work / "sys/dev/block").mkdir(parents=True)
    (work / f"sys/dev/block/{devno}").symlink_to(work / f"sys/{loop}")

    init = container.start()
    platform = OpenvzPlatform(str(work / "etc"), str(work / "run"), sysfs=work / "sys")
    inventory = Inventory([platform])
    ve_id = f"openvz:{container.ctid}"
    try:
        await inventory.refresh()
        view = inventory.view
        assert view.ves[VeId(ve_id)].init_pid == init
        wanted = Volume(image=str(image), device=f"/dev/{loop}", mountpoint="/", format="ploop")
        assert view.ves[VeId(ve_id)].volumes == (wanted,)
        users = view.users[devno]
        assert ve_id in users.ves
        assert NODE not in users.foreign
        assert ve_id in view.affected(Devno.of(image.stat().st_dev))
        # Somebody else's new namespace may have a copy of the mount at this moment.
        with pytest.raises(StepEnded, match=r"in the format ploop|is also used by"):
            await scope.resolve(_context(inventory, view.superblocks[devno]))
    finally:
        await inventory.close()


def _context(inventory: Inventory, superblock: Superblock) -> Any:
    return SimpleNamespace(inventory=inventory, incident=incident(filesystem=describe(superblock)))


async def test_a_lock_of_a_process_that_lives_makes_it_busy(container: Container) -> None:
    container.start()
    (container.work / "lock").mkdir()
    lock = container.work / f"lock/{container.ctid}.lck"
    holder = container.run("exec sleep 1000")
    lock.write_text(f"{holder}\nstopping\n")
    assert "stopping" in ((await container.look()).busy or "")
    os.kill(holder, 9)
    container.children[-1].wait(20)
    assert (await container.look()).busy is None
