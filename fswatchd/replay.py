"""What other rules would have done with recorded events. Pure: no clock, no I/O.

The events of each recorded incident are put together again, and the policy is asked at the moments
at which the daemon would have asked it: a moment after an event, when a cool-down has passed, when
a repair has ended. What the node looked like is taken from the record of each decision. A repair
takes as long as it took then (`USUAL_REPAIR_S` where there was none); that it succeeds is assumed,
so what comes after it is not replayed. Storms, and whose turn it is, are not replayed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fswatchd import decisions, eventdoc, policy
from fswatchd.decisions import Outline
from fswatchd.devno import Devno
from fswatchd.events import EventClass, FsEvent, Severity, domain_of
from fswatchd.incidents import Filesystem, Incident
from fswatchd.policy import Decision, Verdict
from fswatchd.rules import NodeMode, RuleSet
from fswatchd.situation import Disarm, PolicyState, RunningRepair, Scope

# Nanoseconds of CLOCK_REALTIME → seconds of the day, where the node is.
LocalTime = Callable[[int], int]

_NS = 1_000_000_000
_SETTLE_NS = 200_000_000
_RETRY_MAX_S = 3600.0
USUAL_REPAIR_S = 60.0
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


@dataclass(slots=True)
class _Case:
    """An incident on its way through the replay. `due_ns` is when it is decided about next, `asked`
    what the last decision was about."""

    incident: Incident
    scope: Scope
    mode: NodeMode
    disarms: tuple[Disarm, ...]
    recorded: Outline | None
    assumed: bool
    took_ns: int
    closed_ns: int | None
    decision: Decision | None = None
    due_ns: int | None = None
    asked: tuple[object, ...] = ()
    ended: bool = False


@dataclass(slots=True)
class _Replay:
    rules: RuleSet
    local_s: LocalTime | None = None
    cases: dict[str, _Case] = field(default_factory=dict)
    waiting: dict[str, _Case] = field(default_factory=dict)
    running: dict[str, RunningRepair] = field(default_factory=dict)
    last_action_ns: dict[tuple[str, str], int] = field(default_factory=dict)
    repaired_ns: dict[str, tuple[int, ...]] = field(default_factory=dict)
    begun_ns: dict[str, int] = field(default_factory=dict)
    agenda: list[tuple[int, int, str, str]] = field(default_factory=list)
    number: int = 0

    def at(self, when_ns: int, what: str, incident: str) -> None:
        self.number += 1
        heapq.heappush(self.agenda, (when_ns, self.number, what, incident))

    def run_until(self, now_ns: int) -> None:
        while self.agenda and self.agenda[0][0] <= now_ns:
            when_ns, _, what, incident = heapq.heappop(self.agenda)
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
        if case.closed_ns is not None and now_ns > case.closed_ns:
            case.ended = True
            self.waiting.pop(case.incident.incident_id, None)
            return
        state = PolicyState(
            mode=case.mode,
            disarms=case.disarms,
            running=tuple(self.running.values()),
            last_action_ns=self.last_action_ns,
            repaired_ns=self.repaired_ns,
            begun_ns=self.begun_ns,
            local_s=self.local_s(now_ns) if self.local_s else None,
        )
        rules = policy.for_request(self.rules) if case.incident.requested_by else self.rules
        before, found = (
            case.decision,
            policy.decide(rules, case.incident, case.scope, state, now_ns),
        )
        case.decision, case.asked = found, _substance(case.incident)
        if found.verdict is Verdict.WAIT:
            self.waiting[case.incident.incident_id] = case
        else:
            self.waiting.pop(case.incident.incident_id, None)
        if case.incident.reached_threshold_of != found.rule and any(
            answer.guard == "threshold" and answer.passed for answer in found.answers
        ):
            case.incident = replace(case.incident, reached_threshold_of=found.rule)
        if found.verdict is Verdict.ACT:
            case.ended = True
            incident_id = case.incident.incident_id
            self.running[incident_id] = RunningRepair(incident_id=incident_id, load=case.scope.load)
            self.begun_ns.update((ve.ve_id, now_ns) for ve in case.scope.ves)
            self.at(now_ns + case.took_ns, "end", incident_id)
        elif found.retry_after_s is not None and (
            before is None or before.answers != found.answers
        ):
            self.poke(case, now_ns + int(min(found.retry_after_s, _RETRY_MAX_S) * _NS) + 1)

    def _repair_ends(self, case: _Case, now_ns: int) -> None:
        del self.running[case.incident.incident_id]
        if case.decision is not None and case.decision.rule:
            key = (case.decision.rule, case.incident.filesystem.volume_key)
            self.last_action_ns[key] = now_ns
            volume = case.incident.filesystem.volume_key
            self.repaired_ns[volume] = (*self.repaired_ns.get(volume, ()), now_ns)
        for other in self.waiting.values():
            self.poke(other, now_ns)


def replay(
    rules: RuleSet,
    events: Iterable[Mapping[str, Any]],
    recorded: Iterable[Mapping[str, Any]],
    mode: NodeMode | None = None,
    usual_mode: NodeMode = "observe",
    local_s: LocalTime | None = None,
) -> list[Replayed]:
    """Every incident of `events`, as they began. `local_s` gives the node's seconds of the day.

    `events` are documents in the order of their cursors, with `time_ns`. `recorded` is what the
    daemon tells of its decisions (`/v1/decisions`). `mode` replaces the node's recorded mode; where
    that is not known `usual_mode` stands for it.
    """
    known = {str(one["incident"]): one for one in recorded}
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
            run.cases[incident_id] = case
        if not case.ended:
            case.incident = case.incident.joined(event, last_ns)
            if _may_matter(case):
                run.poke(case, last_ns + _SETTLE_NS)
    # What waits for a cool-down is waited for, but no longer than anybody would.
    run.run_until(last_ns + 7 * 86400 * _NS)
    return [_replayed(case) for case in run.cases.values()]


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
    return (incident.classes, incident.severity, incident.confirmed, more_than_none)


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
        disarms=decisions.disarms_of(facts) if facts else (),
        recorded=decisions.outline_of(facts) if facts else None,
        assumed=facts is None,
        took_ns=int((USUAL_REPAIR_S if took_s is None else took_s) * _NS),
        closed_ns=eventdoc.time_ns(closed) if closed else None,
    )


def _replayed(case: _Case) -> Replayed:
    decision = case.decision
    return Replayed(
        incident=case.incident.incident_id,
        opened_ns=case.incident.opened_ns,
        klass=case.incident.klass.value,
        ves=case.incident.ves,
        recorded=case.recorded,
        under_rules=decisions.outline(decision) if decision else Outline(verdict="none", rule=None),
        reason=decision.answers[-1].text if decision and decision.answers else "",
        assumed=case.assumed,
    )
