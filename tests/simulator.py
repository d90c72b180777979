"""A node without a kernel: plays a scenario against the policy, with a clock of its own.

A scenario is a table in a TOML file: what is expected in prose and as the log of all decisions
(`log`), the rules, a node with VEs and disks, and what happens when. Decisions, history and turns
are the daemon's own code; the simulator adds time, faults, and plans that take a while.
"""

from __future__ import annotations

import asyncio
import copy
import fnmatch
import heapq
import itertools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from fswatchd import policy, storm
from fswatchd.cause import Layer, blame
from fswatchd.devno import Devno
from fswatchd.engine.history import History
from fswatchd.events import Domain, EventClass, FsEvent, Severity, domain_of, usual_severity
from fswatchd.incidents import Filesystem, Incident, Load, State
from fswatchd.policy import Decision, Verdict
from fswatchd.rules.files import embedded_rules
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.situation import (
    NODE,
    Copies,
    Disarm,
    PolicyState,
    RunningRepair,
    Scope,
    StormState,
    VeFacts,
    label_target,
)
from fswatchd.turns import Turns
from fswatchd.units import parse_duration

NS = 1_000_000_000
DAY_S = 86400
_INCIDENT = TypeAdapter(Incident)
_KEYS = {"name", "expect", "rules", "node", "do", "log"}


@dataclass
class Clock:
    """CLOCK_BOOTTIME and CLOCK_REALTIME of the node; `now_s` is the scenario's own time."""

    now_s: float = 0.0
    booted_s: float = -100_000.0
    jumped_s: float = 0.0
    boots: int = 0
    local_s: int = 12 * 3600

    @property
    def boot(self) -> str:
        return f"boot{self.boots}"

    def boottime_ns(self) -> int:
        return round((self.now_s - self.booted_s) * NS)

    def wall_ns(self) -> int:
        return round((1_800_000_000 + self.now_s + self.jumped_s) * NS)

    def local(self) -> int:
        return int(self.local_s + self.now_s + self.jumped_s) % DAY_S


