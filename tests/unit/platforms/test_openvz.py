from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.inventory.merge import merged
from fswatchd.inventory.model import Ve, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel.mounts import Mount
from fswatchd.platforms import openvz
from fswatchd.platforms.openvz import OpenvzPlatform, read_lock
from fswatchd.platforms.seen import Seen
from fswatchd.platforms.vzconf import Disk, read_config, read_disks

UUID = "043ec956-6fea-4c45-911c-18991d6ffa93"
OTHER = "e92f5f04-2906-41cb-8ee2-fac51e59d8c5"
# The keys that matter here of Virtuozzo's etc/vz.conf (repository OpenVZ/vzctl), with the comments
# and the quoting it has.
VZ_CONF = """## Global parameters
VIRTUOZZO=yes
LOCKDIR={vz}/lock
GOLDEN_IMAGE="yes"

## Default suspend/restore dump images storage
DUMPDIR={vz}/dump
BANDWIDTH="enp0s5:100000"
# VE_ROUTE_SRC_DEV="eth0"
SERVER_UUID=6c1a5d3e-0000-4000-8000-0123456789ab

## Defaults for VEs
VE_ROOT={vz}/root/$VEID
VE_PRIVATE={vz}/private/$VEID
"""
# As vzctl of OpenVZ 6 writes /etc/vz/conf/101.conf (etc/dists and src/lib/config.c there).
CONF_6 = """ONBOOT="yes"
PHYSPAGES="0:256M"
DISKSPACE="2G:2.2G"
VE_ROOT="{vz}/root/$VEID"
VE_PRIVATE="{vz}/private/$VEID"
VE_LAYOUT="{layout}"
OSTEMPLATE="centos-6-x86_64"
ORIGIN_SAMPLE="vswap-256m"
HOSTNAME="web.example.com"
NAME="web"
"""
# As libvzctl registers a container: VEID, UUID and VE_PRIVATE come to the keys of the sample.
CONF_7 = """VERSION="2"
ONBOOT="yes"
DISKSPACE="10485760:10485760"
VEID="{ctid}"
UUID="{uuid}"
NAME="{name}"
VE_PRIVATE="{vz}/private/$VEID"
DISTRIBUTION="centos"
OSTEMPLATE=".centos-7"
DISK="{disk}"
"""
# As ploop writes it (lib/xml.c, ploop_store_diskdescriptor), with one snapshot.
DESCRIPTOR = """<?xml version="1.0"?>
<Parallels_disk_image>
  <Disk_Parameters>
    <Disk_size>20971520</Disk_size>
    <Cylinders>1331</Cylinders>
    <Heads>16</Heads>
    <Sectors>984</Sectors>
    <Padding>0</Padding>
  </Disk_Parameters>
  <StorageData>
    <Storage>
      <Start>0</Start>
      <End>20971520</End>
      <Blocksize>2048</Blocksize>
      <Image>
        <GUID>{b7f2f1f2-55ac-4f3f-9b6c-2b5d7a1f0a01}</GUID>
        <Type>Compressed</Type>
        <File>root.hds</File>
      </Image>
      <Image>
        <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
        <Type>Compressed</Type>
        <File>root.hds.{c41d1c55-9d1a-4d33-8a55-1c3df3a60b02}</File>
      </Image>
    </Storage>
  </StorageData>
  <Snapshots>
    <TopGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</TopGUID>
    <Shot>
      <GUID>{b7f2f1f2-55ac-4f3f-9b6c-2b5d7a1f0a01}</GUID>
      <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID>
    </Shot>
    <Shot>
      <GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
      <ParentGUID>{b7f2f1f2-55ac-4f3f-9b6c-2b5d7a1f0a01}</ParentGUID>
    </Shot>
  </Snapshots>
</Parallels_disk_image>
"""
TOP = "root.hds.{c41d1c55-9d1a-4d33-8a55-1c3df3a60b02}"
ROOT_DISK = "uuid={28cb4a63-7b8a-4d1f-8f1a-6d2c0b2f7d11},size=10485760,mnt=/,image=root.hdd"


