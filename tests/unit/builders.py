"""Values for tests, with everything filled in that a test does not care about."""

from __future__ import annotations

from typing import Any

from fswatchd.devno import Devno
from fswatchd.events import Domain, EventClass, FsEvent, LostWrite, usual_severity
from fswatchd.incidents import Filesystem, Incident
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.situation import PolicyState, Scope, VeFacts

NOW_NS = 1_000_000_000_000
LOOP3 = Devno(7, 3)


def event(source: str = "fanotify", klass: str = "corruption", **more: Any) -> FsEvent:
    """An event on loop3."""
    chosen = EventClass(klass)
    values: dict[str, Any] = {
        "severity": usual_severity(chosen),
        "confirms": source not in {"kmsg", "journal"},
        "time_ns": NOW_NS,
        "mono_ns": NOW_NS,
        "detail": "something happened",
        "device": "loop3",
        "devno": LOOP3,
        "fstype": "ext4",
    }
    return FsEvent(source=source, klass=chosen, **(values | more))


def lost_write(**more: Any) -> LostWrite:
    """Of inode 12."""
    return LostWrite(**({"inode": 12} | more))


def filesystem(**more: Any) -> Filesystem:
    """ext4 on loop3."""
    values: dict[str, Any] = {
        "devno": LOOP3,
        "device": "loop3",
        "fstype": "ext4",
        "uuid": "11111111-2222-3333-4444-555555555555",
        "disk_sequence": 42,
        "image": "/vz/ve101.raw",
        "image_inode": ("8:1", 77),
    }
    return Filesystem(**(values | more))


def incident(*events: FsEvent, **more: Any) -> Incident:
    """An incident on loop3 of ve101, made of these events (one of fanotify when none are given)."""
    values: dict[str, Any] = {
        "incident_id": "20261121-abcde",
        "node": "hn1",
        "domain": Domain.DAMAGE,
        "filesystem": filesystem(),
        "opened_ns": NOW_NS,
        "updated_ns": NOW_NS,
        "ves": ("lxc:ve101",),
    }
    found = Incident(**(values | more))
    for one in events or (event(),):
        found = found.joined(one, NOW_NS)
    return found


def ve_facts(**more: Any) -> VeFacts:
    """ve101."""
    values: dict[str, Any] = {"ve_id": "lxc:ve101", "name": "ve101", "platform": "lxc"}
    return VeFacts(**(values | more))


def scope(*ves: VeFacts, **more: Any) -> Scope:
    """Exactly ve101, unless told otherwise."""
    return Scope(ves=ves or (ve_facts(),), devices=("7:3", "8:1"), **more)


def policy_state(**more: Any) -> PolicyState:
    """A node in mode auto on which nothing else happens."""
    return PolicyState(**({"mode": "auto"} | more))


def rules(text: str) -> RuleSet:
    """Rules from TOML that must be right."""
    found, problems = assemble([("test.toml", text)])
    assert not problems, problems
    return found
