"""Who beside the VE may own what it uses, in a view of a node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fswatchd import views
from fswatchd.devno import Devno
from fswatchd.inventory import ownership, serving
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    NamespaceMount,
    RemoteFilesystem,
    Superblock,
    VeId,
)
from fswatchd.inventory.view import NodeView
from fswatchd.kernel.mounts import Mount
from fswatchd.kernel.remote import is_remote
from tests.unit.inventory.test_lookup import INSIDE, NODE, superblock, ve, view

SHARE, DISK = Devno(0, 45), Devno(8, 0)
OTHER = NamespaceKey(3)


def place(devno: Devno, fstype: str, source: str, point: str, where: NamespaceKey = NODE):
    mount = Mount(
        mount_id=1,
        devno=devno,
        fstype=fstype,
        root="/",
        point=point,
        source=source,
        superblock_options=(),
        superblock_readonly=False,
        readonly=False,
    )
    return NamespaceMount(namespace=where, mount=mount)


def remote(
    *places: tuple[NamespaceKey, str],
    fstype: str = "nfs4",
    source: str = "nas:/export",
    devno: Devno = SHARE,
    **more: object,
) -> RemoteFilesystem:
    mounts = tuple(place(devno, fstype, source, point, where) for where, point in places)
    return RemoteFilesystem(devno=devno, fstype=fstype, source=source, mounts=mounts, **more)


def on(host: Devno, minor: int = 1) -> BlockDevice:
    backing = Backing(kind="loop", image=f"/img{minor}", image_devno=host, image_inode=minor)
    return BlockDevice(devno=Devno(7, minor), name=f"loop{minor}", kind="loop", backing=backing)


def node(*devices: BlockDevice, **more: object) -> NodeView:
    """ve101 on loop1, with these devices."""
    own: Superblock = superblock(1, (INSIDE, "/"))
    values: dict[str, object] = {
        "superblocks": (own,),
        "owners": {INSIDE: "lxc:ve101", OTHER: "lxc:ve102", NODE: "the node"},
        "devices": {device.devno: device for device in devices},
    }
    return view(ve("lxc", "ve101"), ve("lxc", "ve102"), **(values | more))


def shared(seen: NodeView) -> str | None:
    return ownership.shared_with(seen, Devno(7, 1))


@pytest.mark.parametrize(
    "fstype",
    [
        "nfs",
        "nfs4",
        "ceph",
        "cifs",
        "smb3",
        "fuse.glusterfs",
        "fuse.sshfs",
        "fuse",
        "9p",
        "virtiofs",
    ],
)
def test_an_image_that_is_served_is_others_too(fstype: str) -> None:
    assert is_remote(fstype)
    share = remote((NODE, "/vz"), fstype=fstype)
    words = shared(node(on(SHARE), remote={SHARE: share}))
    assert words is not None
    assert words.startswith(f"its image lies on {fstype} /vz (nas:/export)")


@pytest.mark.parametrize("fstype", ["ext4", "fuse.lxcfs", "fuseblk", "fusectl", "tmpfs", "overlay"])
def test_what_is_this_nodes(fstype: str) -> None:
    assert not is_remote(fstype)


@pytest.mark.parametrize("fstype", ["ocfs2", "gfs2"])
def test_a_cluster_filesystem_is_others_too_also_beneath(fstype: str) -> None:
    host = replace(superblock(0, (NODE, "/vz")), fstype=fstype)
    own = superblock(1, (INSIDE, "/"))
    seen = node(on(host.devno), superblocks=(host, own))
    assert "/vz is a cluster filesystem" in (shared(seen) or "")
    assert ownership.shared_with(seen, host.devno) is not None


@pytest.mark.parametrize("name", ["drbd0", "rbd3", "rbd3p1", "nbd0", "drbd1000"])
def test_a_replicated_device_is_others_too_at_any_depth(name: str) -> None:
    lower = BlockDevice(devno=DISK, name=name, kind="disk")
    host = replace(superblock(0, (NODE, "/vz")), devno=DISK, device=name)
    seen = node(on(DISK), lower, superblocks=(host, superblock(1, (INSIDE, "/"))))
    assert f"/dev/{name} is" in (shared(seen) or "")


@pytest.mark.parametrize("name", ["sda", "dm-0", "drbdx", "vda", "nvme0n1"])
def test_a_device_of_this_node_is_not(name: str) -> None:
    lower = BlockDevice(devno=DISK, name=name, kind="disk")
    device = replace(on(DISK), kind="dm", backing=Backing(kind="device"), lower=(DISK,))
    assert shared(node(device, lower)) is None


def test_an_nbd_that_leads_to_a_file_of_this_node_is_not() -> None:
    backing = Backing(kind="qcow2", image_devno=Devno(8, 9), image_inode=3)
    lower = BlockDevice(devno=DISK, name="nbd0", kind="nbd", backing=backing)
    device = replace(on(DISK), kind="partition", backing=Backing(kind="device"), lower=(DISK,))
    assert shared(node(device, lower)) is None


def test_a_lun_is_others_too_unless_a_local_filesystem_holds_it() -> None:
    lun = BlockDevice(devno=DISK, name="sda", kind="disk", transport="iSCSI")
    volume = replace(on(DISK), kind="dm", backing=Backing(kind="device"), lower=(DISK,))
    assert "/dev/sda is reached over iSCSI" in (shared(node(volume, lun)) or "")
    host = replace(superblock(0, (NODE, "/vz")), devno=DISK, device="sda", fstype="xfs")
    held = node(on(DISK), lun, superblocks=(host, superblock(1, (INSIDE, "/"))))
    assert shared(held) is None


def test_multiple_mount_protection() -> None:
    own = replace(superblock(1, (INSIDE, "/")), mmp=True)
    assert "multiple mount protection" in (shared(node(on(DISK), superblocks=(own,))) or "")


def test_a_stopped_ves_image_is_judged_by_its_path_alone() -> None:
    seen = node(remote={SHARE: remote((NODE, "/vz"))}, superblocks=(superblock(0, (NODE, "/")),))
    assert ownership.shared_image(seen, "/vz/ve101.raw") is not None
    assert ownership.shared_image(seen, "/vzlocal/ve101.raw") is None
    assert ownership.shared_image(seen, "/x/ve101.raw", SHARE) is not None


def test_the_way_down_names_the_server() -> None:
    share = remote((NODE, "/vz"))
    seen = node(on(SHARE), remote={SHARE: share})
    layers = views.stack(seen, seen.superblocks[Devno(7, 1)], VeId("lxc:ve101"))
    assert views.chain(layers) == ("/ is ext4 on loop1, image /img1, on nfs4 /vz (nas:/export)")


class TestServers:
    @pytest.mark.parametrize(
        ("source", "server"),
        [
            ("nas:/export", "nas"),
            ("10.0.0.5:/", "10.0.0.5"),
            ("[fd00::12]:/export", "fd00::12"),
            ("//nas.example.org/share", "nas.example.org"),
            ("nas:/a:/b", "nas"),
            ("export", ""),
            ("", ""),
        ],
    )
    def test_the_server_in_what_is_mounted(self, source: str, server: str) -> None:
        assert ownership.server_of(source) == server

    def test_all_names_of_one_address_are_one_server(self) -> None:
        mounts = {
            Devno(0, 1): remote(source="nas:/a", devno=Devno(0, 1), address="10.0.0.5"),
            Devno(0, 2): remote(source="10.0.0.5:/b", devno=Devno(0, 2), address="10.0.0.5"),
            Devno(0, 3): remote(source="other:/a", devno=Devno(0, 3), address="10.0.0.6"),
            Devno(0, 4): remote(source="//nas/a", devno=Devno(0, 4), fstype="cifs"),
        }
        seen = NodeView(remote=mounts)
        for name in ("nas", "10.0.0.5"):
            assert [r.source for r in ownership.served_from(seen, "nfs", name)] == [
                "nas:/a",
                "10.0.0.5:/b",
            ]
        assert [r.source for r in ownership.served_from(seen, "cifs", "nas")] == ["//nas/a"]
        assert ownership.served_from(seen, "nfs", None) == []


class TestServedByAVe:
    def appliance(self, **more: object) -> NodeView:
        """ve102 serves what ve101 has its image on, from its own filesystem on loop2."""
        share = remote((NODE, "/vz"), served_by=VeId("lxc:ve102"))
        theirs = superblock(2, (OTHER, "/"))
        disk = BlockDevice(devno=DISK, name="sda", kind="disk")
        volume = replace(on(DISK, 2), kind="dm", backing=Backing(kind="device"), lower=(DISK,))
        return node(
            on(SHARE),
            volume,
            disk,
            superblocks=(superblock(1, (INSIDE, "/")), theirs),
            remote={SHARE: share},
            **more,
        )

    def test_what_the_server_rests_on_lies_beneath(self) -> None:
        assert self.appliance().beneath(Devno(7, 1)) == (SHARE, Devno(7, 2), DISK)

    def test_those_who_are_served_depend_on_the_server(self) -> None:
        seen = self.appliance()
        assert seen.dependents(Devno(7, 2)).ves == ("lxc:ve101",)
        assert set(seen.affected(DISK)) == {"lxc:ve101", "lxc:ve102"}

    def test_it_is_found_by_what_it_declares(self) -> None:
        ves = [(VeId("a"), ("filer:/x",)), (VeId("b"), ("10.0.0.5", "nas:/export"))]
        assert serving.declared(ves, "nas:/export", "") == "b"
        assert serving.declared(ves, "nas:/other", "10.0.0.5") == "b"
        assert serving.declared(ves, "nas:/other", "10.0.0.6") is None
        assert serving.declared(ves, "filer:/y", "") is None


class TestTheNodesOwn:
    def own(self, *needed: tuple[str, Devno | None, str]) -> dict[Devno, str]:
        places = {
            Devno(8, 1): [place(Devno(8, 1), "ext4", "/dev/sda1", "/")],
            Devno(8, 2): [place(Devno(8, 2), "ext4", "/dev/sda2", "/var")],
            Devno(0, 30): [place(Devno(0, 30), "btrfs", "/dev/sdb", "/srv")],
            Devno(7, 1): [place(Devno(7, 1), "ext4", "/dev/loop1", "/vz")],
            Devno(7, 2): [place(Devno(7, 2), "ext4", "/dev/loop2", "/usr", INSIDE)],
        }
        return ownership.node_own(places, NODE, needed)

    def test_what_the_node_runs_from(self) -> None:
        assert self.own() == {
            Devno(8, 1): "the node, as its /",
            Devno(8, 2): "the node, as its /var",
        }

    def test_swap_and_state(self) -> None:
        found = self.own(
            ("/dev/sda3", Devno(8, 3), "swap"),
            ("/srv/fswatchd", Devno(0, 99), "state"),
            ("/vz/area", Devno(7, 1), "file"),
        )
        assert found[Devno(8, 3)] == "swap"
        assert found[Devno(0, 30)] == "state"
        assert found[Devno(7, 1)] == "file"
        assert Devno(7, 2) not in found

    def test_a_volume_that_is_declared_is_not_the_ves_alone_then(self) -> None:
        mounted = superblock(1, (NODE, "/var"))
        one = replace(ve("declared", "ve101"), node_mounts=True)
        owners = {mounted.backing.inode_key: one.ve_id}
        own = {mounted.devno: "the node, as its /var"}
        known = {"superblocks": (mounted,), "owners": {NODE: "the node"}, "image_owners": owners}
        assert view(one, **known).users[mounted.devno].foreign == ()
        assert view(one, own=own, **known).users[mounted.devno].foreign == (
            "the node, as its /var",
        )

    def test_a_disk_that_is_swapped_to_is_not_the_ves_alone(self) -> None:
        part = BlockDevice(devno=Devno(8, 3), name="sda3", kind="partition", lower=(DISK,))
        disk = BlockDevice(devno=DISK, name="sda", kind="disk")
        seen = node(on(DISK), part, disk, own={part.devno: "the node, which swaps to /dev/sda3"})
        assert seen.dependents(DISK).foreign == ("the node, which swaps to /dev/sda3",)
