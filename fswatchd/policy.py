"""The decision: what is done about an incident, and why. Pure: no clock, no I/O.

`decide(rules, incident, scope, state, now)` answers the same to the same arguments. Every guard
that is asked leaves its answer, also the ones that let things pass, so that `fswatch why` shows
what was known when it was decided and never has to compute it again.

Not here: whether the object is still what it was (`repair.scope`), and the ways of a step
(`actions`). A decision to act is a permission, not a promise.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from fswatchd.cause import Cause, blame
from fswatchd.events import EventClass
from fswatchd.guards import (
    GUARDS,
    HANDING_OVER,
    GuardAnswer,
    guard_cause,
    is_scratch,
    refused_scope,
)
from fswatchd.incidents import Incident
from fswatchd.rules.match import Subject
from fswatchd.rules.model import NotifyStep, Rule, RuleSet, Step
from fswatchd.situation import PolicyState, Scope


class Verdict(enum.StrEnum):
    """What to do now."""

    ACT = "act"
    WAIT = "wait"
    NOTIFY = "notify"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What a rule would have done that was not let: one in mode shadow, as if it and the node had
    been in mode auto; the one that decides on a node in mode shadow, as if the node had been."""

    rule: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done. `waiting_for` names the guard; `retry_after_s` when to ask again, also where
    another rule may apply then. `shadows` are the answers of rules that only watch, and of the one
    that decides on a node that only watches.

    `does` is a digest of what the rule would do (`Rule.does`).
    `cause` is what is to blame instead of the filesystem, also where nothing would be done.
    """

    verdict: Verdict
    rule: str | None = None
    does: str | None = None
    steps: tuple[Step, ...] = ()
    channels: tuple[str, ...] = ()
    healthy_s: float = 60.0
    waiting_for: str = ""
    retry_after_s: float | None = None
    cause: Cause | None = None
    answers: tuple[GuardAnswer, ...] = ()
    shadows: tuple[Shadow, ...] = ()


def decide(
    rules: RuleSet, incident: Incident, scope: Scope, state: PolicyState, now_ns: int
) -> Decision:
    """Decide about one incident at `now_ns` (CLOCK_BOOTTIME)."""
    cause = blame(scope.beneath)
    matching, watching = _matching(rules, incident, scope, state, cause)
    shadows = tuple(_shadow(_awake(rule), incident, scope, state, now_ns) for rule in watching)
    border_s = _next_border_s(rules, state)
    if not matching:
        answer = GuardAnswer(guard="rule", passed=False, text="no rule matches this incident")
        return Decision(
            verdict=Verdict.NONE,
            cause=cause,
            answers=(answer,),
            retry_after_s=border_s,
            shadows=shadows,
        )
    rule = next((rule for rule in matching if _acting_steps(rule)), matching[0])
    text = f"{rule.name} ({rules.files.get(rule.name, '?')}) matches"
    own = incident.klass_of_its_own
    if own is not incident.klass and incident.cause is not None:
        text += f" as {own.value}, which is what is left since {incident.cause['object']} is well"
    answers = [GuardAnswer(guard="rule", passed=True, text=text)]
    verdict = Verdict.NOTIFY
    if _acting_steps(rule):
        verdict = _ask_guards(rule, incident, scope, state, now_ns, answers)
    if (
        cause is not None
        and verdict is Verdict.NOTIFY
        and answers[-1].guard in {"rule", "confirmed", "threshold"}
        and refused_scope(scope) is None
    ):
        # Nothing would be done now, but what is known will be another thing once that is well.
        answers.append(guard_cause(rule, incident, scope, state, now_ns))
        verdict = Verdict.WAIT
    if state.mode == "shadow" and not incident.requested_by and not is_scratch(scope):
        shadows = (_shadow(rule, incident, scope, state, now_ns), *shadows)
    retries = [s for s in (answers[-1].retry_after_s, border_s) if s is not None]
    return Decision(
        verdict=verdict,
        rule=rule.name,
        does=rule.does,
        steps=tuple(rule.step),
        channels=_channels(matching),
        healthy_s=rule.healthy,
        waiting_for=answers[-1].guard if verdict is Verdict.WAIT else "",
        retry_after_s=min(retries) if retries and verdict is not Verdict.ACT else None,
        cause=cause,
        answers=tuple(answers),
        shadows=shadows,
    )


def no_incident(klass: EventClass) -> Decision:
    """About an event that is no problem by itself: whatever the rules say, nobody is told of it."""
    text = f"an event of the class {klass.value} opens no incident by itself"
    answer = GuardAnswer(guard="class", passed=False, text=text)
    return Decision(verdict=Verdict.NONE, answers=(answer,))


def for_request(rules: RuleSet) -> RuleSet:
    """The rules for a repair that a person asked for: those that repair, and one for the rest."""
    repairing = [r for r in rules.rules if r.mode != "shadow" and _repairs(r)]
    usual = Rule.model_validate(
        {
            "name": "operator-request",
            "mode": "auto",
            "budget": {"node": 4, "device": 1},
            "step": [{"do": "fsck"}],
        }
    )
    origin = (*rules.origin, (usual.name, "built in"))
    return RuleSet((*repairing, usual), origin, rules.storm)


def _ask_guards(
    rule: Rule,
    incident: Incident,
    scope: Scope,
    state: PolicyState,
    now_ns: int,
    answers: list[GuardAnswer],
) -> Verdict:
    """Adds the guards' answers, up to the first that does not pass."""
    for guard in GUARDS if any(map(_does_something, rule.step)) else HANDING_OVER:
        answers.append(guard(rule, incident, scope, state, now_ns))
        if not answers[-1].passed:
            return Verdict.WAIT if answers[-1].waits else Verdict.NOTIFY
    return Verdict.ACT