@dataclass
class Node:
    """A node's files, sysfs and mount table."""

    path: Path
    mounts: list[Mount] = field(default_factory=list)

    @property
    def vz(self) -> Path:
        return self.path / "vz"

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def add_6(self, ctid: str = "101", layout: str = "ploop") -> None:
        self.write(f"etc/conf/{ctid}.conf", CONF_6.format(vz=self.vz, layout=layout))
        self.write(f"vz/private/{ctid}/root.hdd/DiskDescriptor.xml", DESCRIPTOR)

    def add_7(
        self, ctid: str = UUID, uuid: str = UUID, name: str = "", disk: str = ROOT_DISK
    ) -> None:
        text = CONF_7.format(vz=self.vz, ctid=ctid, uuid=uuid, name=name, disk=disk)
        self.write(f"vz/private/{ctid}/ve.conf", text)
        self.write(f"vz/private/{ctid}/root.hdd/DiskDescriptor.xml", DESCRIPTOR)
        (self.path / f"etc/conf/{ctid}.conf").symlink_to(self.vz / f"private/{ctid}/ve.conf")

    def mount(self, point: str, devno: Devno, fstype: str = "ext4") -> None:
        self.mounts.append(
            Mount(
                mount_id=len(self.mounts),
                devno=devno,
                fstype=fstype,
                root="/",
                point=point,
                source="/dev/x",
                superblock_options=(),
                superblock_readonly=False,
                readonly=False,
            )
        )

    def device(
        self, devno: Devno, name: str, deltas: list[str] | None = None, dm: str = ""
    ) -> None:
        """/sys of a block device; `deltas` as in ploop's own block driver, `dm` a table's name."""
        disk = name.partition("p1")[0] if name.startswith("ploop") else name
        place = self.path / "sys/devices/virtual/block" / disk
        if name != disk:
            place = place / name
        place.mkdir(parents=True)
        (self.path / "sys/block").mkdir(exist_ok=True)
        (self.path / "sys/dev/block").mkdir(parents=True, exist_ok=True)
        (self.path / "sys/dev/block" / str(devno)).symlink_to(place)
        if dm:
            self.write(f"sys/devices/virtual/block/{name}/dm/name", f"{dm}\n")
        for level, image in enumerate(deltas or ()):
            self.write(f"sys/block/{disk}/pdelta/{level}/image", f"{image}\n")

    def platform(self) -> OpenvzPlatform:
        return OpenvzPlatform(
            str(self.path / "etc"),
            str(self.path / "run"),
            mounts=lambda: self.mounts,
            sysfs=self.path / "sys",
        )

    async def ve(self) -> Ve:
        (ve,) = await self.platform().list_ves()
        return ve


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(openvz, "_ANSWER_S", 60.0)  # a busy machine is no hanging storage
    found = Node(tmp_path)
    found.write("etc/vz.conf", VZ_CONF.format(vz=found.vz))
    found.write("etc/conf/0.conf", 'ONBOOT="no"\n')
    found.write("etc/conf/ve-basic.conf-sample", 'VERSION="2"\n')
    found.write("etc/conf/101.conf.destroyed", "")
    return found


async def test_a_ploop_container_of_openvz_6(node: Node) -> None:
    node.add_6()
    ve = await node.ve()
    assert (ve.ve_id, ve.native_id, ve.name, ve.state) == ("openvz:101", "101", "web", "stopped")
    top = str(node.vz / "private/101/root.hdd" / TOP)
    assert ve.volumes == (Volume(image=top, mountpoint="/", format="ploop"),)
    assert (ve.busy, ve.aliases, ve.lock, ve.node_mounts) == (None, (), None, True)
    assert ve.commands.start == ("vzctl", "start", "101")
    assert ve.commands.kill == ("vzctl", "stop", "101", "--fast")


async def test_a_container_of_virtuozzo_7(node: Node) -> None:
    second = "uuid={a},enabled=yes,mnt=/var/lib/mysql,image=/elsewhere/$VEID/db.hdd"
    node.add_7(name="Shop 1", disk=f"{second};uuid={{b}},device=/dev/sdc")
    ve = await node.ve()
    assert (ve.ve_id, ve.name) == (f"openvz:{UUID}", "Shop 1")
    assert ve.volumes == (
        Volume(
            image=str(node.vz / f"private/{UUID}/root.hdd" / TOP), mountpoint="/", format="ploop"
        ),
        Volume(device="/dev/sdc", mountpoint="", format="partitions"),
    )


