"""Carries plans out: one step after the other, recorded before it begins, bounded in time.

One plan at a time on one VE. A plan that was cut off by the end of the daemon goes on, or is
undone, from what its steps wrote into their journals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from fswatchd.book import IncidentBook
from fswatchd.engine.arming import Arming
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.history import History
from fswatchd.engine.plan_end import PlanEnd
from fswatchd.engine.plan_record import (
    OVER,
    asked_again,
    ending,
    goes_on,
    has_begun,
    may_begin_anew,
    over,
    touches_the_ve,
)
from fswatchd.engine.step_context import StepContext
from fswatchd.errors import FswatchError
from fswatchd.helpers.client import HelperError
from fswatchd.incidents import Incident, State, StepRecord, StepState
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import cgroup
from fswatchd.policy import Decision
from fswatchd.repair import freeze, restore, rollback, ve_freeze
from fswatchd.repair.platform_lock import VeLocks
from fswatchd.repair.resume import discard_copies, discard_preview
from fswatchd.rules.model import Step, step_from_options
from fswatchd.sandbox import bubblewrap
from fswatchd.situation import RunningRepair, Scope
from fswatchd.sources.state import StateSource
from fswatchd.steps import (
    Action,
    ActionSettings,
    Next,
    StepEnded,
    StepResult,
    refuse,
)
from fswatchd.store.store import StoreError

log = logging.getLogger(__name__)

_STEP_TIMEOUT_S = {
    "fsck": 24 * 3600.0,
    "scrub": 24 * 3600.0,
    "evacuate": 6 * 3600.0,
    "snapshot": 3600.0,
    "trim": 3600.0,
    "stop": 300.0,
    "start": 300.0,
    "rollback": 900.0,  # a stop, an exchange and a start
}
_USUAL_TIMEOUT_S = 60.0
_NOT_ACTING = {"notify", "quarantine", "rollback"}
_LAST_SECONDS_S = 60.0
_AGAIN_S = 5.0


class Executor:
    """See the module.

    `on_end` is called with the incident's id whenever a plan has ended, `again` with an incident to
    be decided about once more, in so many seconds.
    """

    def __init__(
        self,
        book: IncidentBook,
        inventory: Inventory,
        state: StateSource,
        history: History,
        arming: Arming,
        settings: ActionSettings,
        actions: Mapping[str, Action],
        evidence: EvidenceRoom,
        on_end: Callable[[str], None],
        again: Callable[[str, float], None],
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._state = state
        self._arming = arming
        self._settings = settings
        self._actions = actions
        self._evidence = evidence
        self._on_end = on_end
        self._again = again
        # Most are of incidents without a VE: each is gone with the last plan that wants it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ve_locks = VeLocks(inventory)
        self._running: dict[str, RunningRepair] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = False
        self._end = PlanEnd(book, history, arming, again, self.begin_rollback)

    # --- plans ----------------------------------------------------------------------------------

    def running(self) -> tuple[RunningRepair, ...]:
        """The plans that are being carried out."""
        return tuple(self._running.values())

    def submit(self, incident_id: str, decision: Decision, scope: Scope) -> None:
        """Begin to carry out what was decided."""
        incident = self._book.get(incident_id)
        if incident is None or self._stopped:
            return
        if incident_id in self._tasks:  # an earlier plan of it still tidies up
            self._again(incident_id, _AGAIN_S)
            return
        steps = tuple(StepRecord(do=step.do, options=step.model_dump()) for step in decision.steps)
        if not goes_on(incident.steps, steps):
            incident = incident.with_new_plan(steps)
        incident = replace(
            incident,
            state=State.ACTING,
            waiting_for="",
            attempts=incident.attempts + 1,
            load=scope.load,
        )
        self._book.put(incident)
        self._begin(incident, resume=False)

    async def recover(self) -> None:
        """Take up what an earlier run of the daemon left half-way; thaw what it left frozen."""
        if orphans := await asyncio.to_thread(bubblewrap.end_orphans):
            log.warning("ended %d sandboxes that an earlier run has left half built", orphans)
        for incident in self._book.open_incidents():
            # At the end of a plan everything is thawed: what is frozen later is somebody else's.
            for record in incident.steps:
                if incident.state is State.ACTING or record.result == freeze.LEFT_FROZEN:
                    await self._thaw_leftover(record)
        for incident in self._book.open_incidents():
            await self._recover_locks(incident)
        for incident in self._book.open_incidents():
            if incident.state is State.ACTING:
                self._book.note(incident.incident_id, "the daemon was restarted in the middle")
                self._begin(self._book.get(incident.incident_id) or incident, resume=True)

    async def _recover_locks(self, incident: Incident) -> None:
        stopped = self._has_stopped_its_ve(incident.incident_id)
        for record in incident.steps:
            lock = record.journal.get("lock")
            problem = await self._ve_locks.adopt(lock, incident.incident_id)
            if problem is not None:
                discard = discard_preview if stopped else discard_copies
                await discard(incident.incident_id, record, self._settings)
                self._end.hand_over(incident, problem)
                return
        if incident.state is not State.ACTING:
            await self._unlock(incident.incident_id)

    def begin_rollback(self, incident: Incident, to: str | None = None) -> None:
        """Undo what the incident's plan has changed (already checked and permitted), or go back
        `to` a snapshot."""
        options: dict[str, Any] = {"do": "rollback"}
        if to is not None:
            options |= {"to": to, "timeout": _STEP_TIMEOUT_S["fsck"]}  # it is copied and checked
        record = StepRecord(do="rollback", options=options)
        incident = replace(
            incident,
            state=State.ACTING,
            outcome=None,
            closed_ns=None,
            steps=(*over(incident.steps), record),
        )
        self._book.put(incident)
        self._begin(incident, resume=False)

    async def stop(self) -> None:
        """Cancel what runs: a repair that is cut off is taken up by the next start.

        A VE that a repair has stopped should not wait for that: such a plan gets time to end.
        """
        self._stopped = True
        half_way = [task for id_, task in self._tasks.items() if self._is_half_way(id_)]
        await _cancel([task for task in self._tasks.values() if task not in half_way])
        if half_way:
            await asyncio.wait(half_way, timeout=_LAST_SECONDS_S)
        await _cancel(list(self._tasks.values()))

    def _is_half_way(self, incident_id: str) -> bool:
        incident = self._book.get(incident_id)
        return incident is not None and any(
            touches_the_ve(record)
            for record in incident.steps
            if record.state is StepState.RUNNING or ending(record) is not None
        )

    def _has_stopped_its_ve(self, incident_id: str) -> bool:
        incident = self._book.get(incident_id)
        return incident is not None and any(
            record.state is StepState.RUNNING and record.journal.get("stopping")
            for record in incident.steps
        )

    def _begin(self, incident: Incident, *, resume: bool) -> None:
        incident_id = incident.incident_id
        self._running[incident_id] = RunningRepair(incident_id=incident_id, load=incident.load)
        task = asyncio.create_task(self._carry_out(incident, resume=resume))
        self._tasks[incident_id] = task
        task.add_done_callback(lambda done: self._ended(incident_id, done))

    def _ended(self, incident_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(incident_id) is task:  # else a rollback has begun in its place
            del self._tasks[incident_id]
            self._running.pop(incident_id, None)
        if task.cancelled():
            return
        if task.exception() is not None:
            log.error("the plan of %s failed", incident_id, exc_info=task.exception())
            incident = self._book.get(incident_id)
            if incident is not None:
                self._end.hand_over(incident, f"internal error: {task.exception()}")
        self._on_end(incident_id)

    async def _carry_out(self, incident: Incident, *, resume: bool) -> None:
        async with AsyncExitStack() as locks:
            # Always in the same order: no two plans wait for each other.
            for name in sorted(incident.direct_ves) or [incident.incident_id]:
                await locks.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            try:
                await self._carry_out_steps(incident, resume=resume)
            finally:
                # Also when the daemon is told to end in the middle. A VE that it leaves stopped
                # stays locked: the next start goes on with it.
                await self._thaw_tasks(incident.incident_id)
                if not self._has_stopped_its_ve(incident.incident_id):
                    await self._unlock(incident.incident_id)

    async def _carry_out_steps(self, incident: Incident, *, resume: bool) -> None:
        changed = any(record.journal.get("changed") for record in incident.steps)
        for index, record in enumerate(incident.steps):
            result = ending(record)
            if result is None and record.state in OVER:
                continue
            cut_off = resume and record.state is StepState.RUNNING
            if cut_off and may_begin_anew(self._book.get(incident.incident_id) or incident, index):
                await discard_copies(incident.incident_id, record, self._settings)
                self._decide_anew(
                    incident.incident_id, index, await self._unlock(incident.incident_id)
                )
                return
            result = result or self._disarmed(incident.incident_id, index)
            if result is None:
                await self._take_evidence(incident.incident_id, index)
                result = await self._step(incident.incident_id, index, cut_off=cut_off)
            elif cut_off:
                await discard_copies(incident.incident_id, record, self._settings)
            changed = changed or result.changed
            if result.next is not Next.CONTINUE and not self._end.may_go_on(
                incident.incident_id, index, result
            ):
                await self._thaw_tasks(incident.incident_id)
                locked = await self._unlock(incident.incident_id)
                self._end.finish(incident.incident_id, index, result, locked)
                return
        await self._thaw_tasks(incident.incident_id)
        locked = await self._unlock(incident.incident_id)
        self._end.finish_all(incident.incident_id, changed=changed, locked=locked)

    def _decide_anew(self, incident_id: str, index: int, locked: list[str]) -> None:
        """What has not begun to touch the VE: mode, rules and what people have said may have
        changed meanwhile."""
        incident = self._book.get(incident_id)
        if incident is None:
            return
        incident = asked_again(incident, index)
        incident = replace(incident, state=State.OPEN, attempts=incident.attempts - 1)
        if locked:
            self._end.hand_over(incident, "; ".join(locked))
            return
        self._book.put(incident)
        self._again(incident_id, 0.0)

    async def _unlock(self, incident_id: str) -> list[str]:
        """Before the plan's end is recorded: an incident that is closed is not looked at again."""
        problems = await self._ve_locks.release(incident_id)
        incident = self._book.get(incident_id)
        for index, record in enumerate(incident.steps if incident else ()):
            if record.journal.get("lock") and not problems:
                try:
                    await self._context(incident_id, index).journal(lock=None)
                except StoreError as error:
                    log.warning("that a lock was given back is not recorded: %s", error)
        return problems

    def _disarmed(self, incident_id: str, index: int) -> StepResult | None:
        """Nothing is begun on what was disarmed since it was decided, nor by a daemon that does not
        trust itself any more.

        A plan that has begun to stop or to change the VE goes on, also after a restart: to leave
        it there would leave the VE down. (Each stop asks for itself, see `about_to_stop`.)
        """
        context = self._context(incident_id, index)
        if context.record.do in {"notify", "rollback"} or has_begun(context.incident):
            return None
        disarmed = self._arming.why_disarmed(context.incident.ves)
        why = disarmed or self._arming.why_doubted(context.incident)
        if why is None:
            return None
        name = "disarmed" if disarmed else "distrusted"
        result = StepResult(next=Next.CANCELLED, result=name, detail=why)
        context.ended(result)
        return result

    async def _take_evidence(self, incident_id: str, index: int) -> None:
        """Before the first step that does something, and not in the middle."""
        context = self._context(incident_id, index)
        if context.record.do not in _NOT_ACTING and not has_begun(context.incident):
            await self._evidence.take(context)

    def _context(self, incident_id: str, index: int) -> StepContext:
        return StepContext(
            self._book,
            self._inventory,
            self._state,
            self._arming,
            self._settings,
            self._ve_locks,
            incident_id,
            index,
        )

    async def _step(self, incident_id: str, index: int, *, cut_off: bool) -> StepResult:
        context = self._context(incident_id, index)
        record = context.record
        try:
            await context.started()
            async with asyncio.timeout(_timeout(record)):
                result = await self._run_action(context, record, cut_off=cut_off)
        except TimeoutError:
            text = f"{record.do} did not end within {_timeout(record):.0f} s"
            result = StepResult(next=Next.OPERATOR, result="timed out", detail=text)
        except StepEnded as ended:
            result = ended.result
        except StoreError as error:
            text = f"nothing is done that cannot be recorded: {error}"
            result = refuse("not recorded", text).result
        except (FswatchError, OSError, HelperError) as error:
            result = refuse("failed", str(error)).result
        except Exception as error:  # a task border: what it left behind is for a person to see
            log.exception("step %s of %s failed", record.do, incident_id)
            result = refuse("internal error", repr(error), Next.OPERATOR).result
        context.ended(result)
        return result

    async def _run_action(
        self, context: StepContext, record: StepRecord, *, cut_off: bool
    ) -> StepResult:
        if record.do == "rollback":
            way = restore.run if record.options.get("to") else rollback.run
            return await way(context)
        action = self._actions[record.do]
        step: Step = step_from_options(record.options)
        return await (action.recover if cut_off else action.run)(context, step)

    # --- whatever was frozen --------------------------------------------------------------------

    async def _thaw_tasks(self, incident_id: str) -> None:
        """At the end of a plan no task stays frozen, whatever the plan said."""
        incident = self._book.get(incident_id)
        for record in incident.steps if incident else ():
            group = record.journal.get("frozen_cgroup")
            if group is None or (isinstance(group, str) and cgroup.is_frozen(group)):
                await ve_freeze.thaw_journaled(record.journal)

    async def _thaw_leftover(self, record: StepRecord) -> None:
        await ve_freeze.thaw_journaled(record.journal)
        try:
            device = await freeze.thaw_marked(self._inventory, record.journal.get("frozen"))
            if device is not None:
                log.warning("thawed %s, left frozen", device)
        except (OSError, HelperError) as error:
            log.error("cannot thaw what an earlier run has frozen: %s", error)


def _timeout(record: StepRecord) -> float:
    wanted = record.options.get("timeout")
    if isinstance(wanted, int | float):
        return float(wanted)
    return _STEP_TIMEOUT_S.get(record.do, _USUAL_TIMEOUT_S)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    # Whatever one of them ends with, the others are waited for.
    await asyncio.gather(*tasks, return_exceptions=True)
