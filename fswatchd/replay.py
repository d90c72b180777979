"""What other rules would have done with recorded events. Pure: no clock, no I/O.

The events of each recorded incident are put together again, and the policy is asked at the moments
at which the daemon would have asked it: a moment after an event, when a cool-down has passed, when
a repair has ended, when a storm begins or ends. Budgets, turns and storms are those of the rules
given. What the node looked like is taken from the record of each decision. A repair takes as long
as it took then (`USUAL_REPAIR_S` where there was none), and fails where it failed then; what comes
after it on the same volume while the rule still watches (`healthy`) is a part of it. A storm that
waits for an operator lasts: nobody knows when he would have come.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fswatchd import decisions, eventdoc, policy, storm
from fswatchd.cause import blame
from fswatchd.decisions import Outline
from fswatchd.devno import Devno
from fswatchd.events import Domain, EventClass, FsEvent, Severity, domain_of
from fswatchd.incidents import Filesystem, Incident
from fswatchd.policy import Decision, Verdict
from fswatchd.rules.model import RuleSet
from fswatchd.rules.modes import NodeMode
from fswatchd.situation import Disarm, PolicyState, RunningRepair, Scope, StormState
from fswatchd.turns import Turns
from fswatchd.units import parse_timestamp

# Nanoseconds of CLOCK_REALTIME → seconds of the day, where the node is.
LocalTime = Callable[[int], int]

_NS = 1_000_000_000
_SETTLE_NS = 200_000_000
_RETRY_MAX_S = 3600.0
USUAL_REPAIR_S = 60.0
# As the decider: who has not taken his turn by then is passed over.
_TURN_TAKEN_NS = 20 * _NS
_STORM = "storm"
_CLASSES = {klass.value: klass for klass in EventClass}
_SEVERITIES = {severity.label: severity for severity in Severity}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One incident: what was decided then, and what would be decided under the rules given.

    `assumed` is true where no facts were recorded, and the VEs' names are all that is known.
    """

    incident: str
    opened_ns: int
    klass: str
    ves: tuple[str, ...]
    recorded: Outline | None
    under_rules: Outline
    reason: str
    assumed: bool

    @property
    def changed(self) -> bool:
        """Whether the rules given would have decided otherwise."""
        return self.recorded is not None and self.recorded != self.under_rules

    def document(self) -> dict[str, Any]:
        """For JSON, without the time."""
        return {
            "incident": self.incident,
            "class": self.klass,
            "ves": list(self.ves),
            "recorded": self.recorded.document() if self.recorded else None,
            "replayed": {**self.under_rules.document(), "reason": self.reason},
            "changed": self.changed,
            "assumed": self.assumed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStorm:
    """A storm that would have been; times in ns of CLOCK_REALTIME, None where it lasts."""

    begun_ns: int
    ended_ns: int | None
    ves: tuple[str, ...]
    likely_cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What would have been: every incident as they began, and the storms."""

    incidents: list[Replayed]
    storms: list[ReplayedStorm]


@dataclass(slots=True)
class _Case:
    """An incident on its way through the replay. `due_ns` is when it is decided about next, `asked`
    what the last decision was about."""

    incident: Incident
    scope: Scope
    mode: NodeMode
    distrust: str
    disarms: tuple[Disarm, ...]
    recorded: Outline | None
    assumed: bool
    took_ns: int
    failed: bool
    closed_ns: int | None
    node_ves: int
    decision: Decision | None = None
    due_ns: int | None = None
    asked: tuple[object, ...] = ()
    ended: bool = False
    part_of: str = ""


@dataclass(slots=True)
class _Replay:
    rules: RuleSet
    local_s: LocalTime | None = None
    cases: dict[str, _Case] = field(default_factory=dict)
    waiting: dict[str, _Case] = field(default_factory=dict)
    running: dict[str, RunningRepair] = field(default_factory=dict)
    last_action_ns: dict[tuple[str, str], int] = field(default_factory=dict)
    repaired_ns: dict[str, tuple[int, ...]] = field(default_factory=dict)
    failures: dict[tuple[str, str], int] = field(default_factory=dict)
    begun_ns: dict[str, int] = field(default_factory=dict)
    failed_ns: dict[str, int] = field(default_factory=dict)
    watched: dict[tuple[str, Domain], tuple[int, str]] = field(default_factory=dict)
    gave_way_ns: dict[str, int] = field(default_factory=dict)
    storms: list[ReplayedStorm] = field(default_factory=list)
    storm: StormState | None = None
    turns: Turns = field(init=False)
    agenda: list[tuple[int, int, str, str]] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        self.turns = Turns(self.begun_ns)

    def at(self, when_ns: int, what: str, incident: str) -> None:
        self.number += 1
        heapq.heappush(self.agenda, (when_ns, self.number, what, incident))

    def run_until(self, now_ns: int) -> None:
        while self.agenda and self.agenda[0][0] <= now_ns:
            when_ns, _, what, incident = heapq.heappop(self.agenda)
            if what == _STORM:
                self._look_at_storm(when_ns)
                continue
            case = self.cases[incident]
            if what == "end":
                self._repair_ends(case, when_ns)
            elif case.due_ns == when_ns and not case.ended:
                case.due_ns = None
                self._decide(case, when_ns)

    def poke(self, case: _Case, when_ns: int) -> None:
        if case.ended or (case.due_ns is not None and case.due_ns <= when_ns):
            return
        case.due_ns = when_ns
        self.at(when_ns, "decide", case.incident.incident_id)

    def _decide(self, case: _Case, now_ns: int) -> None:
        incident_id = case.incident.incident_id
        if case.closed_ns is not None and now_ns > case.closed_ns:
            case.ended = True
            self.waiting.pop(incident_id, None)
            self.turns.gone(incident_id)
            return
        if case.decision is None:
            self._count_failure(case, now_ns)
        state = PolicyState(
            mode=case.mode,
            distrust=case.distrust,
            disarms=case.disarms,
            running=tuple(self.running.values()),
            last_action_ns=self.last_action_ns,
            failures=self.failures,
            repaired_ns=self.repaired_ns,
            begun_ns=self.begun_ns,
            queue=self.turns.queue,
            storm=self.storm,
            local_s=self.local_s(now_ns) if self.local_s else None,
        )
        rules = policy.for_request(self.rules) if case.incident.requested_by else self.rules
        before, found = (
            case.decision,
            policy.decide(rules, case.incident, case.scope, state, now_ns),
        )
        case.decision, case.asked = found, _substance(case.incident)
        if found.verdict is Verdict.WAIT:
            self.waiting[incident_id] = case
        else:
            self.waiting.pop(incident_id, None)
        ahead = self._queue(rules, case, found, now_ns)
        if case.incident.reached_threshold_of != found.rule and any(
            answer.guard == "threshold" and answer.passed for answer in found.answers
        ):
            case.incident = replace(case.incident, reached_threshold_of=found.rule)
        if found.verdict is Verdict.ACT:
            case.ended = True
            self.running[incident_id] = RunningRepair(incident_id=incident_id, load=case.scope.load)
            self.begun_ns.update((ve.ve_id, now_ns) for ve in case.scope.ves)
            self.at(now_ns + case.took_ns, "end", incident_id)
        elif found.retry_after_s is not None and (
            before is None or before.answers != found.answers or ahead
        ):
            self.poke(case, now_ns + int(min(found.retry_after_s, _RETRY_MAX_S) * _NS) + 1)

    def _queue(self, rules: RuleSet, case: _Case, found: Decision, now_ns: int) -> bool:
        """What waits for a budget waits for its turn, as with the decider; whether another one goes
        first that has not had the time for it yet."""
        incident_id = case.incident.incident_id
        rule = rules.by_name.get(found.rule or "")
        self.gave_way_ns.pop(incident_id, None)
        if found.waiting_for == "budget" and rule is not None:
            self.turns.waits(case.incident, case.scope.ves[0].ve_id, rule.budget, case.scope.load)
        else:
            self.turns.gone(incident_id)
        ahead = found.answers[-1].ahead
        if ahead is None:
            return False
        if now_ns - self.gave_way_ns.setdefault(ahead, now_ns) >= _TURN_TAKEN_NS:
            del self.gave_way_ns[ahead]
            self.turns.gone(ahead)
        return True

    def _repair_ends(self, case: _Case, now_ns: int) -> None:
        del self.running[case.incident.incident_id]
        if case.decision is not None and case.decision.rule:
            volume = case.incident.filesystem.volume_key
            key = (case.decision.rule, volume)
            self.last_action_ns[key] = now_ns
            self.failures[key] = self.failures.get(key, 0) + 1 if case.failed else 0
            self.repaired_ns[volume] = (*self.repaired_ns.get(volume, ()), now_ns)
            until_ns = now_ns + int(case.decision.healthy_s * _NS)
            self.watched[volume, case.incident.domain] = (until_ns, case.incident.incident_id)
        for other in self.waiting.values():
            self.poke(other, now_ns)

    # --- storms ---------------------------------------------------------------------------------

    def _count_failure(self, case: _Case, now_ns: int) -> None:
        """As `engine.storms`: what suffers from something beneath it has not failed by itself."""
        incident, settings = case.incident, self.rules.storm
        counts = incident.domain is Domain.DAMAGE and incident.severity >= Severity.ERROR
        if not counts or settings is None or incident.requested_by or blame(case.scope.beneath):
            return
        for ve in case.scope.ves:
            self.failed_ns[ve.ve_id] = now_ns
        failing = storm.failing(settings, self.failed_ns, now_ns)
        if self.storm is None and storm.breaks_out(settings, len(failing), case.node_ves):
            self._storm_begins(failing, now_ns)
        elif self.storm is not None:
            self._look_at_storm(now_ns)

    def _storm_begins(self, failing: tuple[str, ...], now_ns: int) -> None:
        text = f"{len(failing)} VEs have failed at once: nothing is repaired until that is over"
        self.storm = StormState(incident_id=_STORM, text=text)
        wanted = set(failing)
        some = [
            one.incident for one in self.cases.values() if not wanted.isdisjoint(one.incident.ves)
        ]
        begun = ReplayedStorm(
            begun_ns=now_ns, ended_ns=None, ves=failing, likely_cause=storm.likely_cause(some)
        )
        self.storms.append(begun)
        self._poke_all(now_ns)
        self._look_at_storm(now_ns)

    def _look_at_storm(self, now_ns: int) -> None:
        settings = self.rules.storm
        if settings is None or self.storm is None:
            return
        left_s = storm.over_after_s(settings, self.failed_ns, now_ns)
        if left_s is None:
            return
        if left_s > 0:
            self.at(now_ns + int(left_s * _NS) + 1, _STORM, "")
            return
        self.storm = None
        self.failed_ns.clear()
        self.storms[-1] = replace(self.storms[-1], ended_ns=now_ns)
        self._poke_all(now_ns)

    def _poke_all(self, now_ns: int) -> None:
        for case in self.cases.values():
            if not case.ended and case.decision is not None:
                self.poke(case, now_ns)


def replay(
    rules: RuleSet,
    events: Iterable[Mapping[str, Any]],
    recorded: Iterable[Mapping[str, Any]],
    mode: NodeMode | None = None,
    usual_mode: NodeMode = "observe",
    local_s: LocalTime | None = None,
) -> Past:
    """What would have been done. `local_s` gives the node's seconds of the day.

    `events` are documents in the order of their cursors, with `time_ns`. `recorded` is what the
    daemon tells of its decisions (`/v1/decisions`). `mode` replaces the node's recorded mode; where
    that is not known `usual_mode` stands for it.
    """
    known = {str(one["incident"]): one for one in recorded}
    usual_ves = len({ve for one in known.values() for ve in one.get("ves", ())})
    run = _Replay(rules, local_s)
    last_ns = 0
    for document in events:
        incident_id = document.get("incident")
        if incident_id is None:
            continue
        event = _event(document)
        if not event.klass.is_problem:
            continue
        last_ns = max(last_ns, event.time_ns)
        run.run_until(last_ns)
        case = run.cases.get(incident_id)
        if case is None:
            case = _case(document, event, known.get(incident_id), mode, usual_mode)
            case.node_ves = case.node_ves or usual_ves
            run.cases[incident_id] = case
            _join_watched(run, case, last_ns)
        if not case.ended:
            case.incident = case.incident.joined(event, last_ns)
            if _may_matter(case):
                run.poke(case, last_ns + _SETTLE_NS)
    # What waits for a cool-down is waited for, but no longer than anybody would.
    run.run_until(last_ns + 7 * 86400 * _NS)
    return Past(incidents=[_replayed(case) for case in run.cases.values()], storms=run.storms)


def _join_watched(run: _Replay, case: _Case, now_ns: int) -> None:
    """What begins on a volume while its repair is still watched belongs to that repair."""
    found = run.watched.get((case.incident.filesystem.volume_key, case.incident.domain))
    if found is not None and now_ns < found[0] and found[1] != case.incident.incident_id:
        case.ended, case.part_of = True, found[1]


def totals(found: Iterable[Replayed]) -> dict[str, dict[str, int]]:
    """How often each verdict was given, then and under the rules given."""
    then: Counter[str] = Counter()
    now: Counter[str] = Counter()
    for one in found:
        then[one.recorded.verdict if one.recorded else "not recorded"] += 1
        now[one.under_rules.verdict] += 1
    return {"recorded": dict(sorted(then.items())), "replayed": dict(sorted(now.items()))}


def _event(document: Mapping[str, Any]) -> FsEvent:
    """An event that the store has written: it needs none of the checks of `eventdoc`."""
    return FsEvent(
        source=document["source"],
        klass=_CLASSES[document["class"]],
        severity=_SEVERITIES[document["severity"]],
        confirms=bool(document["confirms"]),
        time_ns=document["time_ns"],
        mono_ns=0,
        detail="",
        device=document["device"],
        devno=None,
        fstype=document["fstype"],
        errno=document["errno"],
        count=document["count"],
    )


def _may_matter(case: _Case) -> bool:
    """Whether one more event can make the decision another one.

    Another error of the same kind can only reach a threshold that was not reached. What time alone
    changes a decision tells itself (`retry_after_s`), and what others do comes from their ends.
    """
    found = case.decision
    if found is None or case.asked != _substance(case.incident):
        return True
    if found.retry_after_s is not None and case.due_ns is None:
        return True
    return any(answer.guard == "threshold" and not answer.passed for answer in found.answers)


def _substance(incident: Incident) -> tuple[object, ...]:
    more_than_none = incident.device_errors > 0
    klasses = (incident.classes, incident.klass_of_its_own)
    return (*klasses, incident.severity, incident.confirmed, more_than_none)


def _case(
    document: Mapping[str, Any],
    event: FsEvent,
    known: Mapping[str, Any] | None,
    mode: NodeMode | None,
    usual_mode: NodeMode,
) -> _Case:
    facts = known["decided"] if known else None
    about = known["filesystem"] if known else document
    devno = about.get("devno")
    filesystem = Filesystem(
        devno=Devno.parse(devno) if devno else None,
        device=about.get("device"),
        fstype=about.get("fstype"),
        uuid=about.get("uuid"),
        image=about.get("image"),
        server=about.get("server"),
    )
    incident = Incident(
        incident_id=document["incident"],
        node=str(known["node"]) if known else "",
        domain=domain_of(event.klass),
        filesystem=filesystem,
        opened_ns=event.time_ns,
        updated_ns=event.time_ns,
        ves=tuple(document["ves"]),
        cause=known["cause"] if known else None,
        requested_by=known["requested_by"] if known else None,
        approved_by=known["approved_by"] if known else None,
        denied_by=known["denied_by"] if known else None,
    )
    took_s = known["took_s"] if known else None
    closed = known["closed"] if known and took_s is None else None
    scope = decisions.scope_of(facts) if facts else eventdoc.scope(document)
    return _Case(
        incident=incident,
        scope=scope,
        mode=mode or (facts["mode"] if facts else usual_mode),
        distrust=str(facts.get("distrust", "")) if facts and mode is None else "",
        disarms=decisions.disarms_of(facts) if facts else (),
        recorded=decisions.outline_of(facts) if facts else None,
        assumed=facts is None,
        took_ns=int((USUAL_REPAIR_S if took_s is None else took_s) * _NS),
        failed=bool(known and known.get("failed")),
        node_ves=int(facts.get("node_ves") or 0) if facts else 0,
        closed_ns=parse_timestamp(closed) if closed else None,
    )


def _replayed(case: _Case) -> Replayed:
    decision = case.decision
    reason = decision.answers[-1].text if decision and decision.answers else ""
    if case.part_of:
        reason = f"{case.part_of}, repaired, would still be watched: that one needs an operator"
    return Replayed(
        incident=case.incident.incident_id,
        opened_ns=case.incident.opened_ns,
        klass=case.incident.klass.value,
        ves=case.incident.ves,
        recorded=case.recorded,
        under_rules=decisions.outline(decision) if decision else Outline(verdict="none", rule=None),
        reason=reason,
        assumed=case.assumed,
    )