def _shadow(
    rule: Rule, incident: Incident, scope: Scope, state: PolicyState, now_ns: int
) -> Shadow:
    steps = ", ".join(step.do for step in rule.step)
    if not _acting_steps(rule):
        return Shadow(rule=rule.name, verdict=Verdict.NOTIFY, text=f"would have done: {steps}")
    answers: list[GuardAnswer] = []
    # What it would have done had the node let it, and trusted itself.
    wide = replace(state, mode="auto", distrust="")
    verdict = _ask_guards(rule, incident, scope, wide, now_ns, answers)
    text = f"would have done: {steps}"
    if verdict is not Verdict.ACT:
        held = "waited" if verdict is Verdict.WAIT else "only told"
        text = f"would have {held}: {answers[-1].guard}: {answers[-1].text}"
    return Shadow(rule=rule.name, verdict=verdict, text=text)


def _awake(rule: Rule) -> Rule:
    """A rule in mode shadow as it would be in mode auto."""
    return rule.model_copy(update={"mode": "auto"})


def _matching(
    rules: RuleSet, incident: Incident, scope: Scope, state: PolicyState, cause: Cause | None
) -> tuple[list[Rule], list[Rule]]:
    """The rules that decide, and those in mode shadow that would have been asked beside them."""
    subject = Subject(
        klass=incident.klass_of_its_own.value,
        severity=incident.severity,
        fstype=incident.filesystem.fstype or "",
        node=incident.node,
        role=scope.role,
        cause=cause.kind if cause is not None else "none",
        confirmed=incident.confirmed,
        ve_count=len(incident.ves),
        local_s=state.local_s,
        ves=scope.ves,
    )
    found: list[Rule] = []
    watching: list[Rule] = []
    decided = False
    for place in rules.index.matching(subject):
        rule = rules.rules[place]
        if rule.mode == "shadow":
            watching.append(rule)
        elif not decided:
            found.append(rule)
            decided = not rule.carry_on
        if decided and not rules.has_shadows:
            break
    return found, watching


def _next_border_s(rules: RuleSet, state: PolicyState) -> float | None:
    if state.local_s is None or not rules.windows:
        return None
    return float(min(window.next_border_s(state.local_s) for window in rules.windows))


def _repairs(rule: Rule) -> bool:
    return any(step.do == "fsck" for step in rule.step)


def _does_something(step: Step) -> bool:
    return not isinstance(step, NotifyStep) and step.do != "quarantine"


def _acting_steps(rule: Rule) -> list[Step]:
    return [step for step in rule.step if not isinstance(step, NotifyStep)]


def _channels(matching: list[Rule]) -> tuple[str, ...]:
    steps = [step for rule in matching for step in rule.step]
    named = [name for step in steps if isinstance(step, NotifyStep) for name in step.to]
    return tuple(dict.fromkeys(named))
