"""A VE that starts has copies of the node's mounts for a moment, which are no use of these."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import scoping, starting
from fswatchd.engine.attribution import attribute
from fswatchd.inventory.model import BlockDevice, Volume
from fswatchd.inventory.view import NodeView
from tests.unit import builders
from tests.unit.inventory.test_lookup import INSIDE, NODE, superblock, ve

IMAGE = (Devno(7, 3), 99)
MOUNTED = superblock(3, (NODE, "/vz"), (INSIDE, "/vz"))


def ticks(age_s: float) -> int:
    return int((time.clock_gettime(time.CLOCK_BOOTTIME) - age_s) * os.sysconf("SC_CLK_TCK"))


def node(age_s: float, found: Any = MOUNTED, **more: Any) -> NodeView:
    """loop3 on the node at /vz, and lxc:new, whose namespace has it there as well."""
    new = ve("lxc", "new", namespace=INSIDE, init_started=ticks(age_s))
    device = BlockDevice(devno=found.devno, name="loop3", kind="loop")
    return NodeView(
        ves={new.ve_id: new},
        owners={INSIDE: new.ve_id, NODE: "the node"},
        node_namespace=NODE,
        superblocks={found.devno: found},
        devices={found.devno: device},
        **more,
    )


@pytest.mark.parametrize(("age_s", "ves"), [(0.2, ()), (60.0, ("lxc:new",))])
def test_an_event_names_a_ve_for_what_the_node_has_mounted_once_it_has_started(
    age_s: float, ves: tuple[str, ...]
) -> None:
    assert attribute(builders.event(), node(age_s)).ves == ves


@pytest.mark.parametrize("age_s", [0.2, 60.0])
def test_what_only_the_ve_has_mounted_is_its_own_from_the_first_moment(age_s: float) -> None:
    own = superblock(3, (INSIDE, "/"))
    assert attribute(builders.event(), node(age_s, own)).ves == ("lxc:new",)


@pytest.mark.parametrize("age_s", [0.2, 60.0])
def test_its_declared_volume_is_its_own_from_the_first_moment(age_s: float) -> None:
    seen = node(age_s, device_owners={MOUNTED.devno: "lxc:new"})
    assert attribute(builders.event(), seen).ves == ("lxc:new",)


def test_a_ve_whose_image_lies_on_it_is_named_as_one_that_rests_on_it() -> None:
    seen = node(0.2, image_owners={IMAGE: "lxc:new"})
    found = attribute(builders.event(), seen)
    assert (found.ves, found.through) == (("lxc:new",), ("lxc:new",))
    assert starting.concerned(node(60.0, image_owners={IMAGE: "lxc:new"}), MOUNTED.devno) == (
        ("lxc:new",),
        (),
    )


def scope(seen: NodeView) -> Any:
    return scoping.scope(seen, cast("Any", None), builders.incident(ves=()))


def test_rules_are_not_asked_about_it_and_nothing_is_repaired_meanwhile() -> None:
    own = node(0.2)
    other = replace(ve("lxc", "other"), node_mounts=True, volumes=(Volume(device="/dev/loop3"),))
    seen = NodeView(
        ves={**own.ves, other.ve_id: other},
        owners=own.owners,
        node_namespace=NODE,
        superblocks=own.superblocks,
        device_owners={MOUNTED.devno: other.ve_id},
    )
    found = scope(seen)
    assert [one.ve_id for one in found.ves] == ["lxc:other"]
    assert found.foreign_users == ("lxc:new, which has only just started",)


def test_later_it_is_a_user_like_any_other() -> None:
    found = scope(node(60.0))
    assert [one.ve_id for one in found.ves] == ["lxc:new"]
    assert found.foreign_users == ("the node",)
