from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fswatchd.inventory.model import GuestFilesystem, Ve, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import proc
from fswatchd.platforms import libvirt, seen
from fswatchd.platforms.libvirt import LibvirtPlatform

UUID = "dcf47dbd-46d1-4d5b-b442-262a806a333a"
# A status file, after libvirt's tests/qemustatusxml2xmldata (modern-in.xml, backup-pull-in.xml,
# migration-out-nbd-in.xml, blockjob-mirror-in.xml); what is not read is left out, but for samples.
STATUS = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST.
-->
<domstatus state='{state}' reason='booted' pid='{pid}'>
  <monitor path='/var/lib/libvirt/qemu/domain-4-web/monitor.sock' type='unix'/>
  <namespaces>
    <mount/>
  </namespaces>
  <vcpus>
    <vcpu id='0' pid='7696'/>
  </vcpus>
{job}
  <devices>
    <device alias='virtio-disk0'/>
  </devices>
  <agentTimeout>-2</agentTimeout>
  <domain type='kvm' id='4'>
    <name>web</name>
    <uuid>dcf47dbd-46d1-4d5b-b442-262a806a333a</uuid>
    <title>The shop's front</title>
    <metadata>
      <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
        <nova:package version="25.0.0"/>
        <nova:name>shop-1</nova:name>
        <nova:flavor name="m1.small"><nova:disk>20</nova:disk></nova:flavor>
        <nova:owner>
          <nova:user uuid="1f">ann</nova:user>
          <nova:project uuid="2e">acme</nova:project>
        </nova:owner>
      </nova:instance>
    </metadata>
    <devices>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2' discard='unmap'/>
        <source file='/var/lib/libvirt/images/web.qcow2' index='3'/>
        <backingStore type='file' index='1'>
          <format type='qcow2'/>
          <source file='/var/lib/libvirt/images/base.qcow2'/>
          <backingStore/>
        </backingStore>
        <target dev='vda' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'>
        <driver name='qemu' type='raw'/>
        <source file='/srv/web data.img'/>
        <target dev='vdb' bus='virtio'/>
      </disk>
      <disk type='block' device='disk'>
        <driver name='qemu' type='raw'/>
        <source dev='/dev/vg/web'/>
        <target dev='vdc' bus='virtio'/>
      </disk>
      <disk type='network' device='disk'>
        <driver name='qemu' type='raw'/>
        <source protocol='rbd' name='pool/web'><host name='mon' port='6789'/></source>
        <target dev='vdd' bus='virtio'/>
      </disk>
      <disk type='file' device='cdrom'>
        <driver name='qemu' type='raw'/>
        <source file='/var/lib/libvirt/images/rescue.iso'/>
        <target dev='hda' bus='ide'/>
        <readonly/>
      </disk>
      <disk type='block' device='cdrom'>
        <target dev='hdb' bus='ide'/>
      </disk>
      <channel type='unix'>
        <source mode='bind' path='/run/libvirt/qemu/channel/4-web/org.qemu.guest_agent.0'/>
        <target type='virtio' name='org.qemu.guest_agent.0' state='{agent}'/>
      </channel>
      <channel type='spicevmc'>
        <target type='virtio' name='com.redhat.spice.0' state='connected'/>
      </channel>
    </devices>
  </domain>
</domstatus>
"""
DEFINED = """<domain type='kvm'>
  <name>db</name>
  <uuid>0439a4a8-db56-4933-9183-d8681d7b0746</uuid>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/db'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""
MIGRATION = "  <job type='none' async='migration out' phase='perform3' flags='0x42'/>"
BACKUP = """  <blockjobs active='yes'>
    <blockjob name='backup-vda-libvirt-3-format' type='backup' state='running'>
      <disk dst='vda'/>
    </blockjob>
  </blockjobs>"""


