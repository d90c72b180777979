"""Asks the policy what to do about each incident, when something about it has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from fswatchd import decisions, policy, views
from fswatchd.book import IncidentBook
from fswatchd.cause import Cause, Layer, blame
from fswatchd.engine import scoping
from fswatchd.engine.attribution import of_server
from fswatchd.engine.history import History, boottime_ns
from fswatchd.engine.storms import Storms
from fswatchd.engine.substrate import Substrate
from fswatchd.guards import is_scratch
from fswatchd.incidents import Incident, State
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.view import NodeView
from fswatchd.localtime import seconds_of_day
from fswatchd.policy import Decision, Verdict
from fswatchd.rules.model import RuleSet
from fswatchd.rules.modes import NodeMode
from fswatchd.situation import PolicyState, RunningRepair, Scope, StormState
from fswatchd.turns import Turns

log = logging.getLogger(__name__)

# The witnesses of one fault speak within some milliseconds of each other.
_SETTLE_S = 0.2
_RETRY_MAX_S = 3600.0
# Whether what is to blame is well again is looked at after 1, 2, 4… seconds.
_CAUSE_RETRY_MAX_S = 30.0
# After a decision that could not be made: at first, and at most, doubled each time.
_AGAIN_S = (5.0, 300.0)
# Who has not taken his turn by then is passed over: his disk may be one that does not answer.
_TURN_TAKEN_S = 20.0


async def _nothing(_incident_id: str) -> None:
    pass


Submit = Callable[[str, Decision, Scope], None]
Running = Callable[[], tuple[RunningRepair, ...]]


class Decider:
    """One timer per incident; each time it rings, one decision."""

    def __init__(
        self,
        book: IncidentBook,
        inventory: Inventory,
        history: History,
        mode: NodeMode,
        *,
        submit: Submit,
        running: Running,
        on_decided: Callable[[Incident], None],
        substrate: Substrate,
        distrust: Callable[[], str] = str,
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._history = history
        self._submit = submit
        self._running = running
        self._on_decided = on_decided
        self._substrate = substrate
        self._cause_looks: dict[str, int] = {}
        # Incident → how long to wait after the next decision about it that cannot be made.
        self._again_s: dict[str, float] = {}
        book.subscribe(self._changed)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        # Incident → whether to decide once more when the decision that is under way has ended.
        self._under_way: dict[str, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        self._looking = asyncio.Lock()
        self._next_look: asyncio.Task[None] | None = None
        self._turns = Turns(history.begun_ns)
        # Incident → when another one first waited for it to take its turn (the loop's clock).
        self._gave_way: dict[str, float] = {}
        self._storms = Storms(book, history, self.poke, self.poke_all)
        self._rules = RuleSet()
        self.mode: NodeMode = mode
        self._distrust = distrust
        # Closes an incident that only waited for room, when that was all; set by the daemon.
        self.look_for_recovery: Callable[[str], Awaitable[None]] = _nothing

    @property
    def rules(self) -> RuleSet:
        """The rules that decide."""
        return self._rules

    @rules.setter
    def rules(self, rules: RuleSet) -> None:
        self._rules = rules
        self._storms.follow(rules.storm)

    def poke(self, incident_id: str, delay_s: float = _SETTLE_S) -> None:
        """Decide about the incident soon; a decision that is due earlier stays."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(incident_id)
        if known is not None:
            if known.when() <= loop.time() + delay_s:
                return
            known.cancel()
        self._timers[incident_id] = loop.call_later(delay_s, self._ring, incident_id)

    def poke_all(self) -> None:
        """Something that all decisions depend on has changed: rules, budget, disarms."""
        for incident in self._book.open_incidents():
            if incident.state in {State.OPEN, State.WAITING}:
                self.poke(incident.incident_id, 0.0)

    def poke_waiting(self) -> None:
        """A budget may be free again: ask about those that wait.

        Not about those whose VE somebody else has locked: they are asked about in their own time.
        """
        for incident in self._book.open_incidents():
            if incident.state is State.WAITING and incident.waiting_for != "busy":
                self.poke(incident.incident_id, 0.0)

    def begin(self) -> None:
        """Decide from now on: the node is known, and what an earlier run left is taken up.

        A plan that was begun before would be taken for one that the earlier run has left.
        """
        self._begun = True
        self.poke_all()

    def stop(self) -> None:
        """Decide nothing more."""
        self._begun = False
        self._storms.stop()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._under_way = dict.fromkeys(self._under_way, False)
        for task in self._tasks:
            task.cancel()

    def scope(self, incident: Incident) -> Scope:
        """Whom the incident's filesystem belongs to, as the node is now."""
        view = self._inventory.view
        return scoping.scope(view, self._book, incident, self._rules.copy_labels)

    def policy_state(self) -> PolicyState:
        """Everything outside an incident that a decision depends on."""
        return PolicyState(
            mode=self.mode,
            distrust=self._distrust(),
            disarms=self._history.current_disarms(),
            running=self._running(),
            last_action_ns=self._history.last_action_ns,
            failures=self._history.failures,
            repaired_ns=self._history.repaired_ns,
            begun_ns=self._history.begun_ns,
            queue=self._turns.queue,
            storm=self._storms.state(),
            local_s=seconds_of_day(time.time()),
        )

    def storm(self) -> StormState | None:
        """The storm that goes on, None where there is none."""
        return self._storms.state()

    def _ring(self, incident_id: str) -> None:
        self._timers.pop(incident_id, None)
        if not self._begun:
            return  # all are asked about at the beginning
        if incident_id in self._under_way:
            # What is looked at may be older than what has rung: once more, but afterwards. On a
            # busy node looks take longer than it takes to ask for the next one: all would wait.
            self._under_way[incident_id] = True
            return
        if self._book.get(incident_id) is None:
            return
        self._under_way[incident_id] = False
        task = asyncio.get_running_loop().create_task(self._look_and_decide(incident_id))
        self._tasks.add(task)
        task.add_done_callback(partial(self._decided, incident_id))

    def _decided(self, incident_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        once_more = self._under_way.pop(incident_id)
        if once_more and not task.cancelled():
            self.poke(incident_id, 0.0)

    async def _look_and_decide(self, incident_id: str) -> None:
        try:
            await self._look_again()
            incident = self._book.get(incident_id)
            if incident is None:
                return
            layers = await self._substrate.beneath(incident)
            incident = self._undecided(incident_id)
            if incident is not None and self._has_room_again(incident, layers):
                self._book.put(self._blamed(incident, None))
                await self.look_for_recovery(incident_id)
                incident = self._undecided(incident_id)
            if incident is not None:
                self._decide(self._as_of_now(incident), layers)
        except Exception:  # a task border: one incident must not stop the others
            log.exception("no decision about %s", incident_id)
            self._try_again(incident_id)
        else:
            self._again_s.pop(incident_id, None)

    def _try_again(self, incident_id: str) -> None:
        """Perhaps nothing else ever asks about it, and nobody has been told of it yet."""
        if self._book.get(incident_id) is None:
            self._again_s.pop(incident_id, None)
            return
        pause_s = self._again_s.get(incident_id, _AGAIN_S[0])
        self._again_s[incident_id] = min(2 * pause_s, _AGAIN_S[1])
        self.poke(incident_id, pause_s)

    async def _look_again(self) -> None:
        """Who uses the filesystem now, not some seconds ago.

        One look for all that ask before it begins: a host that fails makes many ask at once.
        """
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_task(self._look())
            self._tasks.add(self._next_look)
            self._next_look.add_done_callback(self._tasks.discard)
        await asyncio.shield(self._next_look)

    async def _look(self) -> None:
        async with self._looking:
            self._next_look = None
            await self._inventory.refresh()

    def _undecided(self, incident_id: str) -> Incident | None:
        incident = self._book.get(incident_id)
        return incident if incident and incident.state in {State.OPEN, State.WAITING} else None

    def _has_room_again(self, incident: Incident, layers: tuple[Layer, ...]) -> bool:
        """Whether it only waited for room, and what it needs may be nothing but that."""
        known = incident.cause
        if known is None or known["kind"] != "space" or incident.cause_is_over:
            return False
        return self._is_mounted(incident) and blame(layers) is None

    def _is_mounted(self, incident: Incident) -> bool:
        return self._inventory.view.attached(incident.filesystem) is not None

    def _as_of_now(self, incident: Incident) -> Incident:
        """With what rests on it and what it rests on now; who was concerned once stays named."""
        view, devno = self._inventory.view, incident.filesystem.devno
        if incident.filesystem.server is not None:
            return _with_those_served(view, incident)
        if devno is None or view.gone_over(incident.filesystem):
            return incident
        superblock = view.superblocks.get(devno)
        stack = incident.stack
        if superblock is not None:
            ves = view.users[devno].ves
            stack = tuple(views.stack(view, superblock, ves[0] if ves else None))
        new = tuple(ve for ve in view.affected(devno) if ve not in incident.ves)
        through = tuple(ve for ve in new if ve in view.dependents(devno).ves)
        return replace(
            incident, ves=(*incident.ves, *new), through=(*incident.through, *through), stack=stack
        )

    def _decide(self, incident: Incident, layers: tuple[Layer, ...]) -> None:
        incident, layers = _without_errors_for_want_of_space(incident, layers)
        scope = replace(self.scope(incident), beneath=layers)
        cause = blame(layers)
        incident = self._blamed(incident, cause)
        rules = policy.for_request(self.rules) if incident.requested_by else self.rules
        node_ves = len(self._inventory.view.ves)
        if "decided" not in incident.timeline and not is_scratch(scope):
            self._storms.failed(incident, node_ves)
        state = self.policy_state()
        decision = policy.decide(rules, incident, scope, state, boottime_ns())
        self._queue(rules, incident, scope, decision)
        new = "decided" not in incident.timeline or incident.untold
        incident = self._recorded(incident, decision)
        incident = replace(incident, decided=decisions.facts(decision, scope, state, node_ves))
        incident = replace(incident, untold=new and incident.part_of is not None)
        self._book.put(incident)
        self._add_to_cause(incident)
        if new and not incident.untold:
            self._on_decided(incident)
        if decision.verdict is Verdict.ACT:
            for ve in scope.ves:
                self._history.begun(ve.ve_id)
            self._submit(incident.incident_id, decision, scope)
            return
        if decision.retry_after_s is not None:
            self.poke(incident.incident_id, min(decision.retry_after_s, _RETRY_MAX_S))
        if cause is not None:
            looks = self._cause_looks.get(incident.incident_id, 0)
            self._cause_looks[incident.incident_id] = looks + 1
            self.poke(incident.incident_id, min(2.0**looks, _CAUSE_RETRY_MAX_S))
        else:
            self._cause_looks.pop(incident.incident_id, None)

    def _queue(self, rules: RuleSet, incident: Incident, scope: Scope, decision: Decision) -> None:
        """What waits for a budget waits for its turn from then on, and only that."""
        rule = rules.by_name.get(decision.rule or "")
        self._gave_way.pop(incident.incident_id, None)
        if decision.waiting_for == "budget" and rule is not None:
            self._turns.waits(incident, scope.ves[0].ve_id, rule.budget, scope.load)
        else:
            self._turns.gone(incident.incident_id)
        ahead = decision.answers[-1].ahead
        if ahead is not None:
            now = asyncio.get_running_loop().time()
            if now - self._gave_way.setdefault(ahead, now) >= _TURN_TAKEN_S:
                del self._gave_way[ahead]
                self._turns.gone(ahead)

    def _blamed(self, incident: Incident, cause: Cause | None) -> Incident:
        """The incident with what is to blame; that it is well again is kept with it."""
        now, known = time.time_ns(), incident.cause
        if cause is None:
            if known is None or incident.cause_is_over or not self._is_mounted(incident):
                return incident  # what nothing rests on any more has not become well by that
            over = replace(incident, cause={**known, "until": views.timestamp(now)})
            return over.noted(now, f"{known['object']} is well again")
        found = views.cause(cause, now)
        if cause.incident == incident.incident_id:
            found["incident"] = None
        same = known is not None and known["object"] == found["object"]
        if known is not None and same and not incident.cause_is_over:
            # Somebody may have closed the incident of what is still not well: nobody wants to be
            # told of all that suffers from it then.
            found["incident"] = found["incident"] or known.get("incident")
            found["since"] = known["since"]
            text = f"it is part of {found['incident']}"
            if found["incident"] == known.get("incident"):
                return replace(incident, cause=found)
        else:
            text = f"{found['object']} is to blame: {found['text']}"
        return replace(incident, cause=found, classes_since=frozenset()).noted(now, text)

    def _add_to_cause(self, incident: Incident) -> None:
        """The incident of what is to blame names all that come of it, is as severe as the worst of
        them, and is told to all who would have been told of them."""
        cause = self._book.get(incident.part_of or "")
        if cause is None:
            return
        new = tuple(ve for ve in incident.ves if ve not in cause.ves)
        known = incident.incident_id in cause.consequences
        grown = replace(
            cause,
            consequences=cause.consequences
            if known
            else (*cause.consequences, incident.incident_id),
            severity=max(cause.severity, incident.severity),
            channels=tuple(dict.fromkeys((*cause.channels, *incident.channels))),
            ves=(*cause.ves, *new),
            through=(*cause.through, *new),
        )
        if grown != cause:
            self._book.put(grown)

    def _changed(self, before: Incident | None, after: Incident) -> None:
        """An object got worse or well: what rests on it, or waits for it, is decided anew."""
        worse = before is None or (before.device_errors == 0 and after.device_errors > 0)
        worse = worse or (before is not None and before.confirmed is not after.confirmed)
        closed = after.state is State.CLOSED
        if after.state is not State.WAITING or after.waiting_for != "budget":
            self._turns.gone(after.incident_id)
            self._gave_way.pop(after.incident_id, None)
        if closed:
            self._cause_looks.pop(after.incident_id, None)
            self._again_s.pop(after.incident_id, None)
        was_handed_over = before is not None and before.state is State.NEEDS_OPERATOR
        if was_handed_over and after.state is not State.NEEDS_OPERATOR:
            for one in self._book.open_incidents():
                if one.waiting_for == "held":
                    self.poke(one.incident_id)
        devno = after.filesystem.devno
        if devno is None or not (worse or closed):
            return
        view = self._inventory.view
        for incident in self._book.open_incidents():
            above = incident.filesystem.devno
            if (
                incident.state in {State.OPEN, State.WAITING}
                and incident.incident_id != after.incident_id
                and above is not None
                and devno in view.beneath(above)
            ):
                self.poke(incident.incident_id)

    def _recorded(self, incident: Incident, decision: Decision) -> Incident:
        asked = [(a.guard, a.passed, a.text) for a in decision.answers]
        watched = [
            ("shadow", one.verdict is Verdict.ACT, f"{one.rule} {one.text}")
            for one in decision.shadows
        ]
        answers = (*asked, *watched)
        waiting = decision.verdict is Verdict.WAIT
        reached = any(a.guard == "threshold" and a.passed for a in decision.answers)
        told = replace(
            incident.reached("decided", time.monotonic_ns()),
            rule=decision.rule,
            rule_does=decision.does,
            preview=_still_right(incident, decision),
            reached_threshold_of=decision.rule if reached else incident.reached_threshold_of,
            channels=_channels(incident, decision),
            healthy_s=decision.healthy_s,
            guards=answers,
            state=State.WAITING if waiting else State.OPEN,
            waiting_for=decision.waiting_for if waiting else "",
        )
        if answers != incident.guards:
            why = decision.answers[-1]
            told = told.noted(time.time_ns(), f"decision: {decision.verdict.value} ({why.text})")
        return told


def _with_those_served(view: NodeView, incident: Incident) -> Incident:
    known = incident.filesystem
    now = of_server(view, known.fstype, known.server)
    new = tuple(ve for ve in now.ves if ve not in incident.ves)
    through = tuple(ve for ve in now.through if ve in new)
    return replace(incident, ves=(*incident.ves, *new), through=(*incident.through, *through))


def _still_right(incident: Incident, decision: Decision) -> dict[str, object] | None:
    """The preview, unless the rule would do something else by now: then it is made anew."""
    changed = incident.rule_does not in {None, decision.does}
    return None if changed else incident.preview


def _channels(incident: Incident, decision: Decision) -> tuple[str, ...]:
    """Whom to tell: also those who would have been told of what the incident is to blame for."""
    if incident.consequences:
        return tuple(dict.fromkeys((*decision.channels, *incident.channels)))
    return decision.channels or incident.channels


def _without_errors_for_want_of_space(
    incident: Incident, layers: tuple[Layer, ...]
) -> tuple[Incident, tuple[Layer, ...]]:
    """A loop device reports errors when its image has no room to grow: no fault of the device."""
    known = incident.cause
    if known is None or known["kind"] != "space" or incident.cause_is_over or not layers:
        return incident, layers
    return replace(incident, device_errors=0), (replace(layers[0], errors=0), *layers[1:])
