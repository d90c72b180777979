from __future__ import annotations

import os
from pathlib import Path

import pytest

from fswatchd.inventory.model import Ve, Volume
from fswatchd.platforms import seen
from fswatchd.platforms.proxmox import ProxmoxPlatform
from fswatchd.platforms.proxmox_config import read_storages
from fswatchd.platforms.proxmox_vm import has_agent, read_disk
from tests.unit.platforms.test_proxmox import CONF, STORAGE

# As qm.conf(5) and qemu-server's PVE/QemuServer.pm (write_vm_config) have it.
VM = """#the mail server
agent: 1
bios: ovmf
boot: order=scsi0;ide2
cores: 2
efidisk0: local-lvm:vm-200-disk-1,efitype=4m,size=4M
ide0: local-lvm:vm-200-cloudinit,media=cdrom
ide2: local:iso/debian-12.iso,media=cdrom,size=629M
memory: 2048
name: mail
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
scsi0: local-lvm:vm-200-disk-0,discard=on,iothread=1,size=32G
scsi1: local:200/vm-200-disk-2.qcow2,size=8G
scsihw: virtio-scsi-single
smbios1: uuid=0b0a7cb4-b8b8-4b83-b05f-35a1f2b0b8e6
sata1: none,media=cdrom
tags: gold;web
tpmstate0: local-lvm:vm-200-disk-3,size=4M,version=v2.0
unused0: local-lvm:vm-200-disk-9
virtio2: /dev/disk/by-id/wwn-0x5000,size=1T

[before]
name: old
scsi0: local-lvm:vm-200-disk-7,size=32G
"""


class Node:
    """A node's /etc/pve and /run/qemu-server."""

    def __init__(self, path: Path) -> None:
        self.config, self.run = path / "pve", path / "run"
        (self.config / "lxc").mkdir(parents=True)
        (self.config / "qemu-server").mkdir()
        self.run.mkdir()
        (self.config / "storage.cfg").write_text(STORAGE)
        self.write(VM)
        self.platform = ProxmoxPlatform(str(self.config), str(self.run))

    def write(self, text: str) -> None:
        (self.config / "qemu-server" / "200.conf").write_text(text)

    async def ve(self) -> Ve:
        return next(ve for ve in await self.platform.list_ves() if ve.native_id == "200")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_virtual_machine_is_read_from_its_configuration(node: Node) -> None:
    ve = await node.ve()
    assert (ve.ve_id, ve.name, ve.state, ve.guest) == ("proxmox:200", "mail", "stopped", True)
    assert ve.labels == {"gold": "", "web": ""}
    assert ve.aliases == ()
    assert (ve.commands.start, ve.commands.kill) == (("qm", "start", "200"), ("qm", "stop", "200"))
    assert ve.commands.freeze == ("qm", "guest", "cmd", "200", "fsfreeze-freeze")
    assert ve.unrepairable is not None


async def test_its_disks_and_nothing_else_are_its_volumes(node: Node) -> None:
    assert (await node.ve()).volumes == (
        Volume(device="/dev/pve/vm-200-disk-0", mountpoint="", format="disk"),
        Volume(image="/var/lib/vz/images/200/vm-200-disk-2.qcow2", mountpoint="", format="qcow2"),
        Volume(device="/dev/disk/by-id/wwn-0x5000", mountpoint="", format="disk"),
    )


async def test_containers_and_machines_are_told_beside_each_other(node: Node) -> None:
    (node.config / "lxc" / "101.conf").write_text(CONF)
    found = {ve.ve_id: ve.guest for ve in await node.platform.list_ves()}
    assert found == {"proxmox:101": False, "proxmox:200": True}


async def test_one_that_runs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    (node.run / "200.pid").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(seen.proc, "cgroups", lambda _: {"": "/qemu.slice/200.scope"})
    ve = await node.ve()
    assert (ve.state, ve.init_pid, ve.cgroup) == ("running", os.getpid(), "/qemu.slice/200.scope")
    assert (ve.namespace, ve.namespace_id) == (None, None)
    monkeypatch.setattr(seen.proc, "cgroups", lambda _: {"": "/qemu.slice/2001.scope"})
    assert (await node.ve()).cgroup is None


async def test_a_pid_file_from_before_the_process_is_not_believed(node: Node) -> None:
    (node.run / "200.pid").write_text(f"{os.getpid()}\n")
    os.utime(node.run / "200.pid", (1_000_000, 1_000_000))
    assert (await node.ve()).state == "stopped"


async def test_its_lock_is_seen(node: Node) -> None:
    node.write(f"lock: migrate\n{VM}")
    assert (await node.ve()).busy == "Proxmox: lock: migrate"


async def test_without_an_agent_it_is_paused(node: Node) -> None:
    node.write(VM.replace("agent: 1", "agent: 0"))
    commands = (await node.ve()).commands
    assert (commands.freeze, commands.thaw) == (("qm", "suspend", "200"), ("qm", "resume", "200"))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1", True),
        ("enabled=1,fstrim_cloned_disks=1", True),
        ("fstrim_cloned_disks=1,enabled=1", True),
        ("0", False),
        ("enabled=0,fstrim_cloned_disks=1", False),
        ("", False),
    ],
)
def test_whether_it_has_an_agent(value: str, wanted: bool) -> None:
    assert has_agent(value) is wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("tank:vm-200-disk-0,size=1G", "/dev/zvol/tank/data/vm-200-disk-0"),
        ("tank:base-100-disk-0/vm-200-disk-0", "/dev/zvol/tank/data/vm-200-disk-0"),
        ("file=local-lvm:vm-200-disk-0", "/dev/pve/vm-200-disk-0"),
        ("local-lvm:vm-200-cloudinit", None),
        ("local:200/vm-200-cloudinit.qcow2", None),
        ("ceph:vm-200-disk-0", None),
        ("none,media=cdrom", None),
        ("none", None),
    ],
)
def test_where_a_disk_is(value: str, wanted: str | None) -> None:
    found = read_disk(value, read_storages(STORAGE))
    assert (found.device or found.image if found else None) == wanted
