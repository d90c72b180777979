"""The questions that are asked before anything is done, and their answers. Pure.

They are asked in the order of `GUARDS`; the first that does not pass ends the asking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fswatchd.cause import blame
from fswatchd.events import Domain, printable
from fswatchd.incidents import Incident, Load
from fswatchd.rules.model import Budget, Rule
from fswatchd.rules.modes import MODES, Mode
from fswatchd.situation import PolicyState, RunningRepair, Scope, Waiting
from fswatchd.units import show_duration

NS = 1_000_000_000
# No event tells that a backup or a migration has ended.
_BUSY_RETRY_S = 30.0
_OTHERS_RETRY_MAX_S = 600.0
# Whose turn it is may find out that it waits for something else: then nobody would go on.
_TURN_RETRY_S = 5.0
_COPIES_RETRY_S = 60.0
# Its platform is asked again every ten seconds, and at once when something changes there.
_LABELS_RETRY_S = 5.0
# Repairs of one volume within a rule's `flap`: the next is asked about, the one after is refused.
_FLAPS_ASKED = 1
_FLAPS_REFUSED = 2
_NAMES_SHOWN = 8
# Steps that work on a volume, and not on the VE as a whole.
_ON_THE_VOLUME = frozenset({"contain", "fsck", "remount", "scrub", "snapshot", "trim"})
# And those that change neither.
_ASIDE = frozenset({"exec", "notify", "quarantine"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardAnswer:
    """One question that was asked before acting, and its answer.

    An answer that did not pass either `waits` (and is asked again after `retry_after_s`, or when
    something changes), or leaves nothing to do but tell. `ahead` is the incident whose turn it is.
    """

    guard: str
    passed: bool
    text: str
    waits: bool = False
    retry_after_s: float | None = None
    ahead: str | None = None


def refused_scope(scope: Scope) -> str | None:
    """Why a filesystem that these use is not repaired; None where it may be."""
    return _never(scope) or scope.shared_with or _unrepairable(scope) or _not_now(scope)


def _never(scope: Scope) -> str | None:
    if scope.gone_over:
        return scope.gone_over
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
    """The narrowest of rule, node and what the VEs' owners want; scratch VEs of a drill answer to
    their rule alone. Who does not trust himself observes."""
    ruled: Mode = "observe" if rule.mode == "shadow" else rule.mode
    if is_scratch(scope):
        return ruled
    node: Mode = "observe" if state.distrust or state.mode == "shadow" else state.mode
    wishes = [ve.wish for ve in scope.ves if ve.wish is not None]
    return min((ruled, node, *wishes), key=MODES.index)


def full(budget: Budget, load: Load, running: list[RunningRepair]) -> str | None:
    """Why there is no room for a repair with this load beside those that run; None where there is.

    What has not this many may begin: a budget of 1 lets one repair run.
    """
    if len(running) >= budget.node:
        return f"{len(running)} repairs run on this node, the rule allows {budget.node}"
    on_filesystem = budget.device if budget.filesystem is None else budget.filesystem
    for kind, limit, wanted in (
        ("devices", budget.device, load.devices),
        ("filesystems", on_filesystem, load.filesystems),
    ):
        for one in wanted:
            used = sum(one in getattr(run.load, kind) for run in running)
            if used >= limit:
                return f"{used} repairs run on {one}, the rule allows {limit}"
    for key, value in load.labels:
        allowed = budget.label.get(key)
        used = sum((key, value) in run.load.labels for run in running)
        if allowed is not None and used >= allowed:
            return f"{used} repairs run where {key} is {value}, the rule allows {allowed}"
    return None


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} others" if more > 0 else "")


def _yes(guard: str, text: str) -> GuardAnswer:
    return GuardAnswer(guard=guard, passed=True, text=text)


def _no(guard: str, text: str, retry_after_s: float | None = None) -> GuardAnswer:
    return GuardAnswer(guard=guard, passed=False, text=text, retry_after_s=retry_after_s)


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


def _guard_mount(
    rule: Rule, _incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    """A VE may be stopped because its owner works on its volume: two at one image would harm it,
    and so would a start of the VE."""
    if scope.unmounted and any(step.do not in _ASIDE for step in rule.step):
        text = "it is mounted nowhere, as far as is known: its VE was stopped, or has unmounted it"
        return _later("mount", text)
    return _yes("mount", "it is where it was when this was heard of")


def _guard_scope(
    rule: Rule, incident: Incident, scope: Scope, _state: PolicyState, now_ns: int
) -> GuardAnswer:
    if _only_makes_room(rule, incident, scope):
        names = _some([ve.ve_id for ve in scope.ves])
        return _yes("scope", f"a program of the admin's makes room for {names}")
    refused = _never(scope)
    if refused is None and any(step.do in _ON_THE_VOLUME for step in rule.step):
        refused = _unrepairable(scope)
    if refused is not None:
        # A backup that has mounts of its own goes again, and no event tells that.
        passing = scope.ves and scope.foreign_users and not scope.children
        return _no("scope", refused, _retry_s(incident, now_ns) if passing else None)
    busy = _not_now(scope)
    if busy is not None:
        return _later("scope", busy, _BUSY_RETRY_S)
    return _yes("scope", f"{scope.ves[0].ve_id} is the only user of the filesystem")


def _retry_s(incident: Incident, now_ns: int) -> float:
    """The longer ago the last error is the less often."""
    last_ns = incident.recent[-1][0] if incident.recent else now_ns
    return min(max((now_ns - last_ns) / NS / 4, _BUSY_RETRY_S), _OTHERS_RETRY_MAX_S)


def _only_makes_room(rule: Rule, incident: Incident, scope: Scope) -> bool:
    """Whether the rule runs nothing but programs, where what several VEs rest on has no room.

    Room is for all that share a pool; no volume of theirs is touched from here. A drill's, what is
    the node's own, and what another node may own, stay what they are.
    """
    steps = {step.do for step in rule.step}
    return (
        incident.domain is Domain.SPACE
        and "exec" in steps
        and steps <= {"exec", "notify"}
        and len(scope.ves) > 1
        and not scope.foreign_users
        and not any(ve.hands_off for ve in scope.ves)
    )


def _guard_elsewhere(
    _rule: Rule, _incident: Incident, scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if scope.shared_with is not None:
        return _no("elsewhere", scope.shared_with)
    return _yes("elsewhere", "nothing says that another node can reach it")


def _guard_armed(
    _rule: Rule, _incident: Incident, scope: Scope, state: PolicyState, now_ns: int
) -> GuardAnswer:
    for disarm in state.disarms:
        if disarm.holds(scope.ves) and (disarm.until_ns is None or now_ns < disarm.until_ns):
            text = printable(f"{disarm.target} was disarmed by {disarm.by}: {disarm.reason}")
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
    errors = _most_errors(incident, wanted.window_s, now_ns)
    text = f"{errors} errors in {show_duration(wanted.window_s)}, the rule wants {wanted.count}"
    return _yes("threshold", text) if errors >= wanted.count else _no("threshold", text)


def _most_errors(incident: Incident, window_s: float, now_ns: int) -> int:
    """The most errors that one source has told of within a window, whenever that was.

    Every source tells of the same errors, and one that has only seen the consequence still saw one.
    A window that is past counts: most filesystems report no more once they have stopped, and who
    waits for a backup to end does not become well by that.
    """
    by_source: dict[str, list[tuple[int, int]]] = {}
    for when, source, count in incident.recent:
        if when <= now_ns:
            by_source.setdefault(source, []).append((when, count))
    most = 1 if by_source else 0
    for entries in by_source.values():
        first, errors = 0, 0
        for when, count in entries:
            errors += count
            while entries[first][0] < when - window_s * NS:
                errors -= entries[first][1]
                first += 1
            most = max(most, errors)
    return most


def _guard_denied(
    _rule: Rule, incident: Incident, _scope: Scope, _state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if incident.denied_by:
        return _no("denied", f"denied by {incident.denied_by}")
    return _yes("denied", "nobody has denied it")


def _guard_held(
    rule: Rule, incident: Incident, scope: Scope, _state: PolicyState, now_ns: int
) -> GuardAnswer:
    """A VE that was handed over to a person is theirs, whatever happens to it meanwhile.

    Its tenant can restart it, which gives it another device, and has it fail again.
    """
    if scope.held_by is None:
        return _yes("held", "nothing of it is for a person")
    text = f"{scope.held_by} needs an operator first"
    if _only_makes_room(rule, incident, scope):
        return _yes("held", f"{text}, and this makes room for all")
    if incident.requested_by:
        return _yes("held", f"{text}, and {incident.requested_by} asked for this repair")
    approved, why = _approved(rule, incident, now_ns)
    return _yes("held", f"{text}; {why}") if approved else _later("held", text)


def _approved(rule: Rule, incident: Incident, now_ns: int) -> tuple[bool, str]:
    """Whether somebody has approved what the rule would do, and that still counts."""
    if not incident.approved_by:
        return False, "nobody has approved yet"
    if incident.approved_for not in {None, rule.name}:
        return False, f"{incident.approved_by} has approved rule {incident.approved_for}, not this"
    if incident.approved_does not in {None, rule.does}:
        text = f"rule {rule.name} was changed since {incident.approved_by} approved what it does"
        return False, f"{text}: it has to be approved anew"
    if incident.approved_ns is not None:
        passed_s = max((now_ns - incident.approved_ns) / NS, 0.0)
        if passed_s >= rule.approval:
            held = show_duration(rule.approval)
            return False, f"the approval by {incident.approved_by} held {held}, and is over"
    return True, f"approved by {incident.approved_by}"


def _guard_asked(
    rule: Rule, incident: Incident, _scope: Scope, _state: PolicyState, now_ns: int
) -> GuardAnswer:
    if not incident.asks:
        return _yes("asked", "no step has asked for anything")
    approved, text = _approved(rule, incident, now_ns)
    if approved:
        return _yes("asked", f"{text}: {incident.asks}")
    again = f" ({text})" if incident.approved_by else ""
    return _later("approval", f"{incident.asks}{again}")


def _guard_mode(
    rule: Rule, incident: Incident, scope: Scope, state: PolicyState, now_ns: int
) -> GuardAnswer:
    if incident.requested_by:
        return _requested(rule, incident, now_ns)
    mode = widest_mode(rule, scope, state)
    wishes = "".join(f", {ve.ve_id} wants {ve.wish}" for ve in scope.ves if ve.wish is not None)
    doubt = f" that does not trust itself ({state.distrust})" if state.distrust else ""
    text = f"rule {rule.mode}, node {state.mode}{doubt}{wishes}: {mode}"
    if is_scratch(scope):
        text = f"rule {rule.mode} for scratch VEs that the daemon made for a drill"
    elif unknown := [ve.ve_id for ve in scope.ves if not ve.labels_known]:
        asked = f"the labels of {_some(unknown)} are not known yet, and so not what its owner wants"
        return _later("mode", f"{text}; {asked}", _LABELS_RETRY_S)
    if mode == "observe":
        return _no("mode", text)
    if mode == "auto":
        return _yes("mode", text)
    approved, why = _approved(rule, incident, now_ns)
    return _yes("mode", f"{text}; {why}") if approved else _later("approval", f"{text}; {why}")


def _requested(rule: Rule, incident: Incident, now_ns: int) -> GuardAnswer:
    """A repair that had to wait for long is not what was asked for: it holds like an approval."""
    asked_ns = now_ns if incident.requested_ns is None else incident.requested_ns
    if (now_ns - asked_ns) / NS < rule.approval:
        return _yes("mode", f"requested by {incident.requested_by}, which is the approval")
    approved, why = _approved(rule, incident, now_ns)
    text = f"{incident.requested_by} asked for it {show_duration((now_ns - asked_ns) / NS)} ago"
    return _yes("mode", f"{text}; {why}") if approved else _later("approval", f"{text}; {why}")


def _guard_storm(
    _rule: Rule, incident: Incident, scope: Scope, state: PolicyState, _now_ns: int
) -> GuardAnswer:
    if state.storm is None:
        return _yes("storm", "no storm")
    if incident.requested_by or is_scratch(scope):
        return _yes(
            "storm", f"there is a storm ({state.storm.incident_id}), but this was asked for"
        )
    return _later("storm", f"{state.storm.text} ({state.storm.incident_id})")


def _guard_copies(
    rule: Rule, incident: Incident, scope: Scope, _state: PolicyState, now_ns: int
) -> GuardAnswer:
    known = scope.copies.get(rule.copies) if rule.copies is not None else None
    if known is None or not known.others:
        return _yes("copies", "it is no copy of anything")
    if known.healthy:
        return _yes("copies", f"{_some(list(known.healthy))} is a healthy copy of it")
    if incident.requested_by:
        return _yes("copies", f"the last one of its copies, requested by {incident.requested_by}")
    text = f"no other copy is well where {rule.copies} is {known.value}: {_some([*known.others])}"
    approved, why = _approved(rule, incident, now_ns)
    if approved:
        return _yes("copies", f"{text}; {why}")
    return _later("approval", f"{text}; {why}", _COPIES_RETRY_S)


def _guard_flap(
    rule: Rule, incident: Incident, _scope: Scope, state: PolicyState, now_ns: int
) -> GuardAnswer:
    since = now_ns - rule.flap * NS
    repaired = state.repaired_ns.get(incident.filesystem.volume_key, ())
    recent = [when for when in repaired if when > since]
    window = show_duration(rule.flap)
    if len(recent) < _FLAPS_ASKED:
        return _yes("flap", f"not repaired within {window}")
    text = f"this volume was repaired {len(recent)} times within {window}"
    if incident.forced:
        return _yes("flap", f"{text}; {incident.requested_by} wants it all the same")
    if len(recent) >= _FLAPS_REFUSED:
        left_s = (sorted(recent)[-_FLAPS_REFUSED] - since) / NS
        return _no("flap", f"{text}: what breaks again and again is not repaired", left_s)
    if incident.requested_by:
        return _yes("flap", f"{text}; requested by {incident.requested_by}")
    approved, why = _approved(rule, incident, now_ns)
    return _yes("flap", f"{text}; {why}") if approved else _later("approval", f"{text}; {why}")


def _guard_cooldown(
    rule: Rule, incident: Incident, _scope: Scope, state: PolicyState, now_ns: int
) -> GuardAnswer:
    key = (rule.name, incident.filesystem.volume_key)
    last = state.last_action_ns.get(key)
    if last is None or incident.requested_by:
        return _yes("cooldown", "no earlier action on this volume counts")
    wanted_s, after = cooldown_s(rule, state.failures.get(key, 0)), ""
    if state.failures.get(key):
        after = f" after {state.failures[key]} failures"
    passed_s = max((now_ns - last) / NS, 0.0)
    text = (
        f"the rule last acted on this volume {show_duration(passed_s)} ago, "
        f"cool-down is {show_duration(wanted_s)}{after}"
    )
    if passed_s >= wanted_s:
        return _yes("cooldown", text)
    return _later("cooldown", text, wanted_s - passed_s)


def cooldown_s(rule: Rule, failures: int) -> float:
    """The rule's cool-down, twice as long after each failure in a row, up to its `backoff`."""
    if not failures:
        return rule.cooldown
    return max(min(rule.cooldown * 2.0 ** min(failures, 64), rule.backoff), rule.cooldown)


