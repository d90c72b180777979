"""Who rests on what, and who depends on whom, in a view of a node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fswatchd import views
from fswatchd.devno import Devno
from fswatchd.inventory.model import Backing, BlockDevice, NamespaceKey, Superblock, VeId
from fswatchd.inventory.view import NodeView
from tests.unit.inventory.test_lookup import INSIDE, NODE, superblock, ve, view

DISK, PART = Devno(8, 0), Devno(8, 1)


def loop_on(minor: int, host: Devno) -> BlockDevice:
    backing = Backing(kind="loop", image=f"/img{minor}", image_devno=host, image_inode=minor)
    return BlockDevice(
        devno=Devno(7, minor), name=f"loop{minor}", kind="loop", disk_sequence=1, backing=backing
    )


def node() -> NodeView:
    """ve101 on loop1, in an image on loop0 that the node has mounted, on a partition of a disk."""
    root = replace(superblock(9, (NODE, "/")), devno=PART, device="sda1")
    host = superblock(0, (NODE, "/vz"))
    own = superblock(1, (INSIDE, "/"))
    devices = [
        BlockDevice(devno=DISK, name="sda", kind="disk"),
        BlockDevice(devno=PART, name="sda1", kind="partition", lower=(DISK,)),
        loop_on(0, PART),
        loop_on(1, host.devno),
    ]
    return view(
        ve("lxc", "ve101"),
        ve("lxc", "ve102"),
        superblocks=(root, host, own),
        owners={INSIDE: "lxc:ve101", NODE: "the node"},
        devices={device.devno: device for device in devices},
        image_owners={(host.devno, 77): VeId("lxc:ve102")},
    )


def test_the_way_down_is_told_nearest_first() -> None:
    assert node().beneath(Devno(7, 1)) == (Devno(7, 0), PART, DISK)


def test_who_depends_through_the_stack_is_no_user() -> None:
    seen = node()
    for lower in (Devno(7, 0), PART, DISK):
        assert set(seen.dependents(lower).ves) == {"lxc:ve101", "lxc:ve102"}
        assert lower not in seen.users or seen.users[lower].ves == ()
    assert seen.affected(Devno(7, 1)) == ("lxc:ve101",)
    assert seen.dependents(Devno(7, 1)).ves == ()
    assert seen.dependents(PART).foreign == ("the node (through loop0)",)


def test_a_circle_ends() -> None:
    """No kernel builds one; a reading in the middle of a change may look like it."""
    one, two = loop_on(1, Devno(7, 2)), loop_on(2, Devno(7, 1))
    seen = view(devices={one.devno: one, two.devno: two})
    assert seen.beneath(one.devno) == (two.devno,)
    assert seen.dependents(one.devno).ves == ()


def test_the_words_lead_from_the_ve_to_the_disk() -> None:
    seen = node()
    layers = views.stack(seen, seen.superblocks[Devno(7, 1)], VeId("lxc:ve101"))
    assert views.chain(layers) == (
        "/ is ext4 on loop1, image /img1, on ext4 /vz (loop0), image /img0, on ext4 / (sda1), "
        "partition sda1 of sda"
    )


@pytest.mark.parametrize("images", [10, 300])
def test_a_host_of_many_images_names_all(images: int) -> None:
    host = superblock(0, (NODE, "/vz"))
    devices = [loop_on(0, PART), *(loop_on(n, host.devno) for n in range(1, images + 1))]
    owners = {(host.devno, n): VeId(f"lxc:ve{n}") for n in range(1, images + 1)}
    seen = view(
        *(ve("lxc", f"ve{n}") for n in range(1, images + 1)),
        superblocks=(host,),
        devices={device.devno: device for device in devices},
        owners={NODE: "the node"},
        image_owners=owners,
    )
    assert len(seen.affected(host.devno)) == images


def layered(upper: Superblock, lower: Superblock, *places: tuple[NamespaceKey, str]) -> Superblock:
    found = replace(superblock(0, *places), devno=Devno(0, 50), fstype="overlay", device="overlay")
    return replace(
        found,
        backing=Backing(kind="overlay"),
        members=(upper.devno, lower.devno),
        bases=(lower.devno,),
    )


def test_an_overlay_concerns_whoever_has_it_and_hides_nothing_beneath() -> None:
    upper, lower = superblock(0, (NODE, "/vz")), superblock(1, (NODE, "/base"))
    overlay = layered(upper, lower, (INSIDE, "/"))
    seen = view(
        ve("lxc", "ve101"),
        superblocks=(upper, lower),
        overlays={overlay.devno: overlay},
        owners={INSIDE: "lxc:ve101", NODE: "the node"},
    )
    for one in (upper, lower):
        assert seen.affected(one.devno) == ("lxc:ve101",)
    assert seen.affected(Devno(7, 9)) == ()
    assert seen.superblocks_of(VeId("lxc:ve101")) == []


def test_an_image_on_btrfs_rests_on_the_superblock_and_not_on_the_subvolume() -> None:
    host = replace(superblock(0, (NODE, "/vz")), devno=Devno(0, 41), fstype="btrfs")
    subvolume = Devno(0, 43)
    own = superblock(1, (INSIDE, "/"))
    seen = view(
        ve("lxc", "ve101"),
        ve("lxc", "ve102"),
        superblocks=(host, own),
        devices={Devno(7, 1): loop_on(1, subvolume)},
        owners={INSIDE: "lxc:ve101", NODE: "the node"},
        image_owners={(Devno(0, 44), 5): VeId("lxc:ve102")},
        hosts={subvolume: host.devno, Devno(0, 44): host.devno},
    )
    assert seen.beneath(Devno(7, 1)) == (host.devno,)
    assert seen.affected(host.devno) == ("lxc:ve101", "lxc:ve102")


@pytest.mark.parametrize(
    ("blamed", "line"),
    [("ext4 /vz (loop0)", 2), ("/dev/loop0", 3), ("/dev/loop1", 1), ("ext4 / (sda1)", 4)],
)
def test_the_layer_that_is_to_blame_is_marked_on_the_way_down(blamed: str, line: int) -> None:
    seen = node()
    layers = views.stack(seen, seen.superblocks[Devno(7, 1)], VeId("lxc:ve101"))
    cause = {"object": blamed, "text": "it is full"}
    marked = [
        number
        for number, text in enumerate(views.lines(layers, cause))
        if text.endswith("<-- the cause: it is full")
    ]
    assert marked == [line]
    over = {**cause, "until": "2026-11-21T14:57:50Z"}
    assert not any("cause" in text for text in views.lines(layers, over))


def test_what_was_found_out_about_one_filesystem_changes_that_one_only() -> None:
    seen = node()
    own = seen.superblocks[Devno(7, 1)]
    assert seen.describe(own).uuid is None
    known = seen.identified(replace(own, uuid="u-1"), {})
    assert [found.uuid for found in known.superblocks_of(VeId("lxc:ve101"))] == ["u-1"]
    assert known.describe(known.superblocks[Devno(7, 1)]).uuid == "u-1"
    assert seen.superblocks[Devno(7, 1)].uuid is None
    assert known.users == seen.users
    assert known.dependents(DISK) == seen.dependents(DISK)


def test_who_holds_a_mount_out_of_its_reach_is_no_user_but_named() -> None:
    seen = node()
    own = seen.superblocks[Devno(7, 1)]
    other = replace(own.mounts[0], namespace=NODE, unreached=True)
    found = replace(seen, superblocks={own.devno: replace(own, mounts=(*own.mounts, other))}).users[
        own.devno
    ]
    assert found.ves == ("lxc:ve101",)
    assert found.foreign == ("the node (a mount that it cannot reach, left from when it started)",)
