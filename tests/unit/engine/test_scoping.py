"""What rules and guards are told of a filesystem: its role, its disks, and the copies of its VE."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import scoping
from fswatchd.events import Domain, VeState
from fswatchd.guards import refused_scope
from fswatchd.incidents import Incident, State
from fswatchd.inventory.model import BlockDevice, Ve, Volume
from fswatchd.inventory.view import NodeView
from fswatchd.situation import Scope
from tests.unit import builders
from tests.unit.inventory.test_lookup import INSIDE, superblock, ve

LOOP, SDA1, SDA = Devno(7, 3), Devno(8, 1), Devno(8, 0)


def node(point: str = "/", *others: Ve, **more: Any) -> NodeView:
    """ve101 with loop3 mounted, whose image lies on a filesystem of sda1."""
    mounted = superblock(3, (INSIDE, point))
    mine = ve("lxc", "ve101", namespace=INSIDE, **more)
    devices = [
        BlockDevice(devno=LOOP, name="loop3", kind="loop", backing=mounted.backing),
        BlockDevice(devno=SDA1, name="sda1", kind="partition", lower=(SDA,)),
        BlockDevice(devno=SDA, name="sda", kind="disk"),
    ]
    return NodeView(
        ves={one.ve_id: one for one in (mine, *others)},
        owners={INSIDE: mine.ve_id},
        superblocks={LOOP: mounted},
        devices={device.devno: device for device in devices},
    )


def scope(view: NodeView, *open_incidents: Incident, found: Incident | None = None) -> Scope:
    book = cast("Any", SimpleNamespace(open_incidents=lambda: list(open_incidents)))
    return scoping.scope(view, book, found or builders.incident(), ("cluster",))


@pytest.mark.parametrize(("point", "role"), [("/", "rootfs"), ("/var/lib/db", "data")])
def test_its_role_is_where_the_ve_has_it(point: str, role: str) -> None:
    assert scope(node(point)).role == role


@pytest.mark.parametrize(("point", "role"), [("/", "rootfs"), ("/srv", "data")])
def test_of_what_is_not_mounted_the_volume_tells(point: str, role: str) -> None:
    volume = Volume(image="/vz/ve101.raw", mountpoint=point)
    view = NodeView(ves={one.ve_id: one for one in [ve("lxc", "ve101", volumes=(volume,))]})
    found = builders.incident(filesystem=builders.filesystem(devno=None))
    assert scope(view, found=found).role == role
    assert scope(NodeView(), found=found).role == ""


def test_a_repair_loads_everything_beneath_down_to_the_disk() -> None:
    found = scope(node(labels={"rack": "7"}))
    assert found.devices == ("7:3", "8:1", "8:0")
    assert found.filesystems == ("the filesystem 8:1",)
    assert found.load.labels == (("rack", "7"),)


def test_copies_are_ves_with_the_same_value_and_those_that_run_and_have_no_fault_are_well() -> None:
    group = {"cluster": "db"}
    others = [
        ve("lxc", "well", labels=group),
        ve("lxc", "ill", labels=group),
        ve("lxc", "busy", labels=group, busy="a backup"),
        ve("lxc", "another", labels={"cluster": "web"}),
        ve("lxc", "none"),
    ]
    stopped = Ve(
        ve_id=cast("Any", "lxc:stopped"),
        platform="lxc",
        native_id="stopped",
        name="stopped",
        state=VeState.STOPPED,
        labels=group,
    )
    ill = builders.incident(incident_id="other", ves=("lxc:ill",))
    storm = builders.incident(incident_id="storm", domain=Domain.STORM, ves=("lxc:well",))
    found = scope(node("/", *others, stopped, labels=group), ill, storm).copies
    assert found["cluster"].others == ("lxc:well", "lxc:ill", "lxc:busy", "lxc:stopped")
    assert found["cluster"].healthy == ("lxc:well",)
    assert scope(node("/", *others)).copies == {}


def test_a_storm_belongs_to_nobody() -> None:
    found = builders.incident(domain=Domain.STORM, ves=("lxc:ve101",))
    assert scope(node(), found=found) == Scope()


def test_rules_may_name_a_ve_as_another_platform_does() -> None:
    seen = node("/", aliases=("declared:ve101",))
    assert [one.aliases for one in scope(seen).ves] == [("declared:ve101",)]


def test_whoever_has_the_number_now_is_not_concerned() -> None:
    gone = builders.incident(filesystem=builders.filesystem(disk_sequence=7), ves=("lxc:ve100",))
    view = node("/", ve("lxc", "ve100"))
    assert [one.ve_id for one in scope(view).ves] == ["lxc:ve101"]
    assert scope(view).gone_over is None
    found = scope(view, found=gone)
    assert [one.ve_id for one in found.ves] == ["lxc:ve100"]
    assert refused_scope(found) == "loop3 belongs to another filesystem now"


def test_nor_is_what_rests_on_a_device_that_has_the_number_now() -> None:
    bare = builders.filesystem(fstype=None, uuid=None, image=None, image_inode=None)
    device = BlockDevice(devno=LOOP, name="loop3", kind="loop", disk_sequence=43)
    view = NodeView(devices={LOOP: device})
    assert scope(view, found=builders.incident(filesystem=bare)).gone_over is not None
    same = builders.filesystem(disk_sequence=43)
    assert scope(view, found=builders.incident(filesystem=same)).gone_over is None


def test_what_is_for_a_person_holds_the_volume_and_the_ve_whatever_device_they_have_now() -> None:
    handed = builders.incident(
        incident_id="handed",
        state=State.NEEDS_OPERATOR,
        filesystem=builders.filesystem(devno=Devno(7, 9), disk_sequence=7),
        ves=("lxc:ve101",),
    )
    other = replace(handed, filesystem=builders.filesystem(uuid=None, image="/vz/other.raw"))
    elsewhere = replace(other, ves=("lxc:ve102",))
    through = replace(other, through=("lxc:ve101",))
    storm = replace(other, domain=Domain.STORM)
    held = [scope(node(), one).held_by for one in (handed, other, elsewhere, through, storm)]
    assert held == ["handed", "handed", None, None, None]
    assert scope(node(), handed, found=handed).held_by is None
    assert scope(node(), replace(handed, state=State.WAITING)).held_by is None
