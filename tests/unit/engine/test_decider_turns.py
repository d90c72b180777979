"""Whose turn it is, and when: who does not take his holds up nobody for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.cause import Layer
from fswatchd.engine import decider
from fswatchd.engine.decider import Decider
from fswatchd.incidents import Incident, State
from fswatchd.inventory.model import VeId
from fswatchd.inventory.view import NodeView
from fswatchd.rules.model import Budget
from fswatchd.situation import Load
from fswatchd.store.store import Store
from tests.unit import builders
from tests.unit.engine.test_storms import Engine
from tests.unit.inventory.test_lookup import INSIDE, superblock, ve

RULES = """
[[rule]]
name = "repair"
mode = "auto"
[[rule.step]]
do = "fsck"
"""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    made = Engine(store, RULES)
    mine = ve("lxc", "ve3", namespace=INSIDE)
    mounted = superblock(3, (INSIDE, "/"))
    made.decider._inventory.view = NodeView(  # type: ignore[misc]
        ves={mine.ve_id: mine},
        owners={INSIDE: VeId("lxc:ve3")},
        superblocks={mounted.devno: mounted},
    )
    yield made
    made.decider.stop()
    await store.close()


async def test_a_turn_that_is_not_taken_passes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = builders.incident(incident_id="stuck", opened_ns=1)
    engine.decider._turns.waits(stuck, "lxc:stuck", Budget(), Load(devices=("9:9",)))
    found = await engine.fails(3)
    assert (found.state, found.waiting_for) == (State.WAITING, "budget")
    assert "the turn of lxc:stuck" in found.guards[-1][2]
    await engine.decider._look_and_decide("i3")
    assert found.waiting_for == "budget"
    monkeypatch.setattr(decider, "_TURN_TAKEN_S", 0.0)
    await engine.decider._look_and_decide("i3")
    await engine.decider._look_and_decide("i3")
    decided = engine.book.get("i3")
    assert decided is not None
    assert decided.guards[-1] == ("budget", True, "0 of 1 repairs run on this node")


async def test_an_incident_is_decided_about_once_at_a_time_and_again_when_that_was_too_early(
    engine: Engine,
) -> None:
    """On a busy node a look takes longer than it takes to ask for the next one."""
    looks: list[asyncio.Event] = []

    async def beneath(_incident: Incident) -> tuple[Layer, ...]:
        looks.append(asyncio.Event())
        await looks[-1].wait()
        return ()

    engine.decider._substrate = cast("Any", SimpleNamespace(beneath=beneath))
    engine.book.put(builders.incident(incident_id="i3"))
    engine.decider.poke("i3", 0.0)
    await engine.until(lambda: looks)
    for _ in range(20):
        engine.decider.poke("i3", 0.0)
        await engine.until(lambda: not engine.decider._timers)
    assert (len(engine.decider._tasks), len(looks)) == (1, 1)
    looks[0].set()
    await engine.until(lambda: len(looks) == 2)
    looks[1].set()
    await engine.until(lambda: not engine.decider._tasks and not engine.decider._timers)
    assert len(looks) == 2
    assert "decided" in (engine.book.get("i3") or builders.incident()).timeline


async def test_before_the_beginning_nothing_is_decided_and_then_what_was_asked_for_is(
    engine: Engine,
) -> None:
    """A plan that begins before is taken for one that an earlier run has left half-way."""
    engine.decider.stop()
    engine.book.put(builders.incident(incident_id="i3"))
    engine.decider.poke("i3", 0.0)
    engine.decider.poke_all()
    await engine.until(lambda: not engine.decider._timers)
    assert not engine.decider._tasks
    engine.decider.begin()
    await engine.until(lambda: engine.told)
    assert engine.told == ["i3"]


async def test_after_the_end_nothing_is_decided_any_more(engine: Engine) -> None:
    """Not even what was asked for while a decision was under way."""
    under_way = asyncio.Event()

    async def beneath(_incident: Incident) -> tuple[Layer, ...]:
        under_way.set()
        await asyncio.Event().wait()
        return ()

    engine.decider._substrate = cast("Any", SimpleNamespace(beneath=beneath))
    engine.book.put(builders.incident(incident_id="i3"))
    engine.decider.poke("i3", 0.0)
    await asyncio.wait_for(under_way.wait(), 30)
    engine.decider.poke("i3", 0.0)
    await engine.until(lambda: not engine.decider._timers)
    engine.decider.stop()
    await engine.until(lambda: not engine.decider._tasks)
    assert not engine.decider._timers


async def test_a_decision_that_could_not_be_made_is_made_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else may ever ask about the incident, and nobody would be told of it."""
    pauses: list[float] = []
    failing = [True] * 8

    async def refresh() -> None:
        if failing:
            failing.pop()
            raise OSError(24, "Too many open files")

    def poke(incident_id: str, delay_s: float) -> None:
        pauses.append(delay_s)
        Decider.poke(engine.decider, incident_id, 0.0)

    monkeypatch.setattr(engine.decider._inventory, "refresh", refresh)
    monkeypatch.setattr(engine.decider, "poke", poke)
    await engine.fails(3)
    await engine.until(lambda: engine.told)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    failing.append(True)
    await engine.decider._look_and_decide("i3")
    assert pauses[-1] == 5.0
    await engine.until(lambda: not engine.decider._tasks and not engine.decider._timers)
