"""What shows that a VE is frozen, and what thaws it."""

from __future__ import annotations

import pytest

from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, Ve, VeId
from fswatchd.repair import ve_freeze

PAUSE = Commands(freeze=("pause", "x"), thaw=("resume", "x"))


def ve(**more) -> Ve:
    values = {"ve_id": VeId("lxc:x"), "platform": "lxc", "native_id": "x", "name": "x"}
    return Ve(**(values | {"state": VeState.RUNNING, "cgroup": "/lxc.payload.x"} | more))


@pytest.mark.parametrize(
    ("given", "can"),
    [
        ({}, True),
        ({"cgroup": None}, False),
        ({"cgroup": None, "commands": PAUSE}, True),
        ({"commands": Commands(freeze=("pause", "x"))}, False),
    ],
)
def test_only_what_can_be_thawed_is_frozen(given: dict, can: bool) -> None:
    assert ve_freeze.can_freeze(ve(**given)) is can


@pytest.mark.parametrize(
    ("given", "group", "command"),
    [
        ({}, "/lxc.payload.x", []),
        ({"commands": PAUSE}, "/lxc.payload.x", ["resume", "x"]),
        # The program that runs a guest goes on while the guest stands still.
        ({"commands": PAUSE, "guest": True}, None, ["resume", "x"]),
        ({"guest": True}, "/lxc.payload.x", []),
    ],
)
def test_what_a_journal_says_of_it(given: dict, group: str | None, command: list[str]) -> None:
    told = ve_freeze.describe_tasks(ve(**given))
    assert told == {"frozen_cgroup": group, "thaw_command": command}
