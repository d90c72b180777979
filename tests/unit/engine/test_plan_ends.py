"""How plans end, also where the daemon ends first: nothing is forgotten, and nothing goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine.executor import Executor
from fswatchd.incidents import Incident, State
from fswatchd.inventory.view import NodeView
from fswatchd.policy import Decision, Verdict
from fswatchd.repair import rollback
from fswatchd.rules.model import step_from_options
from fswatchd.situation import Scope
from fswatchd.steps import Next, StepResult
from fswatchd.store.store import Store
from tests.unit import builders

ID = "20261121-abcde"
OTHER = builders.filesystem(device="loop4", devno=Devno(7, 4), image="/vz/ve102.raw")
UNDO = {"image": "/vz/ve101.img", "original": "/vz/ve101.img.damaged-earlier", "ve": "lxc:ve101"}


def result(following: Next = Next.CONTINUE, *, changed: bool = False, **more: Any) -> StepResult:
    """One that says only what follows."""
    return StepResult(
        next=following, result=following.value, detail="so it is", changed=changed, **more
    )


class Act:
    """A kind of step that answers what it is told to, and counts."""

    def __init__(self, *answers: StepResult) -> None:
        self.answers = list(answers)
        self.runs = 0
        self.running = 0
        self.most = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.begun = asyncio.Event()
        self.mark: dict[str, Any] = {}

    async def run(self, context: Any, _step: Any) -> StepResult:
        self.runs += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.mark:
                await context.journal(**self.mark)
            self.begun.set()
            await self.go_on.wait()
        finally:
            self.running -= 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    recover = run


class Daemon:
    """One run of it, as far as plans are concerned; the database outlives it."""

    def __init__(self, store: Store, **actions: Act) -> None:
        self.again: list[tuple[str, float]] = []
        self.ended = asyncio.Event()

        async def nothing(*_: Any) -> None: ...

        def no(*_: Any, **__: Any) -> None: ...

        inventory = SimpleNamespace(adjust=[], view=NodeView(), refresh=nothing)
        self.book = IncidentBook(store, "hn1")
        self.executor = Executor(
            self.book,
            cast("Any", inventory),
            cast("Any", SimpleNamespace()),
            cast("Any", SimpleNamespace(acted=no, repaired=no, begun=no)),
            cast("Any", SimpleNamespace(why_disarmed=no, why_doubted=no)),
            cast("Any", SimpleNamespace()),
            cast("Any", actions),
            cast("Any", SimpleNamespace(take=nothing)),
            lambda _: self.ended.set(),
            lambda incident, delay_s: self.again.append((incident, delay_s)),
        )

    async def plan(self, *steps: dict[str, Any], **more: Any) -> None:
        """Begin to carry it out."""
        incident = self.book.get(ID) or builders.incident(**more)
        self.book.put(incident)
        decision = Decision(
            verdict=Verdict.ACT, rule="repair", steps=tuple(map(step_from_options, steps))
        )
        self.executor.submit(ID, decision, Scope(ves=(builders.ve_facts(),)))

    async def end_of_plan(self) -> Incident:
        """What it has made of the incident."""
        await asyncio.wait_for(self.ended.wait(), 10)
        self.ended.clear()
        found = self.book.get(ID)
        assert found is not None
        return found

    def hold_up(self) -> asyncio.Event:
        """Let plans get as far as giving the VE's lock back, and no further."""
        there = asyncio.Event()

        async def release(_owner: str) -> list[str]:
            if not there.is_set():
                there.set()
                await asyncio.Event().wait()
            return []

        self.executor._ve_locks = cast("Any", SimpleNamespace(release=release, adopt=None))
        return there


def step(do: str, **more: Any) -> dict[str, Any]:
    return {"do": do, **more}


