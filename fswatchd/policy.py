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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fswatchd.events import Health
from fswatchd.incidents import Incident
from fswatchd.rules import MODES, Mode, NotifyStep, PlainStep, Rule, RuleSet, Step
from fswatchd.units import show_duration, show_size

NS = 1_000_000_000
# No event tells that a backup or a migration has ended.
_BUSY_RETRY_S = 30.0
_NAMES_SHOWN = 8
# Less than this is no room for a write: the larger of 1 MiB, and a thousandth of up to 64 GiB.
_FULL_BYTES = 1 << 20
_FULL_SHARE = 1000
_FULL_MOST_BYTES = 64 << 20


class Verdict(enum.StrEnum):
    """What to do now."""

    ACT = "act"
    WAIT = "wait"
    NOTIFY = "notify"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class VeFacts:
    """What rules may ask about a VE. `scratch` is true only for ids the daemon made itself; to
    what is `hands_off` nothing is ever done, to what is `busy` nothing until that has ended."""

    ve_id: str
    name: str
    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)
    busy: str | None = None
    scratch: bool = False
    hands_off: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Something that an incident's filesystem rests on, as it is now; None is not known.

    `name` is `/dev/loop3`, or a filesystem in words. For a device: `errors` it has reported,
    `readonly`, `missing` members of an array, its `state` where it does not run, and `short_by`
    bytes that its image lacks. For a filesystem: its room, its health, and `damaged` where an open
    incident says so. `since_ns` (CLOCK_REALTIME) is when its own incident began.
    """

    kind: Literal["device", "filesystem"]
    name: str
    since_ns: int | None = None
    errors: int = 0
    readonly: bool = False
    missing: int = 0
    state: str = ""
    short_by: int = 0
    free_bytes: int | None = None
    total_bytes: int = 0
    free_inodes: int | None = None
    health: Health = Health.UNKNOWN
    damaged: str = ""
    answers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What is to blame: `kind` is `space`, `device` or `filesystem`, `name` the object."""

    kind: str
    name: str
    text: str
    since_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whom the incident's filesystem belongs to.

    `foreign_users` names whoever else uses it: the node itself, a namespace of no VE. `dependents`
    are VEs and others that depend on it only through what rests on it, such as images. `devices`
    are the backing devices that budgets count, the image's host filesystem among them. `beneath`
    is what it rests on, nearest first.
    """

    ves: tuple[VeFacts, ...] = ()
    foreign_users: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    beneath: tuple[Layer, ...] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardAnswer:
    """One question that was asked before acting, and its answer.

    An answer that did not pass either `waits` (and is asked again after `retry_after_s`, or when
    something changes), or leaves nothing to do but tell.
    """

    guard: str
    passed: bool
    text: str
    waits: bool = False
    retry_after_s: float | None = None


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
        answer = _no("rule", "no rule matches this incident")
        return Decision(verdict=Verdict.NONE, cause=cause, answers=(answer,))
    rule = next((rule for rule in matching if _acting_steps(rule)), matching[0])
    origin = dict(rules.origin).get(rule.name, "?")
    answers = [_yes("rule", f"{rule.name} ({origin}) matches")]
    verdict = Verdict.NOTIFY
    if _acting_steps(rule):
        verdict = Verdict.ACT
        for guard in _GUARDS:
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
        answers.append(_guard_cause(rule, incident, scope, state, now_ns))
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


def blame(beneath: Sequence[Layer]) -> Cause | None:
    """The deepest of the layers that is not well: all above it only suffer from it."""
    for layer in reversed(beneath):
        text, kind = _unwell(layer), str(layer.kind)
        if layer.kind == "filesystem" and is_full(layer):
            kind = "space"
        if text is not None:
            return Cause(kind=kind, name=layer.name, text=text, since_ns=layer.since_ns)
    return None


def is_full(layer: Layer) -> bool:
    """Whether a filesystem has no room for what a write to an image on it needs."""
    if layer.free_bytes is None:
        return False
    if layer.free_inodes == 0:
        return True
    share = min(layer.total_bytes // _FULL_SHARE, _FULL_MOST_BYTES)
    return layer.free_bytes < max(_FULL_BYTES, share)


def _unwell(layer: Layer) -> str | None:
    if layer.kind == "device":
        if layer.short_by:
            return f"its image file is {show_size(layer.short_by)} shorter than the device"
        if layer.state:
            return f"it is {layer.state}"
        if layer.missing:
            return f"{layer.missing} of its members are missing"
        if layer.errors:
            return f"it has reported {layer.errors} errors"
        return "it is read-only" if layer.readonly else None
    if not layer.answers:
        return "it does not answer"
    if is_full(layer):
        if layer.free_inodes == 0:
            return "it has no inodes left"
        return f"it is full: {show_size(layer.free_bytes or 0)} left"
    if layer.health in {Health.SHUTDOWN, Health.READONLY}:
        return f"it is {layer.health.value}"
    return layer.damaged or None


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


def refused_scope(scope: Scope) -> str | None:
    """Why nothing is done to a filesystem that these use; None where something may be."""
    return _never(scope) or _not_now(scope)


def _never(scope: Scope) -> str | None:
    if scope.foreign_users:
        users = ", ".join(scope.foreign_users)
        return f"the filesystem is also used by {users}"
    if not scope.ves:
        return "the filesystem belongs to no VE; the node's own are never repaired"
    if any(ve.hands_off for ve in scope.ves):
        return "it belongs to a drill that another daemon handles"
    if len(scope.ves) > 1:
        names = ", ".join(ve.ve_id for ve in scope.ves)
        return f"{len(scope.ves)} VEs share the filesystem ({names})"
    others = [name for name in scope.dependents if name != scope.ves[0].ve_id]
    if others:
        return f"it holds what {_some(others)} depends on"
    return None


def _not_now(scope: Scope) -> str | None:
    """What the platform does with a VE ends without us; two at one image would harm it."""
    busy = [f"{ve.ve_id} is busy: {ve.busy}" for ve in scope.ves if ve.busy]
    return "; ".join(busy) or None


def is_scratch(scope: Scope) -> bool:
    """Whether all that is touched was made by the daemon itself for a drill."""
    return bool(scope.ves) and all(ve.scratch for ve in scope.ves) and not scope.foreign_users


def widest_mode(rule: Rule, scope: Scope, state: PolicyState) -> Mode:
    """The narrower of rule and node; scratch VEs of a drill answer to their rule alone."""
    if is_scratch(scope):
        return rule.mode
    return MODES[min(MODES.index(rule.mode), MODES.index(state.mode))]


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


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} others" if more > 0 else "")


def _yes(guard: str, text: str) -> GuardAnswer:
    return GuardAnswer(guard=guard, passed=True, text=text)


def _no(guard: str, text: str) -> GuardAnswer:
    return GuardAnswer(guard=guard, passed=False, text=text)


def _later(guard: str, text: str, retry_after_s: float | None = None) -> GuardAnswer:
    return GuardAnswer(
        guard=guard, passed=False, text=text, waits=True, retry_after_s=retry_after_s
    )


def _guard_confirmed(
    _rule: Rule, incident: Incident, _scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if incident.requested_by:
        return _yes("confirmed", f"not asked: {incident.requested_by} asked for this repair")
    if incident.confirmed:
        return _yes("confirmed", "a fact of the kernel's state confirms it")
    return _no("confirmed", "only log lines say so; nothing is done on the word of a log line")


def _guard_scope(
    _rule: Rule, _incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    refused = _never(scope)
    if refused is not None:
        return _no("scope", refused)
    busy = _not_now(scope)
    if busy is not None:
        return _later("scope", busy, _BUSY_RETRY_S)
    return _yes("scope", f"{scope.ves[0].ve_id} is the only user of the filesystem")


def _guard_armed(
    _rule: Rule, _incident: Incident, scope: Scope, state: PolicyState, now_ns: int
) -> GuardAnswer:
    targets = {"node", *(ve.ve_id for ve in scope.ves)}
    for disarm in state.disarms:
        if disarm.target in targets and (disarm.until_ns is None or now_ns < disarm.until_ns):
            text = f"{disarm.target} was disarmed by {disarm.by}: {disarm.reason}"
            left_s = None if disarm.until_ns is None else (disarm.until_ns - now_ns) / NS
            return _later("armed", text, left_s)
    return _yes("armed", "nothing is disarmed")


def _guard_cause(
    _rule: Rule, incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    cause = blame(scope.beneath)
    if cause is not None:
        return _later("cause", f"{cause.name} is to blame: {cause.text}")
    if incident.cause_is_over and incident.cause is not None:
        return _yes("cause", f"{incident.cause['object']} was to blame, and is well again")
    return _yes("cause", "everything beneath it is well")


def _guard_threshold(
    rule: Rule, incident: Incident, _scope: Scope, _state: PolicyState, now_ns: int
) -> GuardAnswer:
    wanted = rule.threshold
    if incident.requested_by:
        return _yes("threshold", "not asked: requested by hand")
    if incident.reached_threshold_of == rule.name:
        # Most filesystems report no more once they have stopped: waiting is no all-clear.
        return _yes("threshold", "reached at an earlier decision")
    since = now_ns - wanted.window_s * NS
    seen: dict[str, int] = {}
    for when, source, count in incident.recent:
        if when >= since:
            seen[source] = seen.get(source, 0) + count
    # Every source tells of the same errors; one that has only seen the consequence still saw one.
    errors = max(max(seen.values()), 1) if seen else 0
    text = f"{errors} errors in {show_duration(wanted.window_s)}, the rule wants {wanted.count}"
    return _yes("threshold", text) if errors >= wanted.count else _no("threshold", text)


def _guard_denied(
    _rule: Rule, incident: Incident, _scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if incident.denied_by and not incident.requested_by:
        return _no("denied", f"denied by {incident.denied_by}")
    return _yes("denied", "nobody has denied it")


def _guard_asked(
    _rule: Rule, incident: Incident, _scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if not incident.asks:
        return _yes("asked", "no step has asked for anything")
    if incident.approved_by:
        return _yes("asked", f"approved by {incident.approved_by}: {incident.asks}")
    return _later("approval", incident.asks)


def _guard_mode(
    rule: Rule, incident: Incident, scope: Scope, state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if incident.requested_by:
        return _yes("mode", f"requested by {incident.requested_by}, which is the approval")
    mode = widest_mode(rule, scope, state)
    text = f"rule {rule.mode}, node {state.mode}: {mode}"
    if is_scratch(scope):
        text = f"rule {rule.mode} for scratch VEs that the daemon made for a drill"
    if mode == "observe":
        return _no("mode", text)
    if mode == "auto":
        return _yes("mode", text)
    if incident.approved_by:
        return _yes("mode", f"{text}; approved by {incident.approved_by}")
    return _later("approval", f"{text}; nobody has approved yet")


def _guard_cooldown(
    rule: Rule, incident: Incident, _scope: Scope, state: PolicyState, now_ns: int
) -> GuardAnswer:
    last = state.last_action_ns.get((rule.name, incident.filesystem.volume_key))
    if last is None or incident.requested_by:
        return _yes("cooldown", "no earlier action on this volume counts")
    passed_s = max((now_ns - last) / NS, 0.0)
    text = (
        f"the rule last acted on this volume {show_duration(passed_s)} ago, "
        f"cool-down is {show_duration(rule.cooldown)}"
    )
    if passed_s >= rule.cooldown:
        return _yes("cooldown", text)
    return _later("cooldown", text, rule.cooldown - passed_s)


def _guard_budget(
    rule: Rule, incident: Incident, scope: Scope, state: PolicyState, _now_ns: int
) -> GuardAnswer:
    others = [run for run in state.running if run.incident_id != incident.incident_id]
    if len(others) >= rule.budget.node:
        text = f"{len(others)} repairs run on this node, the rule allows {rule.budget.node}"
        return _later("budget", text)
    for device in scope.devices:
        used = sum(device in run.devices for run in others)
        if used >= rule.budget.device:
            text = f"{used} repairs run on {device}, the rule allows {rule.budget.device}"
            return _later("budget", text)
    return _yes("budget", f"{len(others)} of {rule.budget.node} repairs run on this node")


_Guard = Callable[[Rule, Incident, Scope, PolicyState, int], GuardAnswer]
_GUARDS: tuple[_Guard, ...] = (
    _guard_confirmed,
    _guard_scope,
    _guard_threshold,
    _guard_denied,
    _guard_armed,
    _guard_cause,
    _guard_mode,
    _guard_asked,
    _guard_cooldown,
    _guard_budget,
)
