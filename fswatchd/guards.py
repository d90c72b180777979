"""The questions that are asked before anything is done, and their answers. Pure.

They are asked in the order of `GUARDS`; the first that does not pass ends the asking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fswatchd.cause import blame
from fswatchd.incidents import Incident
from fswatchd.rules import MODES, Mode, Rule
from fswatchd.situation import PolicyState, Scope
from fswatchd.units import show_duration

NS = 1_000_000_000
# No event tells that a backup or a migration has ended.
_BUSY_RETRY_S = 30.0
_NAMES_SHOWN = 8
# Steps that work on a volume, and not on the VE as a whole.
_ON_THE_VOLUME = frozenset({"contain", "fsck", "remount", "scrub", "snapshot", "trim"})


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


def refused_scope(scope: Scope) -> str | None:
    """Why a filesystem that these use is not repaired; None where it may be."""
    return _never(scope) or scope.shared_with or _unrepairable(scope) or _not_now(scope)


def _never(scope: Scope) -> str | None:
    if scope.children:
        return f"it is the base of {_some(list(scope.children))}"
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


def _unrepairable(scope: Scope) -> str | None:
    return next((f"{ve.ve_id} is {ve.unrepairable}" for ve in scope.ves if ve.unrepairable), None)


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
    rule: Rule, _incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    refused = _never(scope)
    if refused is None and any(step.do in _ON_THE_VOLUME for step in rule.step):
        refused = _unrepairable(scope)
    if refused is not None:
        return _no("scope", refused)
    busy = _not_now(scope)
    if busy is not None:
        return _later("scope", busy, _BUSY_RETRY_S)
    return _yes("scope", f"{scope.ves[0].ve_id} is the only user of the filesystem")


def _guard_elsewhere(
    _rule: Rule, _incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if scope.shared_with is not None:
        return _no("elsewhere", scope.shared_with)
    return _yes("elsewhere", "nothing says that another node can reach it")


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


def _only_leaves(rule: Rule) -> bool:
    """Whether the rule does nothing here but to let the VE go."""
    steps = {step.do for step in rule.step}
    return "evacuate" in steps and steps <= {"evacuate", "notify", "quarantine"}


def guard_cause(
    rule: Rule, incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    """Whether what it rests on is well."""
    cause = blame(scope.beneath)
    if cause is not None and _only_leaves(rule):
        return _yes("cause", f"{cause.name} is to blame, and the VE is only moved away from it")
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
GUARDS: tuple[_Guard, ...] = (
    _guard_confirmed,
    _guard_scope,
    _guard_elsewhere,
    _guard_threshold,
    _guard_denied,
    _guard_armed,
    guard_cause,
    _guard_mode,
    _guard_asked,
    _guard_cooldown,
    _guard_budget,
)