class Node:
    """A libvirt's files, in a directory of their own."""

    def __init__(self, path: Path) -> None:
        self.run, self.defined = path / "run", path / "etc"
        self.run.mkdir()
        (self.defined / "networks").mkdir(parents=True)
        (self.defined / "networks" / "default.xml").write_text("<network/>")
        self.platform = LibvirtPlatform(str(self.run), str(self.defined))

    def starts(
        self,
        pid: int | None = None,
        *,
        state: str = "running",
        agent: str = "disconnected",
        job: str = "  <blockjobs active='no'/>",
    ) -> None:
        """`web` runs in this process, as far as libvirt's files say."""
        pid = os.getpid() if pid is None else pid
        text = STATUS.format(pid=pid, state=state, agent=agent, job=job)
        (self.run / "web.xml").write_text(text)
        (self.run / "web.pid").write_text(f"{pid}\n")

    async def ve(self, name: str = "web") -> Ve:
        return next(ve for ve in await self.platform.list_ves() if ve.name == name)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(libvirt, "_OWNER", os.getuid())
    return Node(tmp_path)


async def test_a_guest_that_runs(node: Node) -> None:
    node.starts()
    ve = await node.ve()
    assert (ve.ve_id, ve.native_id, ve.state) == ("libvirt:web", UUID, "running")
    assert ve.aliases == (f"libvirt:{UUID}",)
    assert (ve.init_pid, ve.init_started) == (os.getpid(), proc.start_time(os.getpid()))
    assert ve.labels == {
        "title": "The shop's front",
        "nova.name": "shop-1",
        "nova.project": "acme",
    }
    assert ve.commands.start == ("virsh", "--connect", "qemu:///system", "start", UUID)
    assert [c[3] for c in (ve.commands.stop, ve.commands.kill)] == ["shutdown", "destroy"]


async def test_its_disks_are_its_volumes_and_nothing_else(node: Node) -> None:
    """Neither what a disk rests on, which others share, nor what is in a drive."""
    node.starts()
    assert (await node.ve()).volumes == (
        Volume(image="/var/lib/libvirt/images/web.qcow2", mountpoint="", format="qcow2"),
        Volume(image="/srv/web data.img", mountpoint="", format="disk"),
        Volume(device="/dev/vg/web", mountpoint="", format="disk"),
    )


async def test_the_mounts_of_its_process_are_not_its_own(node: Node) -> None:
    node.starts()
    ve = await node.ve()
    assert (ve.guest, ve.namespace, ve.namespace_id) == (True, None, None)
    assert ve.unrepairable == libvirt.GUEST


async def test_one_that_is_only_defined_is_stopped(node: Node) -> None:
    (node.defined / "db.xml").write_text(DEFINED)
    node.starts()
    db, web = sorted(await node.platform.list_ves(), key=lambda ve: ve.name)
    assert (db.ve_id, db.state, db.init_pid, db.busy) == ("libvirt:db", "stopped", None, None)
    assert db.volumes[0].device == "/dev/vg/db"
    text = DEFINED.replace("<name>db", "<name>web").replace(db.native_id, UUID)
    (node.defined / "web.xml").write_text(text)
    assert (await node.ve()) == web
    (node.run / "web.xml").unlink()
    assert (await node.ve()).state == "stopped"


@pytest.mark.parametrize("state", ["paused", "pmsuspended"])
async def test_one_that_is_paused_is_frozen(node: Node, state: str) -> None:
    node.starts(state=state)
    assert (await node.ve()).state == "frozen"


@pytest.mark.parametrize(
    ("job", "busy"),
    [
        (MIGRATION, "libvirt: job: migration out"),
        (BACKUP, "libvirt: block job: backup"),
        ("  <blockjobs active='yes'/>", "libvirt: block job"),  # a mirror, before libvirt 5.10
        ("  <job type='modify' async='none'/>\n  <blockjobs active='no'/>", None),
        ("", None),
    ],
)
async def test_what_libvirt_does_with_it_is_told(node: Node, job: str, busy: str | None) -> None:
    node.starts(job=job)
    assert (await node.ve()).busy == busy


@pytest.fixture
def told(node: Node, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[GuestFilesystem, ...]]:
    """What agents have told; nobody is asked."""
    node.platform.asked.answer = {}
    monkeypatch.setattr(node.platform.asked, "look", lambda _: node.platform.asked.answer)
    return node.platform.asked.answer


