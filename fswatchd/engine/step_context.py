"""What a step may know and do beside its own work: the incident, its journal, the VE's lock."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fswatchd.book import IncidentBook
from fswatchd.engine.arming import Arming
from fswatchd.engine.plan_record import has_begun, unsaid
from fswatchd.incidents import Incident, StepRecord, StepState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.view import describe
from fswatchd.repair import originals
from fswatchd.repair.platform_lock import VeLocks
from fswatchd.sources.state import StateSource
from fswatchd.steps import ActionSettings, Next, StepResult, refuse


class StepContext:
    """The ActionContext of one step (see actions.ActionContext)."""

    def __init__(
        self,
        book: IncidentBook,
        inventory: Inventory,
        state: StateSource,
        arming: Arming,
        settings: ActionSettings,
        ve_locks: VeLocks,
        incident_id: str,
        index: int,
    ) -> None:
        self._book = book
        self._arming = arming
        self._ve_locks = ve_locks
        self._incident_id = incident_id
        self._index = index
        self.inventory = inventory
        self.state = state
        self.settings = settings

    @property
    def incident(self) -> Incident:
        """See ActionContext."""
        found = self._book.get(self._incident_id)
        if found is None:
            raise refuse("internal", "the incident was closed meanwhile", Next.OPERATOR)
        return found

    @property
    def record(self) -> StepRecord:
        """See ActionContext."""
        return self.incident.steps[self._index]

    def note(self, text: str) -> None:
        """See ActionContext."""
        self._book.put(self.incident.noted(time.time_ns(), text))

    def progress(self, share: float | None, text: str) -> None:
        """See ActionContext."""
        self._put(replace(self.record, progress=share, detail=text))

    def reached(self, milestone: str) -> None:
        """See ActionContext."""
        self._book.put(self.incident.reached(milestone, time.monotonic_ns()))

    def keep_evidence(self, facts: dict[str, object]) -> None:
        """What the volume was like before the plan is kept there."""
        self._book.put(replace(self.incident, evidence=facts))

    def filesystem_is_now(self, superblock: Superblock) -> None:
        """See ActionContext."""
        self._book.put(replace(self.incident, filesystem=describe(superblock)))

    async def lock_ve(self, ve: Ve) -> Ve:
        """See ActionContext."""
        taken = self.record.journal.get("lock")
        if taken is not None and not self._ve_locks.holds(ve.ve_id):
            # Of an earlier run, when its platform did not answer at the start.
            problem = await self._ve_locks.adopt(taken, self._incident_id)
            if problem is not None:
                raise refuse("busy", problem, Next.OPERATOR)
        return await self._ve_locks.take(ve, self._incident_id, self.journal)

    async def about_to_start(self, ve: Ve) -> None:
        """See ActionContext."""
        self._ve_locks.before_start(ve.ve_id)

    async def about_to_stop(self, ve_id: str) -> None:
        """See ActionContext."""
        if self.record.journal.get("stopping"):
            return
        why = self._arming.why_disarmed((ve_id, *self.incident.ves))
        if why is not None:
            raise refuse("disarmed", f"{why}; {ve_id} was not stopped", Next.CANCELLED)
        why = self._arming.why_doubted(self.incident)
        if why is not None:
            raise refuse("distrusted", f"{why}; {ve_id} was not stopped", Next.CANCELLED)
        # What an earlier run has asked for may come to its end at any moment.
        goes_on = self.record.do == "rollback" or has_begun(self.incident)
        goes_on = goes_on or bool(self.record.journal.get("stop_asked"))
        why = None if goes_on else self._arming.why_storm(self.incident)
        if why is not None:
            # It has broken out since this was decided: what fails with others has their cause.
            raise refuse("storm", f"{why}; {ve_id} was not stopped", Next.WAIT)
        await self.journal(stopping=True)

    async def journal(self, **facts: Any) -> None:
        """See ActionContext."""
        record = replace(self.record, journal={**self.record.journal, **facts})
        await self._save(record)

    async def started(self) -> None:
        """The step begins: that is on the disk before anything is done."""
        started = self.record.started_ns or time.time_ns()
        await self._save(replace(unsaid(self.record), state=StepState.RUNNING, started_ns=started))

    def ended(self, result: StepResult) -> None:
        """The step has ended. What follows from it is kept with it: a daemon that ends before the
        plan does ends that plan when it starts again, and goes on with nothing else."""
        journal = {**self.record.journal, "changed": result.changed, "next": result.next.value}
        if result.next not in {Next.FAILED, Next.OPERATOR, Next.CANCELLED}:
            # It has thawed what it froze: who freezes that later is somebody else.
            journal.pop("frozen", None)
        if result.undo is not None and "original" in result.undo:
            journal["put_aside"] = True
        done = result.next in {Next.CONTINUE, Next.FINISHED}
        record = replace(
            self.record,
            state=StepState.DONE if done else StepState.FAILED,
            ended_ns=time.time_ns(),
            result=result.result,
            detail=result.detail,
            progress=None,
            journal=journal,
        )
        incident = self.incident.with_step(self._index, record)
        if result.undo is not None:
            incident = replace(incident, undo=originals.merged(incident.undo, result.undo))
        self._book.put(
            incident.noted(time.time_ns(), f"{record.do}: {result.result}: {result.detail}")
        )

    def _put(self, record: StepRecord) -> None:
        self._book.put(self.incident.with_step(self._index, record))

    async def _save(self, record: StepRecord) -> None:
        saved = self._book.put(self.incident.with_step(self._index, record), durable=True)
        if saved is not None:
            await saved
