"""Who does not take his turn holds up nobody for long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fswatchd.engine import decider
from fswatchd.incidents import State
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
