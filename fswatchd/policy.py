"""The decision: what is done about an incident, and why. Pure: no clock, no I/O.

`decide(rules, incident, scope, state, now)` answers the same to the same arguments. Every guard
that is asked leaves its answer, also the ones that let things pass, so that `fswatch why` shows
what was known when it was decided and never has to compute it again.

Not here: whether the object is still what it was (`repair.scope`), and the ways of a step
(`actions`). A decision to act is a permission, not a promise.
"""

from __future__ import annotations

import enum
import fnmatch
from dataclasses import dataclass

from fswatchd.cause import Cause, blame
from fswatchd.guards import GUARDS, GuardAnswer, guard_cause, refused_scope
from fswatchd.incidents import Incident
from fswatchd.rules import NotifyStep, PlainStep, Rule, RuleSet, Step
from fswatchd.situation import PolicyState, Scope


class Verdict(enum.StrEnum):
    """What to do now."""

    ACT = "act"
    WAIT = "wait"
    NOTIFY = "notify"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done. `waiting_for` names the guard; `retry_after_s` when to ask again.

    `cause` is what is to blame instead of the filesystem, also where nothing would be done.
    """

    verdict: Verdict
    rule: str | None = None
    steps: tuple[Step, ...] = ()
    channels: tuple[str, ...] = ()
    healthy_s: float = 60.0
    waiting_for: str = ""
    retry_after_s: float | None = None
    cause: Cause | None = None
    answers: tuple[GuardAnswer, ...] = ()


def decide(
    rules: RuleSet, incident: Incident, scope: Scope, state: PolicyState, now_ns: int
) -> Decision:
    """Decide about one incident at `now_ns` (CLOCK_BOOTTIME)."""
    matching = _matching(rules, incident, scope)
    cause = blame(scope.beneath)
    if not matching:
        answer = GuardAnswer(guard="rule", passed=False, text="no rule matches this incident")
        return Decision(verdict=Verdict.NONE, cause=cause, answers=(answer,))
    rule = next((rule for rule in matching if _acting_steps(rule)), matching[0])
    origin = dict(rules.origin).get(rule.name, "?")
    text = f"{rule.name} ({origin}) matches"
    answers = [GuardAnswer(guard="rule", passed=True, text=text)]
    verdict = Verdict.NOTIFY
    if _acting_steps(rule):
        verdict = Verdict.ACT
        for guard in GUARDS:
            answers.append(guard(rule, incident, scope, state, now_ns))
            if not answers[-1].passed:
                verdict = Verdict.WAIT if answers[-1].waits else Verdict.NOTIFY
                break
    if (
        cause is not None
        and verdict is Verdict.NOTIFY
        and answers[-1].guard in {"rule", "confirmed", "threshold"}
        and refused_scope(scope) is None
    ):
        # Nothing would be done now, but what is known will be another thing once that is well.
        answers.append(guard_cause(rule, incident, scope, state, now_ns))
        verdict = Verdict.WAIT
    return Decision(
        verdict=verdict,
        rule=rule.name,
        steps=tuple(rule.step),
        channels=_channels(matching),
        healthy_s=rule.healthy,
        waiting_for=answers[-1].guard if verdict is Verdict.WAIT else "",
        retry_after_s=answers[-1].retry_after_s,
        cause=cause,
        answers=tuple(answers),
    )


def for_request(rules: RuleSet) -> RuleSet:
    """The rules for a repair that a person asked for: those that repair, and one for the rest."""
    repairing = [r for r in rules.rules if any(step.do == "fsck" for step in r.step)]
    usual = Rule.model_validate(
        {
            "name": "operator-request",
            "mode": "auto",
            "budget": {"node": 4, "device": 1},
            "step": [{"do": "fsck"}],
        }
    )
    origin = (*rules.origin, (usual.name, "built in"))
    return RuleSet((*repairing, usual), origin)


def matches(rule: Rule, incident: Incident, scope: Scope) -> bool:
    """Whether `rule` is about this incident; with several VEs, all of them must match."""
    match = rule.match
    if not _glob(incident.klass_of_its_own.value, match.klass):
        return False
    if incident.severity not in match.severity.accepted:
        return False
    if not _glob(incident.filesystem.fstype or "", match.fstype):
        return False
    if not _glob(incident.node, match.node):
        return False
    if not scope.ves:
        return match.ve == ["*"] and match.platform == ["*"] and not match.label
    return all(
        any(_glob(name, match.ve) for name in (ve.ve_id, ve.name))
        and _glob(ve.platform, match.platform)
        and all(_glob(ve.labels.get(key, ""), wanted) for key, wanted in match.label.items())
        for ve in scope.ves
    )


def _matching(rules: RuleSet, incident: Incident, scope: Scope) -> list[Rule]:
    found: list[Rule] = []
    for rule in rules.rules:
        if matches(rule, incident, scope):
            found.append(rule)
            if not rule.carry_on:
                break
    return found


def _acting_steps(rule: Rule) -> list[Step]:
    return [
        step
        for step in rule.step
        if not isinstance(step, NotifyStep)
        and not (isinstance(step, PlainStep) and step.do == "quarantine")
    ]


def _glob(text: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def _channels(matching: list[Rule]) -> tuple[str, ...]:
    steps = [step for rule in matching for step in rule.step]
    named = [name for step in steps if isinstance(step, NotifyStep) for name in step.to]
    return tuple(dict.fromkeys(named))
