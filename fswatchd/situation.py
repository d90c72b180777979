"""What a decision depends on beside the rules and the incident. Pure values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fswatchd.cause import Layer
from fswatchd.incidents import Load
from fswatchd.rules.model import Budget
from fswatchd.rules.modes import MODES, Mode, NodeMode

# What a VE's owner may ask for, by a label or in its platform's configuration.
WISH = "fswatch"


def wish(labels: Mapping[str, str]) -> Mode | None:
    """The widest mode that the owner of a VE with these labels wants, None where he says nothing.

    What is no mode is a mistake, and taken for the most careful one.
    """
    said = labels.get(WISH)
    if said is None:
        return None
    return next((mode for mode in MODES if mode == said.strip().lower()), MODES[0])


def joined_labels(labels: Mapping[str, str], *others: Mapping[str, str]) -> dict[str, str]:
    """The labels with the most careful of what all of these wish."""
    wishes = [found for one in (labels, *others) if (found := wish(one)) is not None]
    return {**labels, **({WISH: min(wishes, key=MODES.index)} if wishes else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class VeFacts:
    """What rules may ask about a VE. `scratch` is true only for ids the daemon made itself; to
    what is `hands_off` nothing is ever done, to what is `busy` nothing until that has ended, to the
    volumes of what is `unrepairable` (see `inventory.model.Ve`) nothing but to tell. `aliases` are
    ids that other platforms know it by. Where `labels_known` is false nobody has told its labels
    yet: they could be any."""

    ve_id: str
    name: str
    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)
    labels_known: bool = True
    busy: str | None = None
    scratch: bool = False
    hands_off: bool = False
    unrepairable: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def wish(self) -> Mode | None:
        """The widest mode that its owner wants."""
        return wish(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The other VEs that have the same value of a label, and those of them that are well."""

    value: str
    others: tuple[str, ...] = ()
    healthy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whom the incident's filesystem belongs to.

    `foreign_users` names whoever else uses it: the node itself, a namespace of no VE. `dependents`
    are VEs and others that depend on it only through what rests on it, such as images. `children`
    are what was made of it and needs it as it is, in words (`inventory.bases`). `devices` are the
    backing devices that budgets count, down to the disks, `filesystems` those that hold its image.
    `beneath` is what it rests on, nearest first. `shared_with` says why another node may own it as
    well, and what a person can do; None where nothing says so. `role` is `rootfs` where a VE has it
    at `/`, `data` where elsewhere, empty where nobody knows. `copies` are the VE's, by the label
    that names the group; a VE without the label has none. `gone_over` says that the device belongs
    to another filesystem by now, whose users are none of these. `held_by` is the incident of the
    same volume, or of another one of the VE, that is for a person now. `unmounted` says that what
    was damaged is mounted nowhere by now.
    """

    ves: tuple[VeFacts, ...] = ()
    foreign_users: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()
    beneath: tuple[Layer, ...] = ()
    shared_with: str | None = None
    role: str = ""
    copies: Mapping[str, Copies] = field(default_factory=dict)
    gone_over: str | None = None
    held_by: str | None = None
    unmounted: bool = False

    @property
    def load(self) -> Load:
        """What a repair would keep busy."""
        labels = {(key, value): None for ve in self.ves for key, value in ve.labels.items()}
        return Load(devices=self.devices, filesystems=self.filesystems, labels=tuple(labels))


class Labelled(Protocol):
    """What of a VE a disarm can be about."""

    @property
    def ve_id(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def labels_known(self) -> bool: ...


NODE = "node"
_LABEL = "label "


def label_target(key: str, value: str) -> str:
    """The target of a disarm of all VEs with this label: no VE has such an id."""
    return f"{_LABEL}{key}={value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarm:
    """Nobody acts on `target` (a VE id, `node`, or a `label_target`) until `until_ns`
    (CLOCK_BOOTTIME) or arm. `since_ns` is CLOCK_REALTIME, 0 where it was not kept."""

    target: str
    reason: str
    by: str
    until_ns: int | None = None
    since_ns: int = 0

    @property
    def names_a_ve(self) -> bool:
        """Whether it is about one VE, and not about the node or a label."""
        return self.target != NODE and not self.target.startswith(_LABEL)

    def holds(self, ves: Iterable[Labelled]) -> bool:
        """Whether it is about one of these. A VE whose labels nobody knows could have any."""
        if self.target == NODE:
            return True
        if self.names_a_ve:
            return any(ve.ve_id == self.target for ve in ves)
        key, _, value = self.target.removeprefix(_LABEL).partition("=")
        return any(not ve.labels_known or ve.labels.get(key) == value for ve in ves)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRepair:
    """A plan that is being carried out, and what it keeps busy."""

    incident_id: str
    load: Load = field(default_factory=Load)


Turn = tuple[int, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An incident that waits for room in its rule's budget.

    The smaller `turn` goes first: when a repair of its VE last began, when it was opened, its id.
    So a VE with a thousand faults comes after each other one that has not had a repair yet.
    """

    turn: Turn
    ve: str
    budget: Budget
    load: Load

    @property
    def incident_id(self) -> str:
        """Of the incident."""
        return self.turn[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class StormState:
    """A storm that has not ended: its own incident, and what to say of it."""

    incident_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """Everything outside the incident that a decision depends on. Times are CLOCK_BOOTTIME.

    `last_action_ns` maps (rule name, volume) to the end of its last plan, `failures` to how many of
    its last plans in a row have failed. `repaired_ns` maps a volume to the times at which it was
    repaired. `begun_ns` maps a VE to when a repair of it last began, `queue` are those that wait
    for a budget and would be next on their disks, by their turn (see `turns`). `local_s` is the
    node's local time, in seconds of its day. `distrust` says why the daemon does not trust itself,
    empty where it does (see `engine.trust`): then the node's mode is observe, whatever it is.
    """

    mode: NodeMode = "observe"
    distrust: str = ""
    disarms: tuple[Disarm, ...] = ()
    running: tuple[RunningRepair, ...] = ()
    last_action_ns: Mapping[tuple[str, str], int] = field(default_factory=dict)
    failures: Mapping[tuple[str, str], int] = field(default_factory=dict)
    repaired_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    begun_ns: Mapping[str, int] = field(default_factory=dict)
    queue: Sequence[Waiting] = ()
    storm: StormState | None = None
    local_s: int | None = None
