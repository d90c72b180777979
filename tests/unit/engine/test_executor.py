"""Which plan is running: the end of one is not the end of the one that follows it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.engine.executor import Executor
from fswatchd.incidents import Incident, Outcome, State, StepRecord, StepState
from fswatchd.situation import RunningRepair
from fswatchd.steps import MENDED, RECOVERED, Next, StepResult
from tests.unit import builders

ID = "20261121-abcde"


async def test_the_end_of_a_plan_does_not_forget_the_rollback_that_has_begun() -> None:
    nothing = cast("Any", SimpleNamespace(adjust=[]))
    executor = Executor(
        *(nothing, nothing, nothing, nothing, nothing, nothing),
        {},
        nothing,
        lambda _: None,
        lambda *_: None,
    )
    plan = asyncio.create_task(asyncio.sleep(0))
    rollback = asyncio.create_task(asyncio.sleep(0))
    await plan
    executor._tasks[ID] = rollback
    executor._running[ID] = RunningRepair(incident_id=ID)
    executor._ended(ID, plan)
    assert [repair.incident_id for repair in executor.running()] == [ID]
    await rollback
    executor._ended(ID, rollback)
    assert executor.running() == ()


class Book:
    """The last thing that became of an incident."""

    def put(self, incident: Incident) -> None:
        self.last = incident


def cancelled(
    attempts: int, disarmed: str | None = None, doubted: str | None = None
) -> tuple[Incident, list[float]]:
    """What becomes of an incident whose plan was cancelled, and when it is decided about again."""
    nothing = cast("Any", SimpleNamespace(adjust=[]))
    book, again = Book(), []
    history = cast("Any", SimpleNamespace(acted=lambda *_, **__: None))
    arming = cast(
        "Any",
        SimpleNamespace(why_disarmed=lambda _: disarmed, why_doubted=lambda _: doubted),
    )
    executor = Executor(
        cast("Any", book),
        nothing,
        nothing,
        history,
        arming,
        nothing,
        {},
        nothing,
        lambda _: None,
        lambda _, delay_s: again.append(delay_s),
    )
    found = builders.incident(state=State.ACTING, attempts=attempts)
    executor._end.cancelled(found, "the VE was restarted")
    return book.last, again


def test_a_cancelled_plan_is_decided_about_again_and_later_each_time() -> None:
    first, soon = cancelled(1)
    second, later = cancelled(2)
    assert first.state is second.state is State.OPEN
    assert soon[0] < later[0]


def test_what_is_cancelled_again_and_again_needs_an_operator() -> None:
    incident, again = cancelled(3)
    assert (incident.state, again) == (State.NEEDS_OPERATOR, [])


def test_what_a_disarm_has_cancelled_waits_for_the_arm() -> None:
    incident, again = cancelled(3, "the node was disarmed")
    assert (incident.state, incident.waiting_for, again) == (State.WAITING, "armed", [])


def test_what_a_doubt_has_cancelled_is_decided_about_at_once_however_often() -> None:
    incident, again = cancelled(3, doubted="kmsg is deaf")
    assert (incident.state, incident.attempts, again) == (State.OPEN, 2, [0.0])


def test_after_a_failed_step_nothing_of_the_plan_is_pending_any_more() -> None:
    nothing = cast("Any", SimpleNamespace(adjust=[]))
    steps = (
        StepRecord(do="fsck", state=StepState.FAILED, options={"on_failure": "quarantine"}),
        StepRecord(do="start"),
        StepRecord(do="notify"),
    )
    kept = [builders.incident(state=State.ACTING, steps=steps)]
    book = SimpleNamespace(get=lambda _: kept[-1], put=kept.append)
    history = cast(
        "Any",
        SimpleNamespace(acted=lambda *_, **__: None, repaired=lambda _: None, begun=lambda _: None),
    )
    executor = Executor(
        cast("Any", book),
        nothing,
        nothing,
        history,
        nothing,
        nothing,
        {},
        nothing,
        lambda _: None,
        lambda *_: None,
    )
    executor._end.finish(ID, 0, StepResult(next=Next.FAILED, result="failed", detail="it failed"))
    assert kept[-1].state is State.NEEDS_OPERATOR
    assert [step.state.value for step in kept[-1].steps] == ["failed", "skipped", "skipped"]


@pytest.mark.parametrize("problem", [None, "ve101 stays locked"])
async def test_a_lock_of_an_earlier_run_is_given_back_or_told_of(problem: str | None) -> None:
    """Of a plan that was disarmed meanwhile: nothing else takes it up."""
    calls: list[str] = []

    async def adopt(_lock: object, owner: str) -> str | None:
        calls.append("adopt")
        assert owner == ID
        return problem

    async def release(_owner: str) -> list[str]:
        calls.append("release")
        return []

    nothing = cast("Any", SimpleNamespace(adjust=[]))
    steps = (StepRecord(do="fsck", state=StepState.RUNNING),)
    kept = [builders.incident(state=State.WAITING, waiting_for="armed", steps=steps)]
    book = SimpleNamespace(get=lambda _: kept[-1], put=kept.append)
    executor = Executor(
        cast("Any", book),
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        {},
        nothing,
        lambda _: None,
        lambda *_: None,
    )
    executor._ve_locks = cast("Any", SimpleNamespace(adopt=adopt, release=release))
    await executor._recover_locks(kept[-1])
    if problem is None:
        assert (calls, kept[-1].state) == (["adopt", "release"], State.WAITING)
    else:
        assert (calls, kept[-1].state) == (["adopt"], State.NEEDS_OPERATOR)
        assert problem in kept[-1].log[-1][1]


class Shelf(Book):
    """A book with one incident in it."""

    def __init__(self, found: Incident) -> None:
        self.last = found

    def get(self, _: str) -> Incident:
        return self.last

    def close(self, incident: Incident, outcome: Outcome, _: str) -> None:
        self.last = replace(incident, state=State.CLOSED, outcome=outcome)


@pytest.mark.parametrize(
    ("first", "changed", "second", "state", "outcome"),
    [
        ("clean", False, "false-alarm", State.CLOSED, Outcome.FALSE_ALARM),
        ("frozen", True, "false-alarm", State.CLOSED, Outcome.FALSE_ALARM),
        ("failed", False, RECOVERED, State.CLOSED, Outcome.RECOVERED),
        (MENDED, True, "false-alarm", State.VERIFYING, None),
    ],
)
def test_what_a_scrub_has_mended_is_watched_and_no_false_alarm(
    first: str, changed: bool, second: str, state: State, outcome: Outcome | None
) -> None:
    steps = (
        StepRecord(do="fsck", state=StepState.DONE, result=first, journal={"changed": changed}),
        StepRecord(do="fsck", state=StepState.DONE, result=second, journal={"changed": False}),
    )
    shelf = Shelf(builders.incident(state=State.ACTING, steps=steps))
    nothing = cast("Any", SimpleNamespace(adjust=[]))
    history = cast(
        "Any", SimpleNamespace(acted=lambda *_, **__: None, repaired=lambda *_, **__: None)
    )
    executor = Executor(
        cast("Any", shelf), nothing, nothing, history, nothing, nothing, {}, nothing, print, print
    )
    executor._end.finish(ID, 1, StepResult(next=Next.FINISHED, result=second, detail="it is clean"))
    assert (shelf.last.state, shelf.last.outcome) == (state, outcome)
