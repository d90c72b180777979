"""Incidents of what suffers become parts of the incident of what is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd import views
from fswatchd.book import IncidentBook
from fswatchd.cause import Layer
from fswatchd.devno import Devno
from fswatchd.engine.decider import Decider
from fswatchd.events import Health
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.view import NodeView
from fswatchd.notify.notices import Notices
from fswatchd.store.store import Store
from tests.unit import builders
from tests.unit.inventory.test_lookup import INSIDE, superblock

TELL = """
[[rule]]
name = "tell"
match.class = "*"
match.severity = ">= error"
[[rule.step]]
do = "notify"
to = ["ops"]
"""


class Outbox:
    """Keeps what it is given to deliver."""

    names = ("ops", "others")

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []

    def send(self, channel: str, kind: str, incident_id: str, *_: object) -> None:
        self.sent.append((channel, kind, incident_id))


class Engine:
    """A decider that is told what lies beneath, with a real book and real notices."""

    def __init__(self, store: Store) -> None:
        self.book = IncidentBook(store, "hn1")
        self.outbox = Outbox()
        self.notices = Notices(self.book, cast("Any", self.outbox))
        mounted = [replace(superblock(n, (INSIDE, "/")), disk_sequence=42) for n in (3, 4)]
        view = NodeView(superblocks={one.devno: one for one in mounted})
        self.layers: tuple[Layer, ...] = ()

        async def refresh() -> None:
            pass

        async def beneath(_incident: Incident) -> tuple[Layer, ...]:
            return self.layers

        self.decider = Decider(
            self.book,
            cast("Any", SimpleNamespace(view=view, refresh=refresh)),
            cast(
                "Any",
                SimpleNamespace(
                    current_disarms=tuple,
                    last_action_ns={},
                    failures={},
                    repaired_ns={},
                    begun_ns={},
                    failed_ns={},
                    failed=lambda _: None,
                    forget_failures=lambda *_: None,
                ),
            ),
            "observe",
            submit=lambda *_: None,
            running=tuple,
            on_decided=self.notices.opened,
            substrate=cast("Any", SimpleNamespace(beneath=beneath)),
        )
        self.decider.rules = builders.rules(TELL)
        self.decider.begin()

    async def open(self, name: str, number: int = 3, **more: Any) -> Incident:
        found = builders.incident(
            incident_id=name,
            filesystem=builders.filesystem(devno=Devno(7, number), device=f"loop{number}"),
            **more,
        )
        self.book.put(found)
        return await self.decide(name)

    async def decide(self, name: str) -> Incident:
        await self.decider._look_and_decide(name)
        found = self.book.get(name)
        assert found is not None
        return found

    def told(self, channel: str = "ops") -> list[tuple[str, str]]:
        return [(kind, incident) for to, kind, incident in self.outbox.sent if to == channel]


@pytest.fixture
async def engine(tmp_path) -> AsyncIterator[Engine]:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    made = Engine(store)
    yield made
    made.decider.stop()
    await store.close()


def host(incident: str | None, health: Health = Health.SHUTDOWN, **more: Any) -> Layer:
    values = {"name": "ext4 /vz (loop0)", "ves": ("lxc:ve101", "lxc:ve102")}
    return Layer(kind="filesystem", health=health, incident=incident, **(values | more))


async def test_what_suffers_is_a_part_of_its_cause_and_not_told(engine: Engine) -> None:
    await engine.open("host", 9, ves=("lxc:ve101", "lxc:ve102"))
    engine.layers = (host("host"),)
    one = await engine.open("one", 3)
    assert (one.part_of, one.untold) == ("host", True)
    assert engine.told() == [("opened", "host")]
    cause = engine.book.get("host")
    assert cause is not None
    assert cause.consequences == ("one",)
    assert engine.book.told_elsewhere(one)


async def test_one_that_was_told_before_its_cause_was_known_joins_it_later(engine: Engine) -> None:
    engine.layers = (host(None),)
    one = await engine.open("one", 3)
    assert (one.part_of, one.untold) == (None, False)
    assert engine.told() == [("opened", "one")]
    engine.layers = ()
    await engine.open("host", 9)
    engine.layers = (host("host"),)
    one = await engine.decide("one")
    assert one.part_of == "host"
    assert "it is part of host" in [text for _, text in one.log]
    # Whoever was told of it learns what it belongs to, and how it ends.
    assert engine.told() == [("opened", "one"), ("opened", "host"), ("updated", "one")]
    engine.book.close(one, Outcome.DISMISSED, "gone")
    assert engine.told()[-1] == ("closed", "one")


async def test_when_the_cause_is_well_again_it_is_told_and_lives_on_its_own(
    engine: Engine,
) -> None:
    await engine.open("host", 9)
    engine.layers = (host("host"),)
    await engine.open("one", 3)
    engine.layers = (host("host", Health.OK),)
    one = await engine.decide("one")
    assert (one.part_of, one.untold, one.cause_is_over) == (None, False, True)
    assert engine.told() == [("opened", "host"), ("opened", "one")]
    assert not engine.book.told_elsewhere(one)


async def test_one_that_recovers_with_its_cause_is_never_told_unless_data_was_lost(
    engine: Engine,
) -> None:
    await engine.open("host", 9)
    full = {"free_bytes": 0, "total_bytes": 1 << 40, "full_incident": "host"}
    engine.layers = (host(None, Health.OK, **full),)
    one, two = await engine.open("one", 3), await engine.open("two", 4)
    assert one.part_of == two.part_of == "host"
    lost = builders.event("kmsg", "data_loss", lost=builders.lost_write())
    engine.book.put(two.joined(lost, builders.NOW_NS))

    async def recover(name: str) -> None:
        found = engine.book.get(name)
        assert found is not None
        engine.book.close(found, Outcome.RECOVERED, "there is room again")

    engine.decider.look_for_recovery = recover
    engine.layers = (host(None, Health.OK),)
    for name in ("one", "two"):
        await engine.decider._look_and_decide(name)
        assert engine.book.get(name) is None
    assert engine.told() == [("opened", "host"), ("closed", "two")]


async def test_whom_the_rule_of_the_cause_does_not_name_is_told_of_what_came_of_it(
    engine: Engine,
) -> None:
    engine.decider.rules = builders.rules(
        TELL.replace('match.class = "*"', 'match.class = "space"')
        + TELL.replace('"tell"', '"other"').replace('"ops"', '"others"')
    )
    await engine.open("host", 9)  # corruption: told to "others"
    assert engine.told("ops") == []
    engine.decider.rules = builders.rules(TELL)
    engine.layers = (host("host"),)
    await engine.open("one", 3)
    assert engine.told("ops") == [("opened", "host")]
    assert engine.told("others") == [("opened", "host")]


async def test_a_volume_that_is_gone_does_not_make_its_cause_well(engine: Engine) -> None:
    await engine.open("host", 9)
    engine.layers = (host("host"),)
    gone = await engine.open("gone", 8)
    assert gone.part_of == "host"
    engine.layers = ()
    gone = await engine.decide("gone")
    assert not gone.cause_is_over
    assert "well again" not in str(gone.log)


async def test_its_own_incident_is_no_cause_of_it(engine: Engine) -> None:
    engine.layers = (Layer(kind="device", name="/dev/loop3", errors=2, incident="one"),)
    one = await engine.open("one", 3)
    assert one.cause is not None
    assert one.part_of is None
    assert engine.told() == [("opened", "one")]


async def test_updates_that_come_too_fast_are_told_together_and_not_dropped(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fswatchd.notify.notices._UPDATE_EVERY_S", 1.0)
    monkeypatch.setattr("fswatchd.notify.notices._SETTLE_S", 0.01)
    await engine.open("host", 9)
    engine.layers = (host("host"),)
    for number in range(5):
        await engine.open(f"part{number}", 20 + number, ves=(f"lxc:ve{number}",))
    async with asyncio.timeout(10):
        while len(engine.told()) < 3:
            await asyncio.sleep(0.01)
    assert engine.told() == [("opened", "host"), ("updated", "host"), ("updated", "host")]
    cause = engine.book.get("host")
    assert cause is not None
    assert len(cause.consequences) == 5


async def test_its_story_names_the_cause_who_else_suffers_and_what_to_do(engine: Engine) -> None:
    await engine.open("host", 9, ves=("lxc:ve101", "lxc:ve102"))
    engine.layers = (host("host"),)
    one = await engine.open("one", 3)
    text = views.incident(one)["summary"]
    for part in (
        "The cause is ext4 /vz (loop0) beneath it: it is shut down.",
        "It concerns 1 other VE (lxc:ve102)",
        "(incident host)",
    ):
        assert part in text
    assert one.state is State.WAITING or one.guards


async def test_many_that_are_decided_about_at_once_need_few_looks_at_the_node(
    engine: Engine,
) -> None:
    looks = 0

    async def refresh() -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.01)

    engine.decider._inventory.refresh = refresh  # type: ignore[assignment,method-assign]
    for number in range(50):
        engine.book.put(
            builders.incident(
                incident_id=f"one{number}",
                filesystem=builders.filesystem(devno=Devno(7, 20 + number)),
            )
        )
    names = [f"one{number}" for number in range(50)]
    await asyncio.gather(*(engine.decider._look_and_decide(name) for name in names))
    decided = [engine.book.get(name) for name in names]
    assert all(one is not None and "decided" in one.timeline for one in decided)
    assert 1 <= looks <= 2
