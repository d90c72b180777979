"""What a decision depends on beside the rules and the incident. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fswatchd.cause import Layer
from fswatchd.rules import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class VeFacts:
    """What rules may ask about a VE. `scratch` is true only for ids the daemon made itself; to
    what is `hands_off` nothing is ever done, to what is `busy` nothing until that has ended, to the
    volumes of what is `unrepairable` (see `inventory.model.Ve`) nothing but to tell."""

    ve_id: str
    name: str
    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)
    busy: str | None = None
    scratch: bool = False
    hands_off: bool = False
    unrepairable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whom the incident's filesystem belongs to.

    `foreign_users` names whoever else uses it: the node itself, a namespace of no VE. `dependents`
    are VEs and others that depend on it only through what rests on it, such as images. `children`
    are what was made of it and needs it as it is, in words (`inventory.bases`). `devices` are the
    backing devices that budgets count, the image's host filesystem among them. `beneath` is what
    it rests on, nearest first. `shared_with` says why another node may own it as well, and what a
    person can do; None where nothing says so.
    """

    ves: tuple[VeFacts, ...] = ()
    foreign_users: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    beneath: tuple[Layer, ...] = ()
    shared_with: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarm:
    """Nobody acts on `target` (a VE id, or `node`) until `until_ns` (CLOCK_BOOTTIME) or arm."""

    target: str
    reason: str
    by: str
    until_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRepair:
    """A plan that is being carried out, and the devices it loads."""

    incident_id: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """Everything outside the incident that a decision depends on.

    `last_action_ns` maps (rule name, volume) to the CLOCK_BOOTTIME of the end of its last plan.
    """

    mode: Mode = "observe"
    disarms: tuple[Disarm, ...] = ()
    running: tuple[RunningRepair, ...] = ()
    last_action_ns: Mapping[tuple[str, str], int] = field(default_factory=dict)
