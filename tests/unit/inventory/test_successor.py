"""Which mounted filesystem is the volume that an incident remembers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.incidents import Filesystem
from fswatchd.inventory.model import Backing, Superblock, Ve, VeId
from fswatchd.inventory.view import NodeView
from tests.unit import builders

UUID = "11111111-2222-3333-4444-555555555555"
OTHER_UUID = "99999999-2222-3333-4444-555555555555"
HOST = Devno(8, 1)
IMAGE = builders.filesystem()
VOLUME = builders.filesystem(device="dm-3", devno=Devno(253, 3), image=None, image_inode=None)
MINE = ("lxc:ve101",)
DEVICE = Backing(kind="device")


def image(path: str | None, inode: int, uuid: str | None, host: Devno = HOST) -> Superblock:
    backing = Backing(kind="loop", image=path, image_devno=host, image_inode=inode)
    return mounted("loop4", Devno(7, 4), uuid, backing)


def mounted(device: str, devno: Devno, uuid: str | None, backing: Backing = DEVICE) -> Superblock:
    return Superblock(
        devno=devno,
        fstype="ext4",
        device=device,
        disk_sequence=50,
        mounts=(),
        backing=backing,
        uuid=uuid,
    )


def view_of(*found: Superblock, owner: str | None = None) -> NodeView:
    ves = {}
    owners = {}
    if owner is not None:
        ve_id = VeId(owner)
        ves[ve_id] = Ve(
            ve_id=ve_id, platform="lxc", native_id=owner, name=owner, state=VeState.RUNNING
        )
        owners = {one.devno: ve_id for one in found}
    return NodeView(superblocks={one.devno: one for one in found}, ves=ves, device_owners=owners)


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (image("/vz/ve101.raw", 77, UUID), True),
        (image("/vz/renamed.raw", 77, UUID), True),
        (image(None, 77, UUID), True),
        (image("/vz/ve101.raw", 77, None), True),
        (image("/vz/ve101.raw", 78, UUID), True),
        (image("/vz/ve101.raw", 77, UUID, Devno(0, 52)), True),
        (image("/vz/ve102.raw", 77, OTHER_UUID), False),
        (image("/vz/ve102.raw", 77, None), False),
        (image("/vz/ve101.raw", 78, OTHER_UUID), False),
        (image("/vz/ve101.raw", 78, None), False),
        (image("/vz/ve102.raw", 78, UUID), False),
        (mounted("loop3", builders.LOOP3, UUID), False),
    ],
    ids=[
        "unchanged",
        "renamed",
        "without-a-path",
        "without-a-uuid",
        "exchanged",
        "host-renumbered",
        "inode-reused",
        "inode-reused-without-a-uuid",
        "made-anew",
        "made-anew-without-a-uuid",
        "copied",
        "not-an-image",
    ],
)
def test_an_image_is_known_by_inode_path_and_uuid(now: Superblock, *, same: bool) -> None:
    assert view_of(now).successor(IMAGE, MINE) is (now if same else None)


@pytest.mark.parametrize(
    ("device", "uuid", "same"),
    [
        ("dm-3", UUID, True),
        ("dm-5", UUID, True),
        ("dm-3", OTHER_UUID, False),
        ("dm-3", None, False),
    ],
)
def test_a_device_is_known_by_the_uuid_on_it(device: str, uuid: str | None, *, same: bool) -> None:
    now = mounted(device, Devno(253, 7), uuid)
    assert view_of(now, owner=MINE[0]).successor(VOLUME, MINE) is (now if same else None)


@pytest.mark.parametrize(
    ("devno", "device", "known", "ves", "same"),
    [
        (Devno(253, 7), "dm-7", VOLUME, MINE, False),
        (Devno(253, 3), "dm-3", VOLUME, MINE, False),
        (Devno(253, 3), "dm-3", replace(VOLUME, disk_sequence=50), MINE, True),
        (Devno(253, 3), "dm-3", replace(VOLUME, disk_sequence=50, unmounted=True), MINE, True),
        (Devno(253, 3), "dm-3", replace(VOLUME, disk_sequence=50, boot="before"), MINE, False),
        (Devno(253, 7), "dm-7", VOLUME, (), False),
        (Devno(253, 7), "dm-3", VOLUME, (), True),
        (Devno(253, 7), "dm-7", replace(VOLUME, boot="before"), (), True),
    ],
    ids=[
        "snapshot",
        "snapshot-with-its-name",
        "itself",
        "itself-again",
        "after-a-boot",
        "snapshot-of-the-node",
        "of-the-node",
        "of-the-node-after-a-boot",
    ],
)
def test_what_the_node_has_mounted_with_its_uuid_may_be_a_snapshot(
    devno: Devno, device: str, known: Filesystem, ves: tuple[str, ...], *, same: bool
) -> None:
    now = mounted(device, devno, UUID)
    assert view_of(now).successor(known, ves) is (now if same else None)


def test_a_snapshot_does_not_hide_the_volume() -> None:
    own, snapshot = (mounted(f"dm-{minor}", Devno(253, minor), UUID) for minor in (5, 9))
    view = view_of(own, owner=MINE[0])
    both = replace(view, superblocks={one.devno: one for one in (own, snapshot)})
    assert both.successor(VOLUME, MINE) is own


def test_a_device_without_a_uuid_is_known_by_nothing() -> None:
    now = mounted("dm-3", Devno(253, 3), None)
    assert view_of(now).successor(replace(VOLUME, uuid=None), MINE) is None


@pytest.mark.parametrize(("owner", "same"), [("lxc:ve101", True), ("lxc:ve102", False)])
@pytest.mark.parametrize(
    ("known", "now"),
    [
        (VOLUME, mounted("dm-3", Devno(253, 3), UUID)),
        (VOLUME, mounted("dm-5", Devno(253, 5), UUID)),
        (IMAGE, image("/vz/ve102.raw", 77, UUID)),
        (IMAGE, image("/vz/ve101.raw", 77, UUID)),
    ],
    ids=["name-reused", "renumbered", "inode-reused", "given-away"],
)
def test_what_has_the_uuid_of_one_template_is_not_taken_from_another_ve(
    known: Filesystem, now: Superblock, owner: str, *, same: bool
) -> None:
    assert view_of(now, owner=owner).successor(known, MINE) is (now if same else None)


def test_of_two_that_may_be_it_none_is_taken() -> None:
    """Snapshots of one volume (`nouuid`), an image that is attached twice."""
    both = [mounted(f"dm-{minor}", Devno(253, minor), UUID) for minor in (5, 6)]
    assert view_of(*both, owner=MINE[0]).successor(VOLUME, MINE) is None
    twice = [replace(image("/vz/ve101.raw", 77, UUID), devno=Devno(7, n)) for n in (4, 5)]
    assert view_of(*twice).successor(IMAGE, MINE) is None


def test_of_two_with_one_uuid_the_device_keeps_its_name() -> None:
    both = [mounted(f"dm-{minor}", Devno(253, minor), UUID) for minor in (3, 6)]
    assert view_of(*both, owner=MINE[0]).successor(VOLUME, MINE) is both[0]