class Facts:
    """The store's facts, which survive a restart."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    async def facts(self, prefix: str) -> dict[str, Any]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    def set_fact(self, key: str, value: Any, *, durable: bool = False) -> Any:
        if value is None:
            self.kept.pop(key, None)
        else:
            self.kept[key] = value
        return asyncio.sleep(0) if durable else None


@dataclass
class Plan:
    """A plan that is being carried out, from step to step."""

    incident_id: str
    steps: list[str]
    begun: bool = False


@dataclass
class Node:
    """What a scenario says of its node."""

    mode: Any = "auto"
    disks: dict[str, list[str]] = field(default_factory=dict)
    label: dict[str, dict[str, str]] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    repair_s: float = 600.0
    fstype: str = "ext4"
    platform: str = "lxc"


class Simulator:
    """Plays one scenario; `log` is what was decided and what came of it."""

    def __init__(self, document: dict[str, Any]) -> None:
        unknown = document.keys() - _KEYS
        assert not unknown, unknown
        said = copy.deepcopy(document.get("node", {}))
        self.clock = Clock(local_s=_time_of_day(said.pop("local", "12:00")))
        repair = parse_duration(said.pop("repair", "10m"))
        self.node = Node(disks=said.pop("disk", {"sda": ["a"]}), repair_s=repair, **said)
        self.rules = _rules(document["rules"])
        self.log: list[str] = []
        self.incidents: dict[str, Incident] = {}
        self.layers: dict[str, Layer] = {}
        self.foreign: dict[str, tuple[str, ...]] = {}
        self.elsewhere: dict[str, str] = {}
        self.busy: dict[str, str] = {}
        self.untold: set[str] = set()
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
        for entry in document.get("do", ()):
            self._schedule(parse_duration(entry["at"]), lambda entry=entry: self._do(entry))

    def play(self, until_s: float = 40 * DAY_S) -> list[str]:
        """The whole log."""
        for _ in range(100_000):
            if not self._agenda or self._agenda[0][0] > until_s:
                return self.log
            self.clock.now_s, _, what = heapq.heappop(self._agenda)
            what()
        raise AssertionError("it never ends")

    # --- what happens ---------------------------------------------------------------------------

    def _do(self, entry: dict[str, Any]) -> None:
        verbs = [key for key in entry if hasattr(self, f"do_{key}")]
        assert len(verbs) == 1, entry
        more = {key: value for key, value in entry.items() if key not in {"at", verbs[0]}}
        getattr(self, f"do_{verbs[0]}")(entry[verbs[0]], **more)

    def do_fault(self, who: Any, times: int = 1, every: str = "0s", **more: Any) -> None:
        for number in range(times):
            for name in self._ves(who):
                when = self.clock.now_s + number * parse_duration(every)
                if when == self.clock.now_s:
                    self._fault(name, **more)
                else:
                    self._schedule(when, lambda name=name: self._fault(name, **more))

    def _fault(
        self,
        ve: str,
        klass: str = "corruption",
        source: str = "fanotify",
        count: int = 1,
        volume: str = "root",
        severity: str | None = None,
        fstype: str | None = None,
    ) -> None:
        chosen = EventClass(klass)
        found = self._find(ve, volume, chosen) or self._open(ve, volume, chosen, fstype)
        event = FsEvent(
            source=source,
            klass=chosen,
            severity=Severity.parse(severity) if severity else usual_severity(chosen),
            confirms=source not in {"kmsg", "journal"},
            time_ns=self.clock.wall_ns(),
            mono_ns=self.clock.boottime_ns(),
            detail="scripted",
            device=found.filesystem.device,
            count=count,
            fstype=found.filesystem.fstype,
        )
        found = found.joined(event, self.clock.boottime_ns())
        ahead_ns = self.clock.wall_ns() - self.clock.boottime_ns()
        self._put(found.on_clock(self.clock.boot, ahead_ns))
        if found.state is State.VERIFYING and found.confirmed:
            self._put(replace(self.incidents[found.incident_id], state=State.NEEDS_OPERATOR))
            self._say(found, "needs-operator (again)")
        else:
            self._decide(found.incident_id)

    def do_approve(self, who: str) -> None:
        for found in self._waiting(who):
            approved = replace(
                found,
                approved_by="op",
                approved_ns=self.clock.boottime_ns(),
                approved_for=found.rule,
                denied_by=None,
            )
            self._put(approved)
            self._decide(found.incident_id)

    def do_deny(self, who: str) -> None:
        for found in self._waiting(who):
            self._put(replace(found, denied_by="op", approved_by=None))
            self._decide(found.incident_id)

    def do_request(self, who: str, *, force: bool = False) -> None:
        found = self._find(who, "root", EventClass.CORRUPTION)
        found = found or self._open(who, "root", EventClass.CORRUPTION, None)
        if found.state in {State.ACTING, State.VERIFYING}:
            return
        self._put(
            replace(found, requested_by="root", forced=force, state=State.OPEN, denied_by=None)
        )
        self._decide(found.incident_id)

    def do_ack(self, who: str) -> None:
        if who == "storm":
            self._end_storm()
            return
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            if found.state is State.NEEDS_OPERATOR:
                self._close(found, "dismissed")

    def do_gone(self, who: str) -> None:
        """Its volume is not mounted any more."""
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            if found.state is not State.ACTING:
                self._close(found, "dismissed")

    def do_disarm(self, who: str, **more: str) -> None:
        until = None
        if "for" in more:
            until = self.clock.boottime_ns() + round(parse_duration(more["for"]) * NS)
        disarm = Disarm(target=_target(who), reason="work", by="op", until_ns=until)
        asyncio.run(self.history.disarm(disarm))
        self._decide_all()

    def do_arm(self, who: str) -> None:
        asyncio.run(self.history.arm(_target(who)))
        self._decide_all()

    def do_doubt(self, why: str) -> None:
        """The daemon finds something wrong with itself; nothing where `why` is empty."""
        self.distrust = why
        self._decide_all()

    def do_reload(self, text: str) -> None:
        rules, problems = assemble([("test.toml", text)])
        if problems:
            self._line("reload refused, the last good rules stay")
            return
        self.rules = rules
        self._decide_all()

    def do_disk(self, name: str, errors: int = 0, free: int | None = None) -> None:
        """A disk reports errors, or is well again; `free` bytes are left on its filesystem."""
        self.layers[name] = Layer(
            kind="device" if free is None else "filesystem",
            name=f"/dev/{name}" if free is None else f"ext4 /{name}",
            errors=errors,
            free_bytes=free,
            total_bytes=1 << 40,
        )
        self._decide_all()

    def do_label(self, who: str, **labels: str) -> None:
        self.node.label[who] = {**self.node.label.get(who, {}), **labels}
        self._decide_all()

    def do_labels(self, who: str, *, told: bool) -> None:
        """Its platform has not told its labels, or does now."""
        (self.untold.discard if told else self.untold.add)(who)
        self._decide_all()

    def do_clock(self, jump: str) -> None:
        """The wall clock is set; CLOCK_BOOTTIME knows nothing of it."""
        sign = -1 if jump.startswith("-") else 1
        self.clock.jumped_s += sign * parse_duration(jump.lstrip("+-"))

    def do_busy(self, who: str, why: str = "") -> None:
        self.busy[who] = why
        self._decide_all()

    def do_shared(self, who: str, by: str = "the node") -> None:
        self.foreign[who] = (by,)

    def do_elsewhere(self, who: str, why: str = "it is on DRBD") -> None:
        self.elsewhere[who] = why

    def do_asks(self, who: str, what: str = "writers would wait 12 s") -> None:
        """A step wants an approval before it goes on."""
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            self.plans.pop(found.incident_id, None)
            self._put(replace(found, state=State.WAITING, asks=what, approved_by=None))
            self._decide(found.incident_id)

    def do_restart(self, _what: object) -> None:
        """The daemon is killed and started: what is not stored is lost."""
        stored = [_INCIDENT.dump_json(found) for found in self.incidents.values()]
        self._start()
        ahead_ns = self.clock.wall_ns() - self.clock.boottime_ns()
        for text in stored:
            found = _INCIDENT.validate_json(text).on_clock(self.clock.boot, ahead_ns)
            self.incidents[found.incident_id] = found
        self._decide_all()

    def do_reboot(self, down: str) -> None:
        """The node is off for a while; nothing that ran is running then."""
        self.plans.clear()
        self._due.clear()
        for found in list(self.incidents.values()):
            if found.state is State.ACTING:
                self._put(replace(found, state=State.OPEN))

        def up() -> None:
            self.clock.boots += 1
            self.clock.booted_s = self.clock.now_s - 30
            self.do_restart(None)

        self._schedule(self.clock.now_s + parse_duration(down), up)

    # --- decisions ------------------------------------------------------------------------------

    def decide(self, found: Incident) -> Decision:
        """What the policy says now; nothing is done."""
        rules = policy.for_request(self.rules) if found.requested_by else self.rules
        now = self.clock.boottime_ns()
        return policy.decide(rules, found, self.scope(found), self.state(), now)

    def scope(self, found: Incident) -> Scope:
        """Whom it belongs to."""
        name = found.ves[0].removeprefix("lxc:")
        disk = self._disk(name)
        layer = self.layers.get(disk)
        return Scope(
            ves=(
                VeFacts(
                    ve_id=f"lxc:{name}",
                    name=name,
                    platform=self.node.platform,
                    labels=self.node.label.get(name, {}),
                    labels_known=name not in self.untold,
                    busy=self.busy.get(name) or None,
                ),
            ),
            foreign_users=self.foreign.get(name, ()),
            shared_with=self.elsewhere.get(name),
            devices=(str(found.filesystem.devno), disk),
            filesystems=(f"ext4 /{disk}",),
            beneath=(layer,) if layer else (),
            role="rootfs" if str(found.filesystem.device).endswith("-root") else "data",
            copies=self._copies(name),
        )

    def state(self) -> PolicyState:
        """The rest."""
        running = (self.incidents[one] for one in self.plans)
        return PolicyState(
            mode=self.node.mode,
            distrust=self.distrust,
            disarms=self.history.current_disarms(),
            running=tuple(RunningRepair(incident_id=i.incident_id, load=i.load) for i in running),
            last_action_ns=self.history.last_action_ns,
            failures=self.history.failures,
            repaired_ns=self.history.repaired_ns,
            begun_ns=self.history.begun_ns,
            queue=self.turns.queue,
            storm=self.storm,
            local_s=self.clock.local(),
        )

    def _decide(self, incident_id: str) -> None:
        found = self.incidents.get(incident_id)
        if found is None or found.state not in {State.OPEN, State.WAITING}:
            return
        if not found.guards and blame(self.scope(found).beneath) is None:
            self._count_failure(found)
        scope = self.scope(found)
        decision = self.decide(found)
        reached = any(a.guard == "threshold" and a.passed for a in decision.answers)
        found = replace(
            found,
            rule=decision.rule,
            healthy_s=decision.healthy_s,
            guards=tuple((a.guard, a.passed, a.text) for a in decision.answers),
            reached_threshold_of=decision.rule if reached else found.reached_threshold_of,
            state=State.WAITING if decision.verdict is Verdict.WAIT else State.OPEN,
            waiting_for=decision.waiting_for,
        )
        self._put(found)
        last = decision.answers[-1]
        words = [decision.verdict.value, decision.rule or "-"]
        words += [last.guard] if not last.passed else []
        for shadow in decision.shadows:
            words += [f"| shadow {shadow.rule} {shadow.verdict.value}"]
        text = " ".join(words)
        if self._last.get(incident_id) != text or decision.verdict is Verdict.ACT:
            self._last[incident_id] = text
            self._say(found, text)
        if decision.waiting_for == "budget":
            rule = next(one for one in self.rules.rules if one.name == decision.rule)
            self.turns.waits(found, found.ves[0], rule.budget, scope.load)
        else:
            self.turns.gone(incident_id)
        if decision.verdict is Verdict.ACT:
            self._act(found, decision, scope.load)
        elif decision.retry_after_s is not None:
            self._ask_again(incident_id, decision.retry_after_s)

    def _ask_again(self, incident_id: str, delay_s: float) -> None:
        when = self.clock.now_s + max(min(delay_s, 3600.0), 0.001)
        if (
            self._due.get(incident_id, when + 1) <= when
            and self._due[incident_id] > self.clock.now_s
        ):
            return
        self._due[incident_id] = when

        def again() -> None:
            if self._due.get(incident_id) == when:
                del self._due[incident_id]
                self._decide(incident_id)

        self._schedule(when, again)

    def _decide_all(self) -> None:
        for found in sorted(self.incidents.values(), key=lambda one: one.opened_ns):
            self._decide(found.incident_id)

    # --- plans ----------------------------------------------------------------------------------

    def _act(self, found: Incident, decision: Decision, load: Load) -> None:
        self.history.begun(found.ves[0])
        steps = [step.do for step in decision.steps if step.do != "notify"]
        self._put(replace(found, state=State.ACTING, load=load, attempts=found.attempts + 1))
        plan = self.plans[found.incident_id] = Plan(found.incident_id, steps)
        self._step(plan, self.node.repair_s / len(steps))

    def _step(self, plan: Plan, each_s: float) -> None:
        """As the executor does: nothing is begun on what was disarmed meanwhile."""
        found = self.incidents.get(plan.incident_id)
        if self.plans.get(plan.incident_id) is not plan or found is None:
            return
        if not plan.steps:
            self._end(found)
            return
        disarmed = self.history.why_disarmed(self.scope(found).ves)
        if not plan.begun and (disarmed or (self.distrust and not found.requested_by)):
            del self.plans[plan.incident_id]
            self._put(replace(found, state=State.WAITING, waiting_for="armed" if disarmed else ""))
            self._say(found, "cancelled")
            self._decide_all()
            return
        plan.begun = plan.begun or plan.steps[0] != "snapshot"
        plan.steps.pop(0)
        self._schedule(self.clock.now_s + each_s, lambda: self._step(plan, each_s))

    def _end(self, found: Incident) -> None:
        del self.plans[found.incident_id]
        name, volume = self._name(found), found.filesystem.volume_key
        failed = self.node.fails.get(name, 0) > 0
        self.history.acted(found.rule or "", volume, failed=failed)
        self.history.repaired(volume)
        if failed:
            self.node.fails[name] -= 1
            self._put(replace(found, state=State.NEEDS_OPERATOR))
            self._say(found, "failed, needs-operator")
        else:
            self._put(replace(found, state=State.VERIFYING))
            self._say(found, "repaired")
            self._schedule(self.clock.now_s + found.healthy_s, lambda: self._verified(found))
        self._decide_all()

    def _verified(self, found: Incident) -> None:
        current = self.incidents.get(found.incident_id)
        if current is not None and current.state is State.VERIFYING:
            self._close(current, "repaired")

    # --- storms ---------------------------------------------------------------------------------

    def _count_failure(self, found: Incident) -> None:
        settings, now = self.rules.storm, self.clock.boottime_ns()
        if found.requested_by or found.severity < Severity.ERROR:
            return
        self.history.failed(found.ves[0])
        if settings is None:
            return
        failing = storm.failing(settings, self.history.failed_ns, now)
        total = sum(len(ves) for ves in self.node.disks.values())
        if self.storm is None and storm.breaks_out(settings, len(failing), total):
            self.storm = StormState(incident_id="storm", text="a storm")
            self._line(f"storm begins: {len(failing)} VEs")
            self._schedule(self.clock.now_s, self._decide_all)
        if self.storm is not None:
            self._look_at_storm()

    def _look_at_storm(self) -> None:
        settings = self.rules.storm
        if settings is None or self.storm is None:
            return
        left_s = storm.over_after_s(settings, self.history.failed_ns, self.clock.boottime_ns())
        if left_s == 0:
            self._end_storm()
        elif left_s is not None:
            self._schedule(self.clock.now_s + left_s, self._look_at_storm)

    def _end_storm(self) -> None:
        self.storm = None
        self.history.forget_failures(*self.history.failed_ns)
        self._line("storm ends")
        self._decide_all()

    # --- small things ---------------------------------------------------------------------------

    def _start(self) -> None:
        self.history = History(cast("Any", self.facts), cast("Any", self.clock))
        asyncio.run(self.history.load())
        self.turns = Turns(self.history.begun_ns)

    def _schedule(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when_s, next(self._order), what))

    def _line(self, text: str) -> None:
        self.log.append(f"{_show(self.clock.now_s)} {text}")

    def _say(self, found: Incident, text: str) -> None:
        self._line(f"{self._name(found)} {text}")

    def _put(self, found: Incident) -> None:
        self.incidents[found.incident_id] = found

    def _close(self, found: Incident, how: str) -> None:
        del self.incidents[found.incident_id]
        self.turns.gone(found.incident_id)
        self._say(found, f"closed, {how}")

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


def load(path: Path) -> list[dict[str, Any]]:
    """The scenarios in a file; rules and node of the file are those of each that has none."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    usual = {key: document[key] for key in ("rules", "node") if key in document}
    return [{**usual, **scenario} for scenario in document["scenario"]]


def wanted(document: dict[str, Any]) -> list[str]:
    """The log that the scenario expects."""
    return [" ".join(line.split()) for line in document["log"].strip().splitlines()]


def _target(who: str) -> str:
    if "=" in who:
        return label_target(*who.split("=", 1))
    return who if who == NODE else f"lxc:{who}"


def _rules(text: str) -> RuleSet:
    files = [("test.toml", text)]
    if text == "shipped":
        paths = sorted(embedded_rules().glob("*.toml"))
        files = [(path.name, path.read_text(encoding="utf-8")) for path in paths]
    rules, problems = assemble(files)
    assert not problems, [str(problem) for problem in problems]
    return rules


def _time_of_day(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60


def _show(seconds: float) -> str:
    """`90s` as `1m30s`."""
    left, parts = round(seconds), []
    for unit, size in (("d", DAY_S), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