async def test_a_number_and_a_uuid_name_one_container(node: Node) -> None:
    node.add_7(ctid="102", uuid=UUID)
    assert (await node.ve()).aliases == (f"openvz:{UUID}",)


async def test_a_copied_configuration_does_not_hide_the_container_it_is_of(node: Node) -> None:
    node.add_7(ctid=UUID, uuid=UUID)
    node.add_7(ctid="102", uuid=UUID)
    node.add_7(ctid="103", uuid=OTHER)
    node.add_7(ctid="104", uuid=OTHER)
    ves = await node.platform().list_ves()
    assert [ve.aliases for ve in ves] == [(), (), (), ()]
    assert len(merged(ves)) == 4


# --- what is mounted -------------------------------------------------------------------------


async def test_the_device_below_ve_root_is_the_volumes(node: Node) -> None:
    node.add_6()
    images = node.vz / "private/101/root.hdd"
    node.device(Devno(182, 1), "ploop0p1", [str(images / "root.hds"), str(images / TOP)])
    node.mount(str(node.vz / "root/101"), Devno(182, 1))
    assert (await node.ve()).volumes[0].device == "/dev/ploop0p1"


async def test_the_device_mapper_of_virtuozzo_9(node: Node) -> None:
    node.add_7(disk=f"{ROOT_DISK};uuid={{a}},mnt=/srv/db,image=db.hdd")
    node.write(f"vz/private/{UUID}/db.hdd/DiskDescriptor.xml", DESCRIPTOR)
    for number, (name, point) in enumerate([("ploop1000p1", ""), ("ploop1001p1", "/srv/db")]):
        node.device(Devno(253, number), f"dm-{number}", dm=name)
        node.mount(f"{node.vz}/root/{UUID}{point}", Devno(253, number))
    assert [one.device for one in (await node.ve()).volumes] == ["/dev/dm-0", "/dev/dm-1"]


@pytest.mark.parametrize(
    ("name", "deltas", "dm"),
    [
        ("sda1", None, ""),
        ("dm-3", None, "vg-data"),
        ("dm-3", None, "xploop1p1"),
        ("ploop7p1", ["/vz/private/102/root.hdd/root.hds"], ""),
    ],
    ids=["the node's disk", "another table", "a name like it", "another container's image"],
)
async def test_what_else_is_mounted_there_is_not_claimed(node: Node, name, deltas, dm) -> None:
    node.add_6()
    node.device(Devno(9, 9), name, deltas, dm)
    node.mount(str(node.vz / "root/101"), Devno(9, 9))
    assert (await node.ve()).volumes[0].device is None


# --- simfs: the private area is the container's own root -------------------------------------


@pytest.mark.parametrize("layout", ["simfs", ""])
async def test_what_a_container_puts_into_its_own_root_is_not_believed(
    node: Node, layout: str
) -> None:
    node.add_6(layout=layout)
    private = node.vz / "private/101"
    evil = DESCRIPTOR.replace("root.hds", "/vz/private/102/root.hdd/root.hds")
    (private / "root.hdd/DiskDescriptor.xml").write_text(evil)
    (private / "dump/Dump").mkdir(parents=True)
    (private / ".owner").write_text("another node")
    (private / "ve.conf").write_text(CONF_6)
    node.mount(str(node.vz), Devno(0, 50), "nfs4")
    ve = await node.ve()
    assert (ve.volumes, ve.busy) == ((), None)


async def test_a_link_to_anothers_configuration_is_no_proof_of_the_layout(node: Node) -> None:
    node.add_7(ctid=UUID)
    (node.path / "etc/conf/102.conf").symlink_to(node.vz / f"private/{UUID}/ve.conf")
    node.write("vz/private/102/root.hdd/DiskDescriptor.xml", DESCRIPTOR)
    _, copy = sorted(await node.platform().list_ves(), key=lambda ve: -len(ve.native_id))
    assert (copy.native_id, copy.volumes) == ("102", ())


# --- what goes on ----------------------------------------------------------------------------


