"""Guests of libvirt: its files, a cgroup and mounts that are real, a virsh that is played.

No hypervisor runs: what is beneath a guest and around it is the same without one.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.engine.attribution import attribute
from fswatchd.events import FsEvent
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.lookup import find_ve
from fswatchd.inventory.model import GuestFilesystem
from fswatchd.kernel import cgroup, loop, proc
from fswatchd.platforms import guest_agent
from fswatchd.platforms.libvirt import LibvirtPlatform
from fswatchd.repair import ve_control
from tests.system.conftest import wait_until
from tests.unit.builders import event
from tests.unit.platforms.test_guest_agent import ANSWER, ROOT
from tests.unit.platforms.test_libvirt import STATUS, UUID


class FakeGuest:
    """A process where libvirt would put QEMU, with libvirt's files about it."""

    def __init__(self, work: Path, host: Path) -> None:
        self.work, self.run = work, work / "run-libvirt"
        self.uuid, self.name = str(uuid.uuid4()), f"web-{secrets.token_hex(4)}"
        self.image = host / "web.img"
        self.disk = work / "disk.img"
        for image in (self.image, self.disk):
            with image.open("xb") as file:
                file.truncate(8 << 20)
        with self.disk.open("r+b") as file:
            self.device, fd = loop.attach(file.fileno(), autoclear=False)
        os.close(fd)
        number = secrets.randbelow(1 << 30)
        self.group = rf"/machine.slice/machine-qemu\x2d{number}\x2d{self.name[:8]}.scope"
        self.directory = cgroup.hierarchies()[0] / self.group.lstrip("/")
        (self.directory / "libvirt").mkdir(parents=True)
        # libvirt gives QEMU a mount namespace of its own ("namespaces" in qemu.conf).
        line = f"echo $$ > '{self.directory}/libvirt/cgroup.procs'; exec unshare -m sleep 1000"
        self.child = subprocess.Popen(["sh", "-c", line], start_new_session=True)
        wait_until(lambda: proc.command_name(self.child.pid) == "sleep")
        self.run.mkdir()
        text = STATUS.format(pid=self.child.pid, state="running", agent="connected", job="")
        for old, new in (
            (UUID, self.uuid),
            ("<name>web<", f"<name>{self.name}<"),
            ("id='4'", f"id='{number}'"),
            ("/srv/web data.img", str(self.image)),
            ("/dev/vg/web", self.device),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.run / f"{self.name}.xml").write_text(text)

    def answers(self, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        """A virsh that runs this when its agent is asked."""
        (self.work / "bin").mkdir(exist_ok=True)
        virsh = self.work / "bin" / "virsh"
        wanted = f"--connect qemu:///system qemu-agent-command --timeout 3 {self.uuid}"
        question = '{"execute":"guest-get-fsinfo"}'
        virsh.write_text(f"#!/bin/sh\n[ \"$*\" = '{wanted} {question}' ] || exit 1\n{script}\n")
        virsh.chmod(0o755)
        path = f"{virsh.parent}:{os.environ['PATH']}"
        monkeypatch.setitem(process.ENVIRONMENT, "PATH", path)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGKILL)
        self.child.wait()
        wait_until(lambda: not cgroup.pids(self.group))
        (self.directory / "libvirt").rmdir()
        self.directory.rmdir()
        with suppress(OSError):
            self.directory.parent.rmdir()
        loop.detach(self.device)


@pytest.fixture
def guest(work: Path, host: Path) -> Iterator[FakeGuest]:
    made = FakeGuest(work, host)
    yield made
    made.close()


@pytest.fixture
async def inventory(guest: FakeGuest) -> AsyncIterator[Inventory]:
    platform = LibvirtPlatform(str(guest.run), str(guest.work / "etc"))
    inventory = Inventory([platform])
    yield inventory
    await inventory.close()
    await platform.asked.close()


def io_error(device: str) -> FsEvent:
    """As a kernel line names it."""
    name = device.removeprefix("/dev/")
    return event("kmsg", "io_error", device=name, devno=None, fstype=None)


async def test_what_is_hurt_beneath_a_guest_names_it(
    guest: FakeGuest, host: Path, inventory: Inventory
) -> None:
    await inventory.refresh()
    ve_id = f"libvirt:{guest.name}"
    superblock = inventory.view.superblocks[Devno.of(os.stat(host).st_dev)]
    assert inventory.view.dependents(superblock.devno).ves == (ve_id,)
    found = attribute(io_error(f"/dev/{superblock.device}"), inventory.view)
    assert (found.ves, found.through) == ((ve_id,), (ve_id,))
    found = attribute(io_error(guest.device), inventory.view)
    assert (found.ves, found.superblock) == ((ve_id,), None)


async def test_the_mounts_around_its_process_are_not_the_guests(
    guest: FakeGuest, host: Path, inventory: Inventory
) -> None:
    await inventory.refresh()
    ve = find_ve(inventory.view, guest.name)
    assert (ve.state, ve.init_pid, ve.cgroup) == ("running", guest.child.pid, guest.group)
    assert inventory.view.superblocks_of(ve.ve_id) == []
    users = inventory.view.users[Devno.of(os.stat(host).st_dev)]
    assert users.ves == ()
    assert f"process {guest.child.pid} (sleep) of {ve.ve_id}" in users.foreign


async def test_its_processes_are_its_cgroups(guest: FakeGuest, inventory: Inventory) -> None:
    """A kill reaches the hypervisor, and nobody else in the node's namespaces."""
    await inventory.refresh()
    ve = find_ve(inventory.view, guest.name)
    assert ve_control.tasks(ve) == [guest.child.pid]
    ve_control.send_kill(ve)
    assert guest.child.wait(60) == -signal.SIGKILL
    await inventory.refresh()
    assert find_ve(inventory.view, guest.name).state == "stopped"


async def test_its_agent_tells_what_is_inside(
    guest: FakeGuest, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.answers(monkeypatch, f"cat {guest.work}/answer")
    (guest.work / "answer").write_text(json.dumps(ANSWER))
    (platform,) = inventory.platforms
    await inventory.refresh()
    await platform.asked.settle()  # type: ignore[attr-defined]
    await inventory.refresh()
    told = find_ve(inventory.view, guest.name).guest_filesystems
    assert told == (ROOT, GuestFilesystem(device="dm-0", fstype="xfs", mountpoint="/srv"))


@pytest.mark.parametrize("script", ["exec sleep 1000", "echo 'error: Guest agent'; exit 1"])
async def test_an_agent_that_does_not_answer_holds_up_nobody(
    guest: FakeGuest, inventory: Inventory, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    guest.answers(monkeypatch, script)
    monkeypatch.setattr(guest_agent, "_DEADLINE_S", 1.0)
    (platform,) = inventory.platforms
    await inventory.refresh()
    await platform.asked.settle()  # type: ignore[attr-defined]
    await inventory.refresh()
    assert find_ve(inventory.view, guest.name).guest_filesystems == ()
    assert inventory.problems == {}
