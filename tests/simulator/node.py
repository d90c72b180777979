"""A node without a kernel: VEs on disks, their incidents, and an agenda of what is to come."""

from __future__ import annotations

import asyncio
import copy
import fnmatch
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from fswatchd.cause import Layer
from fswatchd.devno import Devno
from fswatchd.engine.history import History
from fswatchd.events import Domain, EventClass, domain_of
from fswatchd.incidents import Filesystem, Incident
from fswatchd.situation import Copies, StormState
from fswatchd.turns import Turns
from fswatchd.units import parse_duration
from tests.simulator.clock import DAY_S, Clock, Facts
from tests.simulator.scenario import KEYS, rules_of, show, time_of_day


@dataclass
class Plan:
    """A plan that is being carried out, from step to step."""

    incident_id: str
    steps: list[str]
    begun: bool = False


@dataclass
class Settings:
    """What a scenario says of its node."""

    mode: Any = "auto"
    disks: dict[str, list[str]] = field(default_factory=dict)
    label: dict[str, dict[str, str]] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    repair_s: float = 600.0
    fstype: str = "ext4"
    platform: str = "lxc"


class SimulatedNode:
    """What there is, and what is to come; nothing is decided here."""

    def __init__(self, document: dict[str, Any]) -> None:
        unknown = document.keys() - KEYS
        assert not unknown, unknown
        said = copy.deepcopy(document.get("node", {}))
        self.clock = Clock(local_s=time_of_day(said.pop("local", "12:00")))
        repair = parse_duration(said.pop("repair", "10m"))
        self.node = Settings(disks=said.pop("disk", {"sda": ["a"]}), repair_s=repair, **said)
        self.rules = rules_of(document["rules"])
        self.log: list[str] = []
        self.incidents: dict[str, Incident] = {}
        self.layers: dict[str, Layer] = {}
        self.foreign: dict[str, tuple[str, ...]] = {}
        self.elsewhere: dict[str, str] = {}
        self.busy: dict[str, str] = {}
        self.untold: set[str] = set()
        self.stopped: set[str] = set()
        self.facts = Facts()
        self.storm: StormState | None = None
        self.distrust = ""
        self.plans: dict[str, Plan] = {}
        self._number = itertools.count(1)
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._last: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._start()

    def play(self, until_s: float = 40 * DAY_S) -> list[str]:
        """The whole log."""
        for _ in range(100_000):
            if not self._agenda or self._agenda[0][0] > until_s:
                return self.log
            self.clock.now_s, _, what = heapq.heappop(self._agenda)
            what()
        raise AssertionError("it never ends")

    def _start(self) -> None:
        self.history = History(cast("Any", self.facts), cast("Any", self.clock))
        asyncio.run(self.history.load())
        self.turns = Turns(self.history.begun_ns)

    def _schedule(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when_s, next(self._order), what))

    def _line(self, text: str) -> None:
        self.log.append(f"{show(self.clock.now_s)} {text}")

    def _say(self, found: Incident, text: str) -> None:
        self._line(f"{self._name(found)} {text}")

    def _put(self, found: Incident) -> None:
        self.incidents[found.incident_id] = found

    def _close(self, found: Incident, how: str) -> None:
        del self.incidents[found.incident_id]
        self.turns.gone(found.incident_id)
        self._say(found, f"closed, {how}")
        for one in [i for i in self.incidents.values() if i.waiting_for == "held"]:
            self._decide(one.incident_id)

    def _ves(self, who: Any) -> list[str]:
        patterns = [who] if isinstance(who, str) else who
        known = [ve for ves in self.node.disks.values() for ve in ves]
        return [ve for p in patterns for ve in known if fnmatch.fnmatchcase(ve, p)]

    def _disk(self, ve: str) -> str:
        return next(disk for disk, ves in self.node.disks.items() if ve in ves)

    def _name(self, found: Incident) -> str:
        return str(found.filesystem.device).removesuffix("-root")

    def _find(self, ve: str, volume: str, klass: EventClass) -> Incident | None:
        key = (f"{ve}-{volume}", domain_of(klass))
        known = self.incidents.values()
        return next((i for i in known if (i.filesystem.device, i.domain) == key), None)

    def _waiting(self, who: str) -> list[Incident]:
        return [
            found
            for found in self.incidents.values()
            if self._name(found) == who and found.waiting_for == "approval"
        ]

    def _copies(self, name: str) -> dict[str, Copies]:
        unwell = {ve for found in self.incidents.values() for ve in found.ves}
        copies = {}
        for label, value in self.node.label.get(name, {}).items():
            same = [v for v, labels in self.node.label.items() if labels.get(label) == value]
            others = tuple(f"lxc:{ve}" for ve in same if ve != name)
            healthy = tuple(ve for ve in others if ve not in unwell)
            copies[label] = Copies(value=value, others=others, healthy=healthy)
        return copies

    def _open(self, ve: str, volume: str, klass: EventClass, fstype: str | None) -> Incident:
        number = next(self._number)
        now = self.clock.wall_ns()
        return Incident(
            incident_id=f"i{number:05d}",
            node="hn1",
            domain=domain_of(klass) if klass is not EventClass.NONE else Domain.DAMAGE,
            filesystem=Filesystem(
                devno=Devno(7, number),
                device=f"{ve}-{volume}",
                fstype=fstype or self.node.fstype,
                image=f"/{self._disk(ve)}/{ve}-{volume}.raw",
            ),
            opened_ns=now,
            updated_ns=now,
            ves=(f"lxc:{ve}",),
        )