async def test_a_lock_that_is_held_is_seen_and_its_end_too(node: Node) -> None:
    node.add_6()
    lock = node.write("vz/lock/101.lck", f"{os.getpid()}\nmigrating\n")
    assert (await node.ve()).busy == f"OpenVZ: migrating (process {os.getpid()})"
    lock.unlink()
    assert (await node.ve()).busy is None


@pytest.mark.parametrize("text", ["4194304999\nstopping\n", "", "\n", "-1\nx\n", "x\n"])
def test_a_lock_that_was_left_behind_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "101.lck").write_text(text)
    assert read_lock(str(tmp_path / "101.lck")) is None


async def test_a_suspended_container_is_busy(node: Node) -> None:
    node.add_6()
    dump = node.write("vz/dump/Dump.101", "")
    assert "suspended" in ((await node.ve()).busy or "")
    dump.unlink()
    assert (await node.ve()).busy is None


async def test_a_suspended_container_of_virtuozzo_7_is_busy(node: Node) -> None:
    node.add_7()
    (node.vz / f"private/{UUID}/dump/Dump").mkdir(parents=True)
    assert "suspended" in ((await node.ve()).busy or "")


async def test_a_stopped_container_that_is_mounted_is_busy(node: Node) -> None:
    node.add_6()
    node.mount(str(node.vz / "root/101"), Devno(182, 1))
    assert "mounted" in ((await node.ve()).busy or "")


@pytest.mark.parametrize(
    ("owner", "fstype", "busy"),
    [
        ("2222aaaa-0000-4000-8000-0123456789ab\n", "fuse.vstorage", True),
        ("6c1a5d3e-0000-4000-8000-0123456789ab\n", "fuse.vstorage", False),
        ("2222aaaa-0000-4000-8000-0123456789ab\n", "ext4", False),
        (os.uname().nodename, "nfs4", False),
        (os.uname().nodename + ".example.com", "nfs4", False),
    ],
    ids=["another node's", "ours", "not shared", "ours by name", "ours by its long name"],
)
async def test_whose_a_container_on_shared_storage_is(
    node: Node, owner: str, fstype: str, busy: bool
) -> None:
    node.add_7()
    node.write(f"vz/private/{UUID}/.owner", owner)
    node.mount("/", Devno(8, 1))
    node.mount(str(node.vz), Devno(0, 50), fstype)
    assert ("another node" in ((await node.ve()).busy or "")) is busy


# --- what runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "place", "first", "wanted"),
    [
        (("101", 1), "/101", False, Seen(9, "/101")),
        (("101", 1), None, False, Seen(9, None)),
        (("101", 2), "/101", True, None),
        (("102", 1), "/101", True, None),
        (("0", 9), "/101", True, None),
        (None, "/101", True, Seen(9, "/101")),
        (None, "/101", False, None),
        (None, None, True, None),
    ],
    ids=[
        "init",
        "init elsewhere",
        "not the first",
        "another's",
        "the node's",
        "plain kernel",
        "plain, not the first",
        "plain, elsewhere",
    ],
)
def test_whom_the_kernel_shows_as_the_first(
    monkeypatch: pytest.MonkeyPatch, told, place, first, wanted
) -> None:
    monkeypatch.setattr(openvz.proc, "virtuozzo_ve", lambda _: told)
    monkeypatch.setattr(openvz.seen, "group_of", lambda _, __: place)
    monkeypatch.setattr(openvz.seen, "is_first_process", lambda _: first)
    assert openvz.believed(9, "101", ("/machine.slice/101", "/101")) == wanted


