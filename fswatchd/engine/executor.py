"""Carries plans out: one step after the other, recorded before it begins, bounded in time.

One plan at a time on one VE. A plan that was cut off by the end of the daemon goes on, or is
undone, from what its steps wrote into their journals.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from fswatchd.book import IncidentBook
from fswatchd.engine.arming import Arming
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.history import History
from fswatchd.engine.step_context import StepContext
from fswatchd.errors import FswatchError
from fswatchd.helpers.client import HelperError
from fswatchd.incidents import Incident, Outcome, State, StepRecord, StepState
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import cgroup
from fswatchd.policy import Decision
from fswatchd.repair import freeze, rollback, ve_freeze
from fswatchd.repair.platform_lock import VeLocks
from fswatchd.repair.resume import discard_copies
from fswatchd.rules.model import Step, step_from_options
from fswatchd.sandbox import bubblewrap
from fswatchd.situation import RunningRepair, Scope
from fswatchd.sources.state import StateSource
from fswatchd.steps import (
    MENDED,
    RECOVERED,
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
_OVER = {StepState.DONE, StepState.FAILED, StepState.SKIPPED}
_NOT_ACTING = {"notify", "quarantine", "rollback"}
_LAST_SECONDS_S = 60.0
# A plan that was cancelled is decided about again, so often and after such a pause, doubling.
_MAX_CANCELLED = 3
_AGAIN_S = 5.0
_BUSY_AGAIN_S = 30.0


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
        self._history = history
        self._arming = arming
        self._settings = settings
        self._actions = actions
        self._evidence = evidence
        self._on_end = on_end
        self._again = again
        self._locks: dict[str, asyncio.Lock] = {}
        self._ve_locks = VeLocks(inventory)
        self._running: dict[str, RunningRepair] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = False

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
        if _goes_on(incident.steps, steps):
            steps = incident.steps
        incident = replace(
            incident,
            state=State.ACTING,
            waiting_for="",
            steps=steps,
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
                await self._take_up(incident.incident_id)

    async def _take_up(self, incident_id: str) -> None:
        """What has not begun to touch the VE is decided about anew: mode, rules and what people
        have said may have changed meanwhile. Everything else goes on."""
        incident = self._book.get(incident_id)
        if incident is None:
            return
        cut_off = [i for i, one in enumerate(incident.steps) if one.state is StepState.RUNNING]
        if len(cut_off) != 1 or incident.steps[cut_off[0]].do != "fsck" or _has_begun(incident):
            self._begin(incident, resume=True)
            return
        (index,) = cut_off
        await discard_copies(incident_id, incident.steps[index], self._settings)
        await self._unlock(incident_id)
        incident = _asked_again(self._book.get(incident_id) or incident, index)
        self._book.put(replace(incident, state=State.OPEN, attempts=incident.attempts - 1))
        self._again(incident_id, 0.0)

    async def _recover_locks(self, incident: Incident) -> None:
        stopped = self._has_stopped_its_ve(incident.incident_id)
        for record in incident.steps:
            lock = record.journal.get("lock")
            problem = await self._ve_locks.adopt(lock, incident.incident_id)
            if problem is not None:
                if not stopped:
                    await discard_copies(incident.incident_id, record, self._settings)
                self._hand_over(incident, problem)
                return
        if incident.state is not State.ACTING:
            await self._unlock(incident.incident_id)

    def begin_rollback(self, incident: Incident) -> None:
        """Undo what the incident's plan has changed (already checked and permitted)."""
        record = StepRecord(do="rollback", options={"do": "rollback"})
        incident = replace(
            incident,
            state=State.ACTING,
            outcome=None,
            closed_ns=None,
            steps=(*incident.steps, record),
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
            _touches_the_ve(record)
            for record in incident.steps
            if record.state is StepState.RUNNING or _ending(record) is not None
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
                self._hand_over(incident, f"internal error: {task.exception()}")
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
            result = _ending(record)
            if result is None and record.state in _OVER:
                continue
            cut_off = resume and record.state is StepState.RUNNING
            result = result or self._disarmed(incident.incident_id, index)
            if result is None:
                await self._take_evidence(incident.incident_id, index)
                result = await self._step(incident.incident_id, index, cut_off=cut_off)
            elif cut_off:
                await discard_copies(incident.incident_id, record, self._settings)
            changed = changed or result.changed
            if result.next is not Next.CONTINUE and not self._may_go_on(
                incident.incident_id, index, result
            ):
                await self._thaw_tasks(incident.incident_id)
                problems = await self._unlock(incident.incident_id)
                self._finish(incident.incident_id, index, result)
                self._hand_over_locked(incident.incident_id, problems)
                return
        await self._thaw_tasks(incident.incident_id)
        problems = await self._unlock(incident.incident_id)
        self._finish_all(incident.incident_id, changed=changed)
        self._hand_over_locked(incident.incident_id, problems)

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

    def _hand_over_locked(self, incident_id: str, problems: list[str]) -> None:
        incident = self._book.get(incident_id)
        if incident is not None and problems:
            self._hand_over(incident, "; ".join(problems))

    def _disarmed(self, incident_id: str, index: int) -> StepResult | None:
        """Nothing is begun on what was disarmed since it was decided, nor by a daemon that does not
        trust itself any more.

        A plan that has begun to stop or to change the VE goes on, also after a restart: to leave
        it there would leave the VE down. (Each stop asks for itself, see `about_to_stop`.)
        """
        context = self._context(incident_id, index)
        if context.record.do in {"notify", "rollback"} or _has_begun(context.incident):
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
        if context.record.do not in _NOT_ACTING and not _has_begun(context.incident):
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
            return await rollback.run(context)
        action = self._actions[record.do]
        step: Step = step_from_options(record.options)
        return await (action.recover if cut_off else action.run)(context, step)

    # --- how plans end --------------------------------------------------------------------------

    def _may_go_on(self, incident_id: str, index: int, result: StepResult) -> bool:
        incident = self._book.get(incident_id)
        if incident is None or result.next is not Next.FAILED:
            return False
        return incident.steps[index].options.get("on_failure") == "continue"

    def _finish(self, incident_id: str, index: int, result: StepResult) -> None:
        incident = self._book.get(incident_id)
        if incident is None:
            return
        incident = _settled(incident, index)
        record = incident.steps[index]
        if result.next is Next.ASK:
            journal = {**record.journal, "asked": True}
            asking = replace(record, state=StepState.PENDING, journal=journal, progress=None)
            incident = replace(
                incident.with_step(index, asking),
                state=State.WAITING,
                waiting_for="approval",
                asks=result.detail,
                approved_by=None,
            )
            self._book.put(incident.noted(time.time_ns(), f"asks: {result.detail}"))
            return
        if result.next in {Next.CANCELLED, Next.WAIT} and not _has_begun(incident):
            # It may be asked for once more, as a plan does that an approval lets go on.
            if result.next is Next.WAIT:
                self._wait(_asked_again(incident, index), result.detail)
            else:
                again = replace(record, state=StepState.PENDING, ended_ns=None)
                incident = replace(incident.with_step(index, again), asks="")
                self._cancelled(incident, result.detail)
            return
        incident = replace(_skip_rest(incident, index), asks="")
        if result.next is Next.FINISHED and any(r.result == MENDED for r in incident.steps):
            self._book.put(incident)
            self._finish_all(incident_id, changed=True)  # an earlier step has cured it
        elif result.next is Next.FINISHED:
            self._acted(incident)
            healed = result.result == RECOVERED
            outcome = Outcome.RECOVERED if healed else Outcome.FALSE_ALARM
            self._book.close(incident, outcome, result.detail)
        elif (
            result.next is Next.FAILED
            and record.options.get("on_failure") == "rollback"
            and any(one.journal.get("put_aside") for one in incident.steps)
        ):  # what an earlier plan has put aside is older than what the VE has written since
            self._acted(incident, failed=True)
            self.begin_rollback(incident.noted(time.time_ns(), f"rolling back: {result.detail}"))
        else:
            self._acted(incident, failed=record.do != "quarantine")
            self._hand_over(incident, result.detail)

    def _cancelled(self, incident: Incident, why: str) -> None:
        """Nothing was done. What it was about may have changed in that moment: ask once more."""
        disarmed = self._arming.why_disarmed(incident.ves) is not None
        if not disarmed and self._arming.why_doubted(incident) is not None:
            incident = replace(incident, state=State.OPEN, attempts=incident.attempts - 1)
            self._book.put(incident.noted(time.time_ns(), f"cancelled: {why}"))
            self._again(incident.incident_id, 0.0)
            return
        if not disarmed and incident.attempts >= _MAX_CANCELLED:
            self._hand_over(incident, f"cancelled {incident.attempts} times: {why}")
            return
        state = State.WAITING if disarmed else State.OPEN
        incident = replace(incident, state=state, waiting_for="armed" if disarmed else "")
        self._book.put(incident.noted(time.time_ns(), f"cancelled: {why}"))
        if not disarmed:
            self._again(incident.incident_id, _AGAIN_S * 2**incident.attempts)

    def _wait(self, incident: Incident, why: str) -> None:
        """Nothing was done. No event tells when whoever is at work on the VE has finished."""
        incident = replace(
            incident, state=State.WAITING, waiting_for="busy", attempts=incident.attempts - 1
        )
        self._book.put(incident.noted(time.time_ns(), f"waits: {why}"))
        self._again(incident.incident_id, _BUSY_AGAIN_S)

    def _finish_all(self, incident_id: str, *, changed: bool) -> None:
        incident = self._book.get(incident_id)
        if incident is None:
            return
        incident = replace(incident, asks="")
        self._acted(incident)
        if incident.steps and incident.steps[-1].do == "rollback":
            self._book.close(incident, Outcome.DISMISSED, "rolled back")
        elif changed:
            state = replace(incident, state=State.VERIFYING)
            self._book.put(state.noted(time.time_ns(), "done; watching whether it stays healthy"))
        else:
            self._book.put(replace(incident, state=State.OPEN))

    def _hand_over(self, incident: Incident, why: str) -> None:
        incident = replace(incident, state=State.NEEDS_OPERATOR, waiting_for="")
        self._book.put(incident.noted(time.time_ns(), f"needs an operator: {why}"))

    def _acted(self, incident: Incident, *, failed: bool = False) -> None:
        volume = incident.filesystem.volume_key
        if incident.rule:
            self._history.acted(incident.rule, volume, failed=failed)
        done = [record for record in incident.steps if record.journal.get("changed")]
        if done and done[-1].do != "rollback":
            self._history.repaired(volume)

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
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def _goes_on(known: tuple[StepRecord, ...], wanted: tuple[StepRecord, ...]) -> bool:
    """Whether the plan goes on where it has asked, or had to wait: what is done is not repeated."""
    marks = {mark for one in known for mark in one.journal if one.state is StepState.PENDING}
    if "asked" in marks:
        return [one.do for one in known] == [one.do for one in wanted]
    if "waited" in marks:
        plans = [[(one.do, one.options) for one in steps] for steps in (known, wanted)]
        return plans[0] == plans[1]
    return False


def _asked_again(incident: Incident, index: int) -> Incident:
    """The step has done nothing, and is done later."""
    record = incident.steps[index]
    journal = {**record.journal, "waited": True}
    again = replace(record, state=StepState.PENDING, ended_ns=None, progress=None, journal=journal)
    return replace(incident.with_step(index, again), asks="")


def _ending(record: StepRecord) -> StepResult | None:
    """How a step has ended whose plan ends with it, and an earlier run of the daemon ended before
    that; None for all others."""
    following = Next(str(record.journal.get("next", Next.CONTINUE)))
    if record.state not in _OVER or following is Next.CONTINUE:
        return None
    changed = bool(record.journal.get("changed"))
    return StepResult(next=following, result=record.result, detail=record.detail, changed=changed)


def _settled(incident: Incident, index: int) -> Incident:
    """What follows from the step's end is done, or done with."""
    record = incident.steps[index]
    journal = {key: value for key, value in record.journal.items() if key != "next"}
    return incident.with_step(index, replace(record, journal=journal))


def _has_begun(incident: Incident) -> bool:
    """Whether a step of the plan has begun to do what cannot just be left as it is."""
    return any(_touches_the_ve(one) or one.journal.get("changed") for one in incident.steps)


def _touches_the_ve(record: StepRecord) -> bool:
    return any(record.journal.get(mark) for mark in ("stopping", "swapping", "writing"))


def _skip_rest(incident: Incident, index: int) -> Incident:
    for later in range(index + 1, len(incident.steps)):
        record = incident.steps[later]
        if record.state is StepState.PENDING:
            incident = incident.with_step(later, replace(record, state=StepState.SKIPPED))
    return incident
