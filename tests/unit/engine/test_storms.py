"""Many VEs that fail at once become one storm, which holds repairs until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd import storm, summary
from fswatchd.api import prose
from fswatchd.book import IncidentBook
from fswatchd.cause import Layer
from fswatchd.devno import Devno
from fswatchd.engine.decider import Decider
from fswatchd.engine.history import History
from fswatchd.events import Domain, Severity
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.view import NodeView
from fswatchd.store.store import Store
from tests.unit import builders
from tests.unit.inventory.test_lookup import INSIDE, superblock

RULES = """
[storm]
ves = 2
resume = "operator"
[[rule]]
name = "tell"
[[rule.step]]
do = "notify"
to = ["ops"]
"""


class Engine:
    """A decider with a real book and history, on a node of which nothing is to blame."""

    def __init__(self, store: Store, rules: str = RULES) -> None:
        self.book = IncidentBook(store, "hn1")
        self.history = History(store)
        self.told: list[str] = []
        mounted = [replace(superblock(n, (INSIDE, "/")), disk_sequence=42) for n in range(1, 9)]
        view = NodeView(superblocks={one.devno: one for one in mounted})

        async def refresh() -> None:
            pass

        self.layers: tuple[Layer, ...] = ()

        async def beneath(_incident: Incident) -> tuple[Layer, ...]:
            return self.layers

        self.decider = Decider(
            self.book,
            cast("Any", SimpleNamespace(view=view, refresh=refresh)),
            self.history,
            "auto",
            submit=lambda *_: None,
            running=tuple,
            on_decided=lambda incident: self.told.append(incident.incident_id),
            substrate=cast("Any", SimpleNamespace(beneath=beneath)),
        )
        self.decider.rules = builders.rules(rules)
        self.decider.begin()

    async def fails(self, number: int, **more: Any) -> Incident:
        found = builders.incident(
            incident_id=f"i{number}",
            filesystem=builders.filesystem(devno=Devno(7, number), device=f"loop{number}"),
            ves=(f"lxc:ve{number}",),
            **more,
        )
        self.book.put(found)
        await self.decider._look_and_decide(found.incident_id)
        return self.book.get(found.incident_id) or found

    @property
    def storm(self) -> Incident | None:
        return next((i for i in self.book.open_incidents() if i.domain is Domain.STORM), None)

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not what():
                await asyncio.sleep(0.005)


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    made.decider.stop()


async def test_one_incident_tells_of_all_and_an_operator_ends_it(engine: Engine) -> None:
    await engine.fails(1)
    await engine.fails(2)
    assert engine.storm is None
    await engine.fails(3)
    found = engine.storm
    assert found is not None
    assert found.ves == ("lxc:ve1", "lxc:ve2", "lxc:ve3")
    assert found.consequences == ("i1", "i2", "i3")
    assert "3 of 3 are on ext4" in found.log[0][1]
    await engine.until(lambda: engine.storm and engine.storm.state is State.NEEDS_OPERATOR)
    assert engine.told == ["i1", "i2", "i3", found.incident_id]
    assert "3 VEs have failed at once" in summary.of(engine.storm or found)
    why = prose.why(engine.storm or found)
    assert "a storm, needs-operator" in why
    assert "unknown device" not in why
    state = engine.decider.policy_state().storm
    assert state is not None
    assert state.incident_id == found.incident_id
    await engine.fails(4)
    assert engine.storm is not None
    assert engine.storm.ves[-1] == "lxc:ve4"
    engine.book.close(engine.storm, Outcome.DISMISSED, "seen")
    assert engine.decider.policy_state().storm is None
    await engine.fails(5)
    await engine.fails(6)
    assert engine.storm is None, "those that failed before the end are settled"
    await engine.fails(7)
    assert engine.storm is not None


async def test_it_outlives_a_restart(engine: Engine, store: Store) -> None:
    for number in (1, 2, 3):
        await engine.fails(number)
    await engine.until(lambda: engine.storm and engine.storm.state is State.NEEDS_OPERATOR)
    engine.book.flush()
    again = Engine(store)
    await again.history.load()
    await again.book.load()
    assert again.decider.policy_state().storm is not None
    again.decider.stop()


async def test_failures_before_a_restart_count(engine: Engine, store: Store) -> None:
    await engine.fails(1)
    await engine.fails(2)
    engine.book.flush()
    again = Engine(store)
    await again.history.load()
    await again.book.load()
    await again.fails(3)
    assert again.storm is not None
    again.decider.stop()


async def test_it_ends_by_itself_where_the_rules_say_so(engine: Engine) -> None:
    engine.decider.rules = builders.rules(RULES.replace('"operator"', '"300ms"'))
    for number in (1, 2, 3):
        await engine.fails(number)
    found = engine.storm
    assert found is not None
    assert found.state is not State.NEEDS_OPERATOR
    await engine.until(lambda: engine.storm is None)
    assert found.ves == ("lxc:ve1", "lxc:ve2", "lxc:ve3")


async def test_rules_that_know_no_storms_end_it(engine: Engine) -> None:
    for number in (1, 2, 3):
        await engine.fails(number)
    assert engine.storm is not None
    engine.decider.rules = builders.rules(RULES[RULES.index("[[rule]]") :])
    await engine.until(lambda: engine.storm is None)


async def test_what_is_part_of_a_known_cause_or_only_asked_for_is_not_counted(
    engine: Engine,
) -> None:
    await engine.fails(1)
    await engine.fails(2)
    bare = builders.incident(requested_by="root")
    engine.book.put(replace(bare, incident_id="asked", ves=("lxc:ve9",), counts={}))
    await engine.decider._look_and_decide("asked")
    engine.layers = (Layer(kind="device", name="/dev/sda", errors=2),)
    await engine.fails(3)
    engine.layers = ()
    warning = builders.event(severity=Severity.WARNING)
    engine.book.put(replace(builders.incident(warning), incident_id="warns", ves=("lxc:ve7",)))
    await engine.decider._look_and_decide("warns")
    space = builders.incident(builders.event(klass="space"), domain=Domain.SPACE)
    engine.book.put(replace(space, incident_id="space", ves=("lxc:ve8",)))
    await engine.decider._look_and_decide("space")
    assert engine.storm is None


def test_what_most_of_them_rest_on_is_the_likely_cause() -> None:
    def on(name: str, number: int, disk: str) -> Incident:
        stack = tuple({"device": one} for one in (f"loop{number}", "dm-0", disk))
        return builders.incident(incident_id=name, stack=stack)

    same = [on(str(n), n, "sda" if n else "sdb") for n in range(6)]
    assert storm.likely_cause(same) == "6 of 6 rest on dm-0"
    apart = [builders.incident(incident_id=str(n), stack=({"device": f"l{n}"},)) for n in range(3)]
    assert storm.likely_cause(apart).startswith("3 of 3 are on ext4")