async def killed_before_the_end_of(store: Store, ending: StepResult) -> None:
    """A daemon whose plan had a step that ended so, and which ended before the plan did."""
    first = Daemon(store, fsck=Act(ending), stop=Act(result()))
    there = first.hold_up()
    await first.plan(step("fsck"), step("stop"))
    await asyncio.wait_for(there.wait(), 10)
    first.book.flush()
    await store.save_incident(first.book.open_incidents()[0], durable=True)
    for task in list(first.executor._tasks.values()):
        task.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("following", "state"),
    [
        (Next.OPERATOR, State.NEEDS_OPERATOR),
        (Next.FAILED, State.NEEDS_OPERATOR),
        (Next.ASK, State.WAITING),
        (Next.WAIT, State.WAITING),
        (Next.CANCELLED, State.OPEN),
        (Next.FINISHED, None),
    ],
)
async def test_what_followed_from_a_step_is_done_by_the_next_run(
    store: Store, following: Next, state: State | None
) -> None:
    await killed_before_the_end_of(store, result(following))
    stop = Act(result())
    second = Daemon(store, fsck=Act(result()), stop=stop)
    await second.book.load()
    await second.executor.recover()
    await asyncio.wait_for(second.ended.wait(), 10)
    found = second.book.get(ID)
    assert (found.state if found else None) is state
    assert stop.runs == 0


async def test_a_step_that_may_fail_is_gone_on_from(store: Store) -> None:
    first = Daemon(store, fsck=Act(result(Next.FAILED)), stop=(stop := Act(result())))
    stop.go_on.clear()
    await first.plan(step("fsck", on_failure="continue"), step("stop"))
    await asyncio.wait_for(stop.begun.wait(), 10)
    for task in list(first.executor._tasks.values()):
        task.cancel()
    second = Daemon(store, fsck=(fsck := Act(result())), stop=(stop := Act(result())))
    await second.book.load()
    await second.executor.recover()
    await asyncio.wait_for(second.ended.wait(), 10)
    assert (fsck.runs, stop.runs) == (0, 1)


@pytest.mark.parametrize(("following", "kept"), [(Next.CONTINUE, False), (Next.FAILED, True)])
async def test_what_is_frozen_after_a_step_is_somebody_elses(
    store: Store, following: Next, kept: bool
) -> None:
    """The mark would have a later run thaw it. A step that fails may have left it frozen."""
    fsck = Act(result(following))
    fsck.mark = {"frozen": {"devno": "7:3"}}
    daemon = Daemon(store, fsck=fsck, stop=(stop := Act(result())))
    stop.go_on.clear()
    await daemon.plan(step("fsck", on_failure="continue"), step("stop"))
    await asyncio.wait_for(stop.begun.wait(), 10)
    found = daemon.book.get(ID)
    assert found is not None
    assert ("frozen" in found.steps[0].journal) is kept
    stop.go_on.set()
    await daemon.end_of_plan()


