"""What is made of what: backing files, origins, lower layers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory import bases
from fswatchd.inventory.images import ImageReader
from fswatchd.inventory.model import BlockDevice, ImageKey, VeId
from fswatchd.inventory.places import Places
from fswatchd.inventory.reader import NodeReader
from fswatchd.inventory.stack import StackReader
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block, nbd
from tests.unit.inventory.test_lookup import INSIDE, NODE, superblock, ve, view
from tests.unit.inventory.test_stack_graph import PART, layered, loop_on
from tests.unit.kernel.test_cow import third
from tests.unit.kernel.test_qcow2 import image

BASE, MIDDLE, TOP = (PART, 1), (PART, 2), (Devno(8, 17), 3)


def chained(**more) -> NodeView:
    """ve101 runs on a raw image; ve102, stopped, on two images above it, the last elsewhere."""
    return view(
        ve("lxc", "ve101"),
        ve("lxc", "ve102"),
        superblocks=(superblock(1, (INSIDE, "/")),),
        devices={Devno(7, 1): loop_on(1, PART)},
        owners={INSIDE: "lxc:ve101"},
        image_owners={BASE: VeId("lxc:ve101"), TOP: VeId("lxc:ve102")},
        image_bases={TOP: MIDDLE, MIDDLE: BASE},
        image_paths={BASE: "/vz/101.raw", MIDDLE: "/vz/mid.qcow2", TOP: "/fast/102.qcow2"},
        **more,
    )


def test_a_base_concerns_all_that_were_made_of_it() -> None:
    seen = chained()
    assert seen.chain(TOP) == (TOP, MIDDLE, BASE)
    assert seen.dependents(Devno(7, 1)).ves == ("lxc:ve102",)
    assert set(seen.affected(PART)) == {"lxc:ve101", "lxc:ve102"}
    assert seen.affected(TOP[0]) == ("lxc:ve102",)


def test_only_the_base_has_children() -> None:
    seen = chained()
    assert bases.children(seen, Devno(7, 1)) == ("/vz/mid.qcow2",)
    assert bases.children_of_image(seen, MIDDLE) == ("/fast/102.qcow2 of lxc:ve102",)
    assert bases.children_of_image(seen, TOP) == ()


def test_images_in_a_circle_end() -> None:
    seen = view(image_bases={TOP: BASE, BASE: TOP})
    assert seen.chain(TOP) == (TOP, BASE)


def test_a_partition_of_a_base_is_the_base_too() -> None:
    part = BlockDevice(devno=Devno(259, 0), name="loop1p1", kind="partition", lower=(Devno(7, 1),))
    seen = replace(chained(), devices={Devno(7, 1): loop_on(1, PART), part.devno: part})
    assert bases.children(seen, part.devno) == ("/vz/mid.qcow2",)


def test_an_external_origin_has_children_and_its_thin_volume_has_not(tmp_path: Path) -> None:
    """As LVM names a pool, and sysfs what is beneath a thin volume with an external origin."""
    for number, name in enumerate(("origin", "pool", "thin", "plain")):
        device = tmp_path / "devices" / f"dm-{number}"
        (device / "slaves").mkdir(parents=True)
        (device / "dm").mkdir()
        (device / "dev").write_text(f"253:{number}\n")
        (device / "dm/uuid").write_text(f"LVM-x{name}{'-tpool' if name == 'pool' else ''}\n")
        (tmp_path / "dev/block").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev/block" / f"253:{number}").symlink_to(device)
    for above, below in ((2, 0), (2, 1), (3, 0)):
        path = tmp_path / f"devices/dm-{above}/slaves/dm-{below}"
        path.symlink_to(tmp_path / f"devices/dm-{below}")
    origin, pool, thin = (Devno(253, n) for n in range(3))
    assert block.thin_origins(thin, tmp_path) == (origin,)
    assert block.thin_origins(Devno(253, 3), tmp_path) == ()
    devices = [
        BlockDevice(devno=origin, name="dm-0", kind="dm"),
        BlockDevice(devno=pool, name="dm-1", kind="dm"),
        BlockDevice(
            devno=thin, name="dm-2", kind="dm", lower=(origin, pool), bases=(origin,), label="clone"
        ),
    ]
    seen = view(devices={one.devno: one for one in devices})
    assert bases.children(seen, origin) == ("dm clone",)
    assert bases.children(seen, thin) == ()


def test_an_overlay_of_another_makes_a_base_and_one_of_its_own_does_not() -> None:
    lower = superblock(1, (INSIDE, "/"))
    own = layered(lower, lower, (INSIDE, "/merged"))
    seen = view(
        ve("lxc", "ve101"),
        superblocks=(lower,),
        overlays={own.devno: own},
        owners={INSIDE: "lxc:ve101", NODE: "the node"},
    )
    assert bases.children(seen, lower.devno) == ()
    other = layered(lower, lower, (INSIDE, "/merged"), (NODE, "/m"))
    seen = replace(seen, overlays={other.devno: other})
    assert bases.children(seen, lower.devno) == ("the overlay /merged of lxc:ve101, the node",)


def key(path: Path) -> ImageKey:
    found = path.stat()
    return Devno.of(found.st_dev), found.st_ino


def test_chains_are_followed_by_name_and_format(tmp_path: Path) -> None:
    base, middle, top = (tmp_path / name for name in ("base.img", "middle", "top.qcow2"))
    base.write_bytes(image(os.fsencode(tmp_path / "nothing"), b"raw"))
    middle.write_bytes(image(b"base.img", b"raw"))
    top.write_bytes(image(b"middle", b"qcow2"))
    reader = ImageReader(Places())
    found = reader.chains({key(top): str(top)})
    assert found.bases == {key(top): key(middle), key(middle): key(base)}
    assert found.paths[key(base)] == str(base)
    middle.write_bytes(image())
    assert reader.chains({key(top): str(top)}).bases == {key(top): key(middle)}


def test_the_content_of_an_image_with_another_name_is_not_believed(tmp_path: Path) -> None:
    victim, liar = tmp_path / "victim.raw", tmp_path / "liar.raw"
    victim.touch()
    liar.write_bytes(image(b"victim.raw", b"raw"))
    assert ImageReader(Places()).chains({key(liar): str(liar)}).bases == {}


def test_what_a_platform_opens_as_a_cow_file_or_qcow2_rests_on_what_its_header_names(
    tmp_path: Path,
) -> None:
    base, cow, disk = (tmp_path / name for name in ("base", "ve101.cow", "vm.img"))
    base.touch()
    cow.write_bytes(third(os.fsencode(base)))
    disk.write_bytes(image(os.fsencode(base), b"raw"))
    images = {key(cow): str(cow), key(disk): str(disk)}
    reader = ImageReader(Places())
    formats = {key(cow): "cow", key(disk): "qcow2"}
    assert reader.chains(images, formats).bases == {key(cow): key(base), key(disk): key(base)}
    # Whoever writes to an image that is opened as it is can put any header into it.
    assert reader.chains(images).bases == {}
    assert reader.chains(images, dict.fromkeys(images, "ubd")).bases == {}
    # Where an instance ran that was given a name without a directory, nobody knows.
    cow.write_bytes(third(b"base"))
    assert reader.chains(images, formats).bases == {key(disk): key(base)}


def test_names_that_lead_nowhere_or_to_themselves_make_no_chain(tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    for name in (b"top.qcow2", b"missing", b"rbd:pool/x", b"/proc/kmsg"):
        top.write_bytes(image(name, b"qcow2"))
        assert ImageReader(Places()).chains({key(top): str(top)}).bases == {}


def test_the_deltas_of_a_ploop_are_a_chain(tmp_path: Path, monkeypatch) -> None:
    """/sys/block/ploopN/pdelta/LEVEL/image, as OpenVZ/ploop reads it (lib/delta_sysfs.c)."""
    root, snapshot, top = (tmp_path / f"root.hds.{n}" for n in range(3))
    for level, path in enumerate((root, snapshot, top)):
        path.touch()
        directory = tmp_path / f"block/ploop101/pdelta/{level}"
        directory.mkdir(parents=True)
        (directory / "image").write_text(f"{path}\n")
    assert block.ploop_deltas("ploop101", tmp_path) == [str(root), str(snapshot), str(top)]
    assert block.ploop_deltas("loop0", tmp_path) == []
    deltas = block.ploop_deltas("ploop101", tmp_path)
    monkeypatch.setattr(block, "ploop_deltas", lambda _: deltas)
    reader = ImageReader(Places())
    backing = reader.served(BlockDevice(devno=Devno(182, 0), name="ploop101", kind="ploop"))
    assert backing.inode_key == key(top)
    assert reader.chains({}).bases == {key(top): key(snapshot), key(snapshot): key(root)}


@pytest.mark.parametrize("kind", ["nbd", "ploop"])
def test_what_serves_a_device_is_told_of_one_that_is_asked_about_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As a btrfs asks for its members: without their images it would get another key later."""
    above = BlockDevice(devno=Devno(43, 0), name="nbd0", kind=kind)
    served = tmp_path / "root.hds"
    served.touch()
    monkeypatch.setattr(StackReader, "read", lambda _, wanted, __: dict.fromkeys(wanted, above))
    monkeypatch.setattr(nbd, "server", lambda _: 4711)
    monkeypatch.setattr(nbd, "served", lambda _: [str(served)])
    monkeypatch.setattr(block, "ploop_deltas", lambda _: [str(served)])
    reader = NodeReader(cast("Any", None), lambda *_: None)
    assert reader.devices([above.devno])[above.devno].backing.inode_key == key(served)
