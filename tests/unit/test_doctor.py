from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.doctor import _source, _ves
from fswatchd.events import SourceState, VeState
from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.inventory.view import NodeView
from fswatchd.sources import SourceStatus


@pytest.mark.parametrize(
    ("name", "switch", "level"),
    [
        ("vzevent", "auto", "ok"),
        ("xfs_health", "auto", "ok"),
        ("vzevent", True, "warning"),
        ("quota", "auto", "warning"),
        ("kmsg", "auto", "critical"),
    ],
)
def test_a_source_that_cannot_work_matters_where_it_should(name, switch, level) -> None:
    status = SourceStatus(name=name, state=SourceState.UNAVAILABLE, detail="not here")
    found = _source(status, switch)
    assert (found.level, found.text) == (level, "unavailable: not here")


def inventory(*ves: Ve) -> Any:
    return SimpleNamespace(view=NodeView(ves={ve.ve_id: ve for ve in ves}), problems={})


def ve(program: str, *volumes: Volume) -> Ve:
    return Ve(
        ve_id=VeId("openvz:101"),
        platform="openvz",
        native_id="101",
        name="web",
        state=VeState.RUNNING,
        volumes=volumes,
        commands=Commands(stop=(program, "stop", "101")),
    )


def test_volumes_that_only_their_platform_can_open_are_named_and_not_complained_about() -> None:
    found = _ves(inventory(ve("sh", Volume(image="/a", format="ploop"), Volume(device="/dev/x"))))
    assert [(one.name, one.level) for one in found] == [
        ("openvz:101", "warning"),
        ("volumes", "ok"),
        ("ves", "ok"),
    ]
    assert "1 in the format ploop of openvz" in found[1].text
    (only, _) = _ves(inventory(ve("sh", Volume(image="/a", format="ploop"))))
    assert only.name == "volumes"


def test_a_platform_whose_program_is_missing() -> None:
    found = _ves(inventory(ve("vzctl-is-not-here")))
    assert [(one.name, one.level) for one in found] == [
        ("tool vzctl-is-not-here", "warning"),
        ("ves", "ok"),
    ]
