"""Right before a VE is stopped: what has changed since that was decided."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.engine.arming import Arming
from fswatchd.engine.history import History
from fswatchd.engine.operations import Operations
from fswatchd.engine.step_context import StepContext
from fswatchd.engine.trust import Trust
from fswatchd.incidents import Incident, StepRecord, StepState
from fswatchd.inventory.model import VeId
from fswatchd.situation import StormState
from fswatchd.steps import ActionSettings, Next, StepEnded
from fswatchd.store.store import Store
from tests.unit import builders

STORM = StormState(incident_id="20261122-storm", text="40 VEs have failed at once")
VE = "declared:ve101"


class Book:
    """With one incident."""

    def __init__(self, incident: Incident) -> None:
        self.incident = incident

    def get(self, _: str) -> Incident:
        return self.incident

    def put(self, incident: Incident, *, durable: bool = False) -> None:
        self.incident = incident


@pytest.fixture
async def arming(tmp_path: Path) -> AsyncIterator[Arming]:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    inventory = SimpleNamespace(view=SimpleNamespace(ves={}))
    yield Arming(
        History(store),
        cast("Any", inventory),
        Trust(store, lambda *_: None),
        Operations(store),
        lambda: None,
    )
    await store.close()


async def stop(
    arming: Arming,
    *,
    do: str = "fsck",
    before: tuple[StepRecord, ...] = (),
    journal: dict[str, Any] | None = None,
    **incident: Any,
) -> bool:
    """Whether it may be stopped by this step; raises StepEnded with why not."""
    record = StepRecord(do=do, journal=journal or {})
    found = replace(builders.incident(), steps=(*before, record), **incident)
    book = Book(found)
    nothing = cast("Any", None)
    context = StepContext(
        cast("Any", book),
        nothing,
        nothing,
        arming,
        ActionSettings(),
        nothing,
        "one",
        index=len(before),
    )
    await context.about_to_stop(VE)
    return bool(context.record.journal["stopping"])


async def test_without_a_storm_it_is_stopped(arming: Arming) -> None:
    assert await stop(arming)


async def test_nothing_is_stopped_in_a_storm_that_has_broken_out_since(arming: Arming) -> None:
    arming.storm = lambda: STORM
    with pytest.raises(StepEnded) as ended:
        await stop(arming)
    result = ended.value.result
    assert (result.next, result.result) == (Next.WAIT, "storm")
    assert result.detail == f"{STORM.text} (20261122-storm); {VE} was not stopped"


async def test_a_plan_that_has_changed_the_ve_already_goes_on_to_its_end(arming: Arming) -> None:
    arming.storm = lambda: STORM
    looked = StepRecord(do="scrub", state=StepState.DONE)
    with pytest.raises(StepEnded):
        await stop(arming, before=(looked,))
    assert await stop(arming, before=(replace(looked, journal={"changed": True}),))


async def test_what_root_has_asked_for_goes_on_and_so_does_a_way_back(arming: Arming) -> None:
    arming.storm = lambda: STORM
    assert await stop(arming, requested_by="root")
    assert await stop(arming, do="rollback")


async def test_what_was_told_to_stop_already_goes_on(arming: Arming) -> None:
    """By a run of the daemon before this one: it may be down at any moment."""
    arming.storm = lambda: STORM
    assert await stop(arming, journal={"stop_asked": True})


async def test_a_drill_goes_on(arming: Arming) -> None:
    arming.storm = lambda: STORM
    view = arming._inventory.view
    scratch: Any = SimpleNamespace(scratch=True, labels={}, labels_known=True)
    view.ves = dict.fromkeys(map(VeId, builders.incident().direct_ves), scratch)
    assert await stop(arming)