async def test_an_agent_that_is_connected_is_asked_and_no_other(
    node: Node, told: dict[str, tuple[GuestFilesystem, ...]]
) -> None:
    inside = GuestFilesystem(device="vda1", fstype="ext4", mountpoint="/")
    told[UUID] = (inside,)
    node.starts(agent="disconnected")
    ve = await node.ve()
    assert (ve.guest_filesystems, node.platform._agents) == ((), frozenset())
    node.starts(agent="connected")
    ve = await node.ve()
    assert (ve.guest_filesystems, node.platform._agents) == ((inside,), frozenset({(UUID, "4")}))


@pytest.mark.usefixtures("told")
async def test_its_agent_freezes_it_where_it_answers(node: Node) -> None:
    node.starts(agent="connected")
    commands = (await node.ve()).commands
    assert (commands.freeze[3], commands.thaw[3]) == ("domfsfreeze", "domfsthaw")
    (node.run / "web.xml").unlink()
    node.starts(agent="disconnected")
    commands = (await node.ve()).commands
    assert (commands.freeze[3], commands.thaw[3]) == ("suspend", "resume")


async def test_a_process_that_is_not_its_own_is_not_believed(node: Node) -> None:
    """The file was left behind, and its number was given away: init's pid file is another."""
    node.starts()
    (node.run / "web.pid").write_text("1\n")
    assert (await node.ve()).init_pid is None
    (node.run / "web.pid").unlink()
    assert (await node.ve()).state == "stopped"


async def test_a_process_in_the_cgroup_of_another_guest_is_not_believed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.starts()
    (node.run / "web.pid").unlink()
    groups = {"": r"/machine.slice/machine-qemu\x2d4\x2dweb.scope/libvirt/emulator"}
    monkeypatch.setattr(seen.proc, "cgroups", lambda _: groups)
    assert (await node.ve()).cgroup == r"/machine.slice/machine-qemu\x2d4\x2dweb.scope"
    for other in (
        r"/machine.slice/machine-qemu\x2d41\x2dweb.scope",
        r"/user.slice/user-7.slice/user@7.service/machine-qemu\x2d4\x2dweb.scope",
        "/machine/qemu-41-web.libvirt-qemu",
    ):
        groups[""] = other
        assert (await node.ve()).init_pid is None
    groups[""] = "/machine/prod.partition/qemu-4-web.libvirt-qemu/emulator"
    assert (await node.ve()).cgroup == "/machine/prod.partition/qemu-4-web.libvirt-qemu"


async def test_a_status_that_cannot_be_read_is_told_and_the_state_is_not_known(node: Node) -> None:
    (node.defined / "db.xml").write_text(DEFINED)
    (node.run / "db.xml").write_text("<domstatus state='running'")
    with pytest.raises(PlatformError, match=r"run/db\.xml") as caught:
        await node.platform.list_ves()
    assert [(ve.name, ve.state) for ve in caught.value.partial] == [("db", "unknown")]


async def test_a_file_that_is_not_roots_says_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.starts()
    monkeypatch.setattr(libvirt, "_OWNER", os.getuid() + 1)
    with pytest.raises(PlatformError) as caught:
        await node.platform.list_ves()
    assert caught.value.partial == []


async def test_a_file_is_read_again_only_when_it_has_changed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.starts()
    read = []
    real = libvirt.read_file
    monkeypatch.setattr(libvirt, "read_file", lambda path: read.append(path) or real(path))
    for _ in range(3):
        await node.ve()
    assert len(read) == 1
    node.starts(state="paused")
    assert (await node.ve()).state == "frozen"


async def test_without_libvirt_there_is_nothing(tmp_path: Path) -> None:
    assert await LibvirtPlatform(str(tmp_path / "a"), str(tmp_path / "b")).list_ves() == []


@pytest.mark.parametrize(
    "text",
    ["<network><name>default</name></network>", "<domain><name>x</name><uuid>1</uuid></domain>"],
)
def test_what_is_no_guest(text: str) -> None:
    assert libvirt.read_domain(ElementTree.fromstring(text)) is None