class TestRollback:
    @pytest.fixture
    def rolled_back(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        done: list[str] = []

        async def run(context: Any) -> StepResult:
            done.append(context.incident.undo["original"])
            return result()

        monkeypatch.setattr(rollback, "run", run)
        return done

    async def test_what_this_plan_has_put_aside_comes_back(
        self, store: Store, rolled_back: list[str]
    ) -> None:
        failed = result(Next.FAILED, changed=True, undo={**UNDO, "original": "/vz/new"})
        daemon = Daemon(store, fsck=Act(failed), start=(start := Act(result())))
        await daemon.plan(step("fsck", on_failure="rollback"), step("start"), undo=UNDO)
        while not rolled_back:
            await asyncio.wait_for(daemon.ended.wait(), 10)
            daemon.ended.clear()
        assert (rolled_back, start.runs) == (["/vz/new"], 0)

    @pytest.mark.parametrize("following", [Next.ASK, Next.WAIT])
    async def test_what_waited_is_not_done_before_it(
        self, store: Store, rolled_back: list[str], following: Next
    ) -> None:
        fsck = Act(result(following))
        daemon = Daemon(store, fsck=fsck)
        await daemon.plan(step("fsck"), undo=UNDO)
        daemon.executor.begin_rollback(await daemon.end_of_plan())
        await asyncio.wait_for(daemon.ended.wait(), 10)
        assert (fsck.runs, rolled_back) == (1, [UNDO["original"]])

    async def test_one_that_has_to_wait_leaves_its_place_to_no_rule(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run(_: Any) -> StepResult:
            return result(Next.WAIT)

        monkeypatch.setattr(rollback, "run", run)
        daemon = Daemon(store)
        daemon.executor.begin_rollback(builders.incident(undo=UNDO))
        assert (await daemon.end_of_plan()).state is State.NEEDS_OPERATOR

    async def test_what_an_earlier_one_has_put_aside_stays_there(
        self, store: Store, rolled_back: list[str]
    ) -> None:
        """The VE has written to the repaired volume since."""
        daemon = Daemon(store, fsck=Act(result(Next.FAILED)))
        await daemon.plan(step("fsck", on_failure="rollback"), undo=UNDO, requested_by="root")
        found = await daemon.end_of_plan()
        assert (found.state, rolled_back) == (State.NEEDS_OPERATOR, [])


async def test_who_waits_does_not_repeat_what_was_done_before(store: Store) -> None:
    snapshot, fsck = Act(result()), Act(result(Next.WAIT), result(Next.WAIT), result())
    daemon = Daemon(store, snapshot=snapshot, fsck=fsck)
    plan = (step("snapshot"), step("fsck"))
    for _ in range(2):
        await daemon.plan(*plan)
        found = await daemon.end_of_plan()
        assert (found.state, found.waiting_for) == (State.WAITING, "busy")
    await daemon.plan(*plan)
    await daemon.end_of_plan()
    assert (snapshot.runs, fsck.runs) == (1, 3)
    # The next fault of the same filesystem is another plan.
    await daemon.plan(*plan)
    await daemon.end_of_plan()
    assert (snapshot.runs, fsck.runs) == (2, 4)


async def test_a_plan_that_is_another_one_by_then_begins_anew(store: Store) -> None:
    snapshot, fsck = Act(result()), Act(result(Next.WAIT), result())
    daemon = Daemon(store, snapshot=snapshot, fsck=fsck)
    await daemon.plan(step("snapshot"), step("fsck"))
    await daemon.end_of_plan()
    await daemon.plan(step("snapshot"), step("fsck", salvage_max=0))
    await daemon.end_of_plan()
    assert snapshot.runs == 2


@pytest.mark.parametrize(
    ("then", "repaired_ns"), [(Next.WAIT, 5), (Next.OPERATOR, None)], ids=["goes on", "new"]
)
async def test_a_new_plan_has_repaired_nothing_yet(
    store: Store, then: Next, repaired_ns: int | None
) -> None:
    fsck = Act(result(then), result())
    daemon = Daemon(store, fsck=fsck)
    await daemon.plan(step("fsck"))
    found = await daemon.end_of_plan()
    daemon.book.put(found.reached("decided", 4).reached("repaired", 5))
    fsck.go_on.clear()
    await daemon.plan(step("fsck"))
    found = daemon.book.get(ID)
    assert found is not None
    assert (found.reached_ns("decided"), found.reached_ns("repaired")) == (4, repaired_ns)
    fsck.go_on.set()
    await daemon.end_of_plan()


async def test_what_is_asked_for_while_an_earlier_plan_tidies_up_is_asked_again(
    store: Store,
) -> None:
    daemon = Daemon(store, fsck=Act(result(Next.OPERATOR)))
    there = daemon.hold_up()
    await daemon.plan(step("fsck"))
    await asyncio.wait_for(there.wait(), 10)
    await daemon.plan(step("fsck"))
    assert [incident for incident, _ in daemon.again] == [ID]
    await daemon.executor.stop()


async def test_two_plans_that_share_a_ve_run_one_after_the_other(store: Store) -> None:
    fsck = Act(result())
    fsck.go_on.clear()
    daemon = Daemon(store, fsck=fsck)
    await daemon.plan(step("fsck"))
    other = builders.incident(
        incident_id="20261121-other", ves=("lxc:ve101", "lxc:ve102"), filesystem=OTHER
    )
    daemon.book.put(other)
    decision = Decision(verdict=Verdict.ACT, steps=(step_from_options(step("fsck")),))
    daemon.executor.submit(other.incident_id, decision, Scope(ves=()))
    await asyncio.wait_for(fsck.begun.wait(), 10)
    for _ in range(20):
        await asyncio.sleep(0)
    fsck.go_on.set()
    await asyncio.wait_for(asyncio.gather(*daemon.executor._tasks.values()), 10)
    assert (fsck.runs, fsck.most) == (2, 1)


class TestLocked:
    """The platform's lock cannot be given back: whatever the plan has come to, that is told."""

    @staticmethod
    def stays_locked(daemon: Daemon) -> None:
        async def release(_owner: str) -> list[str]:
            return ["ve101 stays locked: pct unlock 101: exit code 255"]

        daemon.executor._ve_locks = cast("Any", SimpleNamespace(release=release))

    @pytest.mark.parametrize("following", [Next.FINISHED, Next.FAILED, Next.WAIT, Next.CONTINUE])
    async def test_it_needs_an_operator(self, store: Store, following: Next) -> None:
        daemon = Daemon(store, fsck=Act(result(following)))
        self.stays_locked(daemon)
        await daemon.plan(step("fsck"))
        found = await daemon.end_of_plan()
        assert found.state is State.NEEDS_OPERATOR
        assert "ve101 stays locked" in found.log[-1][1]

    async def test_nothing_is_rolled_back_then(self, store: Store) -> None:
        failed = result(Next.FAILED, changed=True, undo=UNDO)
        daemon = Daemon(store, fsck=Act(failed))
        self.stays_locked(daemon)
        await daemon.plan(step("fsck", on_failure="rollback"))
        found = await daemon.end_of_plan()
        assert (found.state, [one.do for one in found.steps]) == (State.NEEDS_OPERATOR, ["fsck"])


class TestStop:
    async def test_who_has_not_stopped_a_ve_is_cut_off_first(self, store: Store) -> None:
        half_way, harmless = Act(result()), Act(result())
        half_way.mark = {"stopping": True}
        half_way.go_on.clear()
        harmless.go_on.clear()
        daemon = Daemon(store, fsck=half_way, scrub=harmless)
        await daemon.plan(step("fsck"))
        other = builders.incident(
            incident_id="20261121-other", ves=("lxc:ve102",), filesystem=OTHER
        )
        daemon.book.put(other)
        decision = Decision(verdict=Verdict.ACT, steps=(step_from_options(step("scrub")),))
        daemon.executor.submit(other.incident_id, decision, Scope(ves=()))
        await half_way.begun.wait()
        await harmless.begun.wait()
        stopping = asyncio.create_task(daemon.executor.stop())
        while harmless.running:
            await asyncio.sleep(0)
        assert half_way.running == 1
        daemon.executor.submit(ID, decision, Scope(ves=()))
        half_way.go_on.set()
        await asyncio.wait_for(stopping, 10)
        assert (half_way.runs, harmless.runs) == (1, 1)

    async def test_what_had_not_begun_is_decided_about_anew(self, store: Store) -> None:
        """The mode, the rules, and what people have said may be others by then."""
        fsck = Act(result())
        fsck.go_on.clear()
        first = Daemon(store, fsck=fsck)
        await first.plan(step("fsck"))
        await fsck.begun.wait()
        await first.executor.stop()
        again = Act(result())
        second = Daemon(store, fsck=again)
        await second.book.load()
        await second.executor.recover()
        found = await second.end_of_plan()
        assert (found.state, found.attempts, again.runs) == (State.OPEN, 0, 0)
        assert second.again == [(ID, 0.0)]

    @pytest.mark.parametrize(
        ("do", "mark"),
        [
            ("fsck", {"stopping": True}),
            ("exec", {}),
            ("fsck", {"writing": True}),
            # It takes the volume away from its name before it says anything.
            ("fsck", {"strategy": "offline"}),
        ],
    )
    async def test_what_had_begun_goes_on(self, store: Store, do: str, mark: dict) -> None:
        act = Act(result())
        act.mark = mark
        act.go_on.clear()
        first = Daemon(store, **{do: act})
        options = {"run": ["/bin/true"]} if do == "exec" else {}
        if "strategy" in mark:
            options, act.mark = mark, {}
        await first.plan(step(do, **options))
        await act.begun.wait()
        first.book.flush()
        for task in list(first.executor._tasks.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        again = Act(result())
        second = Daemon(store, **{do: again})
        await second.book.load()
        await second.executor.recover()
        await asyncio.wait_for(second.ended.wait(), 10)
        assert again.runs == 1