def _guard_budget(
    rule: Rule, incident: Incident, scope: Scope, state: PolicyState, _now_ns: int
) -> GuardAnswer:
    others = [run for run in state.running if run.incident_id != incident.incident_id]
    no_room = full(rule.budget, scope.load, others)
    if no_room is not None:
        return _later("budget", no_room)
    ahead = None if incident.requested_by else _ahead(incident, scope, state, others)
    if ahead is not None:
        text = f"it is the turn of {ahead.ve} ({ahead.incident_id}), which has waited longer"
        return replace(_later("budget", text, _TURN_RETRY_S), ahead=ahead.incident_id)
    return _yes("budget", f"{len(others)} of {rule.budget.node} repairs run on this node")


def _ahead(
    incident: Incident, scope: Scope, state: PolicyState, running: list[RunningRepair]
) -> Waiting | None:
    """Whose turn it is instead: the first of the queue for which there is room, as for this."""
    served = max((state.begun_ns.get(ve.ve_id, 0) for ve in scope.ves), default=0)
    turn = (served, incident.opened_ns, incident.incident_id)
    for waiting in state.queue:
        if waiting.turn >= turn:
            break
        same = waiting.incident_id == incident.incident_id
        if not same and full(waiting.budget, waiting.load, running) is None:
            return waiting
    return None


_Guard = Callable[[Rule, Incident, Scope, PolicyState, int], GuardAnswer]
GUARDS: tuple[_Guard, ...] = (
    _guard_confirmed,
    _guard_mount,
    _guard_scope,
    _guard_elsewhere,
    _guard_threshold,
    _guard_denied,
    _guard_held,
    _guard_armed,
    _guard_storm,
    guard_cause,
    _guard_mode,
    _guard_asked,
    _guard_copies,
    _guard_flap,
    _guard_cooldown,
    _guard_budget,
)
HANDING_OVER: tuple[_Guard, ...] = (
    _guard_confirmed,
    _guard_threshold,
    _guard_denied,
    _guard_armed,
    _guard_mode,
)
"""For a rule that does nothing but to hand over to a person: nothing else speaks against that."""
_NAMES = tuple(guard.__name__.lstrip("_").removeprefix("guard_") for guard in GUARDS)


def not_asked(answered: Sequence[str]) -> list[str]:
    """The guards that were not asked, because the last of these answers ended the asking.

    Some guards answer by the name "approval" when they want one: then it was the next in the order.
    """
    left = [name for name in _NAMES if name not in answered]
    return left[1:] if answered[-1:] == ["approval"] else left
