"""Each way in which a repair could hit another filesystem than the one that was decided on.

Once before it begins (`scope.resolve`), and once in its middle (`scope.still_the_same`), which is
asked right before a VE is stopped. `test_held` has what is asked at the moment of writing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    NamespaceMount,
    RemoteFilesystem,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.view import NodeView, describe
from fswatchd.kernel import loop
from fswatchd.kernel.mounts import Mount
from fswatchd.repair import scope
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import StepEnded
from tests.unit.builders import incident

NODE, INSIDE, ELSEWHERE = NamespaceKey(1), NamespaceKey(2), NamespaceKey(3)
LOOP, HOST = Devno(7, 0), Devno(8, 1)
UUID, OTHER_UUID = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"


def mounted(devno: Devno, namespace: NamespaceKey, point: str = "/") -> NamespaceMount:
    mount = Mount(
        mount_id=1,
        devno=devno,
        fstype="ext4",
        root="/",
        point=point,
        source="/dev/loop0",
        superblock_options=(),
        superblock_readonly=False,
        readonly=False,
    )
    return NamespaceMount(namespace=namespace, mount=mount)


@dataclass
class Node:
    """A VE whose root is an image on a loop device, in its own mount namespace only."""

    image: ImageFile
    superblock: Superblock
    loops: list[str] = field(default_factory=lambda: ["/dev/loop0"])
    also: tuple[Superblock, ...] = ()
    down: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    owners: dict[NamespaceKey, str] = field(default_factory=dict)
    ve: Ve = field(
        default_factory=lambda: Ve(
            ve_id=VeId("lxc:ve101"),
            platform="lxc",
            native_id="ve101",
            name="ve101",
            state=VeState.RUNNING,
            init_pid=4711,
            init_started=1,
            namespace=INSIDE,
        )
    )
    other: Ve = field(
        default_factory=lambda: Ve(
            ve_id=VeId("lxc:ve102"),
            platform="lxc",
            native_id="ve102",
            name="ve102",
            state=VeState.RUNNING,
        )
    )

    @property
    def view(self) -> NodeView:
        device = BlockDevice(devno=LOOP, name="loop0", kind="loop", backing=self.superblock.backing)
        return NodeView(
            superblocks={
                one.devno: one for one in (() if self.down else (self.superblock,)) + self.also
            },
            ves={one.ve_id: one for one in (self.ve, self.other)},
            owners={NODE: "the node", INSIDE: "lxc:ve101", **self.owners},
            node_namespace=NODE,
            **({"devices": {LOOP: device}} | self.more),
        )

    async def refresh(self) -> None: ...

    def mounted_also(self, namespace: NamespaceKey) -> None:
        more = mounted(LOOP, namespace, "/mnt")
        self.superblock = replace(self.superblock, mounts=(*self.superblock.mounts, more))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"the volume")
    image = ImageFile.at(str(path))
    superblock = Superblock(
        devno=LOOP,
        fstype="ext4",
        device="loop0",
        disk_sequence=5,
        uuid=UUID,
        mounts=(mounted(LOOP, INSIDE),),
        backing=Backing(
            kind="loop", image=image.path, image_devno=image.devno, image_inode=image.inode
        ),
    )
    found = Node(image, superblock)
    monkeypatch.setattr(loop, "holders", lambda *_: found.loops)
    monkeypatch.setattr(scope.extfs, "has_mmp", lambda _: False)
    return found


def about(node: Node, **more: Any) -> Any:
    filesystem = replace(describe(node.superblock), **more)
    found = incident(filesystem=filesystem, ves=("lxc:ve101",))
    return SimpleNamespace(incident=found, inventory=node)


def foreign_namespace(node: Node) -> None:
    node.mounted_also(ELSEWHERE)


def the_node_itself(node: Node) -> None:
    node.mounted_also(NODE)


def another_ve(node: Node) -> None:
    node.owners[ELSEWHERE] = "lxc:ve102"
    node.mounted_also(ELSEWHERE)


def reused_number(node: Node) -> None:
    node.superblock = replace(node.superblock, disk_sequence=6)


def another_filesystem(node: Node) -> None:
    node.superblock = replace(node.superblock, uuid=OTHER_UUID)


def image_replaced(node: Node) -> None:
    other = Path(node.image.directory) / "other"
    other.write_bytes(b"another volume")
    os.rename(other, node.image.path)


def a_link_in_its_place(node: Node) -> None:
    other = Path(node.image.directory) / "other"
    other.write_bytes(b"another volume")
    os.unlink(node.image.path)
    os.symlink(other, node.image.path)


def became_a_base(node: Node) -> None:
    child = (HOST, 4242)
    node.more["image_bases"] = {child: (node.image.devno, node.image.inode)}


def became_an_origin(node: Node) -> None:
    device = node.view.devices[LOOP]
    child = BlockDevice(
        devno=Devno(252, 1),
        name="dm-1",
        kind="dm",
        backing=Backing(kind="device"),
        lower=(LOOP,),
        bases=(LOOP,),
    )
    node.more["devices"] = {LOOP: device, child.devno: child}


def host_is_served(node: Node) -> None:
    host = node.image.devno
    served = RemoteFilesystem(
        devno=host, fstype="nfs4", source="nas:/vz", mounts=(mounted(host, NODE, "/vz"),)
    )
    node.more["remote"] = {host: served}


def needed_by_the_node(node: Node) -> None:
    node.more["own"] = {LOOP: "the node (/var)"}


def busy(node: Node) -> None:
    node.ve = replace(node.ve, busy="a migration")


def restarted(node: Node) -> None:
    node.ve = replace(node.ve, init_pid=4712)


def gone(node: Node) -> None:
    node.ve = replace(node.ve, ve_id=VeId("lxc:another"))


def attached_twice(node: Node) -> None:
    node.loops = ["/dev/loop0", "/dev/loop3"]


def attached_elsewhere(node: Node) -> None:
    node.loops = ["/dev/loop3"]


def begins_inside(node: Node) -> None:
    node.superblock = replace(
        node.superblock, backing=replace(node.superblock.backing, offset=1 << 20)
    )


def several_devices(node: Node) -> None:
    node.superblock = replace(node.superblock, members=(LOOP, Devno(7, 1)))


def protects_itself(node: Node) -> None:
    node.superblock = replace(node.superblock, mmp=True)


def a_virtual_machine(node: Node) -> None:
    node.ve = replace(node.ve, unrepairable="a virtual machine")


Attack = Callable[[Node], None]
ALWAYS: tuple[Attack, ...] = (
    foreign_namespace,
    the_node_itself,
    another_ve,
    image_replaced,
    a_link_in_its_place,
    became_a_base,
    became_an_origin,
    host_is_served,
    needed_by_the_node,
    protects_itself,
    busy,
    gone,
)
AT_FIRST: tuple[Attack, ...] = (
    attached_twice,
    attached_elsewhere,
    begins_inside,
    several_devices,
    a_virtual_machine,
)
SINCE: tuple[Attack, ...] = (reused_number, another_filesystem, restarted)


async def test_a_node_where_nothing_is_wrong(node: Node) -> None:
    """Else the tests below would show nothing."""
    target = await scope.resolve(about(node))
    assert target.image == node.image
    assert scope.still_the_same(target, node) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [*ALWAYS, *AT_FIRST])
async def test_it_is_not_begun(node: Node, attack: Attack) -> None:
    attack(node)
    with pytest.raises(StepEnded) as ended:
        await scope.resolve(about(node))
    assert ended.value.result.result in {"refused", "cancelled"}
    assert not ended.value.result.changed


@pytest.mark.parametrize("attack", [*ALWAYS, *SINCE])
async def test_the_ve_is_not_stopped_when_it_has_become_so_since(
    node: Node, attack: Attack
) -> None:
    target = await scope.resolve(about(node))
    attack(node)
    assert scope.still_the_same(target, node) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [reused_number, another_filesystem])
async def test_an_incident_of_what_was_there_before_is_over(node: Node, attack: Attack) -> None:
    asked = about(node)
    attack(node)
    with pytest.raises(StepEnded, match="another filesystem now"):
        await scope.resolve(asked)


async def test_a_filesystem_that_tells_no_uuid_any_more_is_known_by_its_disk(node: Node) -> None:
    """An XFS that is shut down tells none to a daemon that starts then; DISKSEQ is not reused."""
    asked = about(node)
    node.superblock = replace(node.superblock, uuid=None)
    assert (await scope.resolve(asked)).image == node.image
    node.superblock = replace(node.superblock, disk_sequence=6)
    with pytest.raises(StepEnded, match="another filesystem now"):
        await scope.resolve(asked)


async def test_without_a_number_of_its_disk_it_is_not_known(node: Node) -> None:
    """Before Linux 5.15: the UUID alone would tell it from others."""
    node.superblock = replace(node.superblock, disk_sequence=None)
    asked = about(node)
    node.superblock = replace(node.superblock, uuid=None)
    with pytest.raises(StepEnded, match="another filesystem now"):
        await scope.resolve(asked)


def others_lie_on_it(node: Node) -> None:
    inner = Devno(7, 1)
    backing = Backing(kind="loop", image="/x", image_devno=LOOP, image_inode=9)
    device = BlockDevice(devno=inner, name="loop1", kind="loop", backing=backing)
    theirs = replace(
        node.superblock,
        devno=inner,
        device="loop1",
        backing=backing,
        mounts=(mounted(inner, ELSEWHERE),),
    )
    node.owners[ELSEWHERE] = "lxc:ve102"
    node.more["devices"] = {**node.view.devices, inner: device}
    node.also = (theirs,)


async def test_what_another_ve_has_its_image_on_is_not_repaired_as_one_ves(node: Node) -> None:
    target = await scope.resolve(about(node))
    others_lie_on_it(node)
    with pytest.raises(StepEnded, match="it holds what lxc:ve102 depends on"):
        await scope.resolve(about(node))
    assert scope.still_the_same(target, node) is not None  # type: ignore[arg-type]


async def test_multiple_mount_protection_that_was_set_since_is_read_from_the_disk(
    monkeypatch: pytest.MonkeyPatch, node: Node
) -> None:
    monkeypatch.setattr(scope.extfs, "has_mmp", lambda _: True)
    for asked in (about, stopped):
        with pytest.raises(StepEnded, match="multiple mount protection"):
            await scope.resolve(asked(node))


async def test_a_way_that_is_not_safe_for_the_filesystem_is_not_gone(node: Node) -> None:
    with pytest.raises(StepEnded, match="no safe repair"):
        await scope.resolve(about(node), strategy="online")


def stopped(node: Node) -> Any:
    """The VE is down: its image is mounted nowhere, and attached to nothing."""
    node.loops = []
    node.also = ()
    node.down = True
    return about(node, devno=None, device=None)


async def test_the_image_of_a_stopped_ve_is_taken(node: Node) -> None:
    target = await scope.resolve(stopped(node))
    assert (target.image, target.superblock) == (node.image, None)
    assert scope.still_the_same(target, node) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [became_a_base, host_is_served, busy, gone, attached_elsewhere])
async def test_the_image_of_a_stopped_ve_is_not_taken(node: Node, attack: Attack) -> None:
    asked = stopped(node)
    attack(node)
    with pytest.raises(StepEnded):
        await scope.resolve(asked)


async def test_an_image_that_the_node_swaps_to_is_not_taken(node: Node) -> None:
    asked = stopped(node)
    node.more["own"] = {LOOP: "the node (swap)"}
    with pytest.raises(StepEnded, match="swap"):
        await scope.resolve(asked)


@pytest.mark.parametrize("attack", [became_a_base, image_replaced])
async def test_the_image_of_a_stopped_ve_that_has_become_so_since(
    node: Node, attack: Attack
) -> None:
    target = await scope.resolve(stopped(node))
    attack(node)
    assert scope.still_the_same(target, node) is not None  # type: ignore[arg-type]


async def test_what_is_not_mounted_any_more_is_not_repaired_as_mounted(node: Node) -> None:
    asked = about(node)
    target = await scope.resolve(asked)
    node.down = True
    with pytest.raises(StepEnded, match="no longer mounted"):
        await scope.resolve(asked)
    assert "no longer mounted" in (scope.still_the_same(target, node) or "")  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [OSError(5, "EIO"), TimeoutError()])
async def test_what_cannot_be_read_may_be_others(
    monkeypatch: pytest.MonkeyPatch, node: Node, error: Exception
) -> None:
    def fails(_: str) -> bool:
        raise error

    monkeypatch.setattr(scope.extfs, "has_mmp", fails)
    with pytest.raises(StepEnded, match=r"cannot be read|does not answer") as ended:
        await scope.resolve(about(node))
    assert ended.value.result.result == "refused"
