"""What becomes of an incident when a step ends its plan, or the plan is through."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fswatchd.book import IncidentBook
from fswatchd.engine.arming import Arming
from fswatchd.engine.history import History
from fswatchd.engine.plan_record import asked_again, has_begun, settled, skip_rest
from fswatchd.incidents import Incident, Outcome, State, StepState
from fswatchd.steps import MENDED, RECOVERED, Next, StepResult

# A plan that was cancelled is decided about again, so often and after such a pause, doubling.
_MAX_CANCELLED = 3
_AGAIN_S = 5.0
_BUSY_AGAIN_S = 30.0


class PlanEnd:
    """See the module. `again` is as for the executor."""

    def __init__(
        self,
        book: IncidentBook,
        history: History,
        arming: Arming,
        again: Callable[[str, float], None],
        begin_rollback: Callable[[Incident], None],
    ) -> None:
        self._book = book
        self._history = history
        self._arming = arming
        self._again = again
        self._begin_rollback = begin_rollback

    def may_go_on(self, incident_id: str, index: int, result: StepResult) -> bool:
        """Whether the rule lets the plan go on after this step has failed."""
        incident = self._book.get(incident_id)
        if incident is None or result.next is not Next.FAILED:
            return False
        return incident.steps[index].options.get("on_failure") == "continue"

    def finish(
        self, incident_id: str, index: int, result: StepResult, locked: Sequence[str] = ()
    ) -> None:
        """The step at `index` has ended the plan; `locked` are the VEs that stay so, in words."""
        incident = self._book.get(incident_id)
        if incident is None:
            return
        incident = settled(incident, index)
        record = incident.steps[index]
        if locked:
            incident = replace(skip_rest(incident, index), asks="")
            self._acted(incident, failed=result.next in {Next.FAILED, Next.OPERATOR})
            self.hand_over(incident, "; ".join((result.detail, *locked)))
            return
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
        is_rollback = record.do == "rollback"  # in whose place no rule's plan may begin
        put_off = result.next in {Next.CANCELLED, Next.WAIT} and not is_rollback
        if put_off and not has_begun(incident):
            # It may be asked for once more, as a plan does that an approval lets go on.
            if result.next is Next.WAIT:
                self._wait(asked_again(incident, index), result.detail)
            else:
                again = replace(record, state=StepState.PENDING, ended_ns=None)
                incident = replace(incident.with_step(index, again), asks="")
                self.cancelled(incident, result.detail)
            return
        incident = replace(skip_rest(incident, index), asks="")
        if result.next is Next.FINISHED and any(r.result == MENDED for r in incident.steps):
            self._book.put(incident)
            self.finish_all(incident_id, changed=True)  # an earlier step has cured it
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
            self._begin_rollback(incident.noted(time.time_ns(), f"rolling back: {result.detail}"))
        else:
            self._acted(incident, failed=record.do != "quarantine")
            self.hand_over(incident, result.detail)

    def cancelled(self, incident: Incident, why: str) -> None:
        """Nothing was done. What it was about may have changed in that moment: ask once more."""
        disarmed = self._arming.why_disarmed(incident.ves) is not None
        if not disarmed and self._arming.why_doubted(incident) is not None:
            incident = replace(incident, state=State.OPEN, attempts=incident.attempts - 1)
            self._book.put(incident.noted(time.time_ns(), f"cancelled: {why}"))
            self._again(incident.incident_id, 0.0)
            return
        if not disarmed and incident.attempts >= _MAX_CANCELLED:
            self.hand_over(incident, f"cancelled {incident.attempts} times: {why}")
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

    def finish_all(self, incident_id: str, *, changed: bool, locked: Sequence[str] = ()) -> None:
        """All steps are done; `changed` says that the VE is not what it was before."""
        incident = self._book.get(incident_id)
        if incident is None:
            return
        incident = replace(incident, asks="")
        self._acted(incident)
        if locked:
            self.hand_over(incident, "; ".join(("the plan is done", *locked)))
        elif incident.steps and incident.steps[-1].do == "rollback":
            self._book.close(incident, Outcome.DISMISSED, "rolled back")
        elif changed:
            state = replace(incident, state=State.VERIFYING)
            self._book.put(state.noted(time.time_ns(), "done; watching whether it stays healthy"))
        else:
            self._book.put(replace(incident, state=State.OPEN))

    def hand_over(self, incident: Incident, why: str) -> None:
        """From here on a person decides."""
        incident = replace(incident, state=State.NEEDS_OPERATOR, waiting_for="")
        self._book.put(incident.noted(time.time_ns(), f"needs an operator: {why}"))

    def _acted(self, incident: Incident, *, failed: bool = False) -> None:
        volume = incident.filesystem.volume_key
        if incident.rule:
            self._history.acted(incident.rule, volume, failed=failed)
        done = [record for record in incident.steps if record.journal.get("changed")]
        if done and done[-1].do != "rollback":
            self._history.repaired(volume)