async def test_a_container_without_a_first_process_is_not_called_stopped(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add_6()
    group = node.path / "cgroup/101"
    group.mkdir(parents=True)
    monkeypatch.setattr(openvz.cgroup, "hierarchies", lambda: (node.path / "cgroup",))
    for state, wanted in [("RUNNING\n", VeState.UNKNOWN), ("STOPPED\n", VeState.STOPPED)]:
        (group / "ve.state").write_text(state)
        ve = await node.ve()
        assert ve.state is wanted
        assert (ve.busy is not None) is (wanted is VeState.UNKNOWN)


# --- what cannot be read ---------------------------------------------------------------------


async def test_a_configuration_that_others_can_write_is_not_believed(node: Node) -> None:
    node.add_6()
    node.add_6("102")
    (node.path / "etc/conf/102.conf").chmod(0o666)
    with pytest.raises(PlatformError, match=r"102.conf: others than root") as caught:
        await node.platform().list_ves()
    assert [ve.native_id for ve in caught.value.partial] == ["101"]


async def test_a_configuration_that_was_read_before_leaves_its_container_busy(node: Node) -> None:
    node.add_6()
    node.add_7()
    platform = node.platform()
    assert len(await platform.list_ves()) == 2
    (node.vz / f"private/{UUID}").rename(node.vz / "away")
    with pytest.raises(PlatformError, match="leads nowhere") as caught:
        await platform.list_ves()
    assert [(ve.native_id, ve.busy is None) for ve in caught.value.partial] == [
        (UUID, False),
        ("101", True),
    ]
    (node.vz / "away").rename(node.vz / f"private/{UUID}")
    assert [ve.busy for ve in await platform.list_ves()] == [None, None]


async def test_a_link_that_led_nowhere_from_the_start_is_nobody(node: Node) -> None:
    (node.path / f"etc/conf/{UUID}.conf").symlink_to(node.vz / "nothing")
    assert await node.platform().list_ves() == []


async def test_files_that_hang_hold_nobody_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.add_6()
    platform = node.platform()
    await platform.list_ves()
    lock = node.vz / "lock/101.lck"
    lock.parent.mkdir()
    os.mkfifo(lock)  # to open it waits for a writer
    monkeypatch.setattr(openvz, "_ANSWER_S", 0.05)
    try:
        for _ in range(2):
            with pytest.raises(PlatformError, match="does not answer") as caught:
                await platform.list_ves()
            assert "does not answer" in (caught.value.partial[0].busy or "")
    finally:
        lock.open("w").close()
    lock.unlink()
    monkeypatch.setattr(openvz, "_ANSWER_S", 60)
    found: list[Ve] = []
    async with asyncio.timeout(60):
        while not found:
            with suppress(PlatformError):  # until what was under way has ended
                found = await platform.list_ves()
            await asyncio.sleep(0.01)
    assert [ve.busy for ve in found] == [None]


async def test_configurations_that_are_gone_leave_all_busy(node: Node) -> None:
    node.add_6()
    platform = node.platform()
    await platform.list_ves()
    (node.path / "etc/conf").rename(node.path / "etc/away")
    with pytest.raises(PlatformError, match="is gone") as caught:
        await platform.list_ves()
    assert [ve.busy is None for ve in caught.value.partial] == [False]


async def test_a_descriptor_that_is_damaged_claims_nothing(node: Node) -> None:
    node.add_6()
    node.write("vz/private/101/root.hdd/DiskDescriptor.xml", DESCRIPTOR[:400])
    node.mount(str(node.vz / "root/101"), Devno(182, 1))
    with pytest.raises(PlatformError, match=r"DiskDescriptor.xml: ") as caught:
        await node.platform().list_ves()
    assert caught.value.partial[0].volumes == ()


async def test_without_openvz_there_is_nothing(tmp_path: Path) -> None:
    assert await OpenvzPlatform(str(tmp_path)).list_ves() == []


# --- the formats -----------------------------------------------------------------------------


async def test_the_variable_fswatch_is_what_the_owner_wishes(node: Node) -> None:
    node.add_6()
    assert (await node.ve()).labels == {}
    path = "etc/conf/101.conf"
    node.write(path, (node.path / path).read_text() + 'FSWATCH="approve"\n')
    assert (await node.ve()).labels == {"fswatch": "approve"}


def test_lines_of_a_configuration() -> None:
    text = 'A=1\n B="x y"\nC=\'z\'\n#D=4\nE=\nF="open\nlower=1\nA=2\n'
    assert read_config(text) == {"A": "2", "B": "x y", "C": "z", "E": "", "F": '"open'}


def test_the_disks_of_a_configuration() -> None:
    text = "enabled=yes,size=102400,uuid={x},image=hdd.73a0,mnt=/home;;nothing"
    assert read_disks(text, "/vz/private/7", "7") == [
        Disk(path="/vz/private/7/root.hdd"),
        Disk(path="/vz/private/7/hdd.73a0", mountpoint="/home"),
    ]
