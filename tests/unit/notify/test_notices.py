"""Which changes of an incident are told, of which kind, and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.incidents import Incident, State
from fswatchd.notify.notices import Notices
from fswatchd.store.store import Store
from tests.unit import builders

ID = "20261121-abcde"


class Outbox:
    """Takes notes instead of sending."""

    names = ("ops", "storage")

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def send(self, channel: str, kind: str, *_: object) -> None:
        self.told.append((channel, kind))


class Engine:
    """A book, and who is told of it."""

    def __init__(self, store: Store) -> None:
        self.book = IncidentBook(store, "hn1")
        self.outbox = Outbox()
        self.notices = Notices(self.book, cast("Any", self.outbox))

    def decide(self, waiting_for: str, **changes: Any) -> None:
        """A decision, as the decider records it."""
        known = self.book.get(ID) or builders.incident(channels=("ops",))
        new = "decided" not in known.timeline
        state = State.WAITING if waiting_for else State.OPEN
        after = replace(known.reached("decided", 1), state=state, waiting_for=waiting_for)
        after = replace(after, **changes)
        self.book.put(after)
        if new:
            self.notices.opened(after)

    def now(self) -> Incident:
        """The incident."""
        found = self.book.get(ID)
        assert found is not None
        return found


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    made = Engine(store)
    yield made
    made.book.flush()
    await store.close()


async def test_what_asks_from_the_beginning_is_told_as_waiting_too(engine: Engine) -> None:
    engine.decide("approval")
    engine.decide("approval")
    assert engine.outbox.told == [("ops", "opened"), ("ops", "waiting")]


@pytest.mark.parametrize("first", ["", "budget", "cause", "busy"])
async def test_a_question_that_comes_later_is_told_when_it_comes(
    engine: Engine, first: str
) -> None:
    engine.decide(first)
    assert engine.outbox.told == [("ops", "opened")]
    engine.decide("approval")
    assert engine.outbox.told == [("ops", "opened"), ("ops", "waiting")]


async def test_who_hears_of_it_later_is_told_that_it_waits(engine: Engine) -> None:
    engine.decide("approval")
    engine.outbox.told.clear()
    engine.decide("approval", channels=("ops", "storage"), consequences=("20261121-fghij",))
    assert engine.outbox.told[:2] == [("storage", "opened"), ("storage", "waiting")]


async def test_a_drill_that_another_daemon_handles_is_told_to_nobody(engine: Engine) -> None:
    engine.notices.leave_to_another("drill:target-1")
    drilled = {"ves": ("drill:target-1", "lxc:ve101"), "through": ("lxc:ve101",)}
    engine.decide("approval", **drilled)
    engine.decide("", state=State.NEEDS_OPERATOR)
    assert engine.outbox.told == []
    assert engine.notices.is_of_another(engine.now())


async def test_a_fault_that_a_drill_and_others_have_is_told(engine: Engine) -> None:
    engine.notices.leave_to_another("drill:target-1")
    engine.decide("", ves=("drill:target-1", "lxc:ve101"))
    assert engine.outbox.told == [("ops", "opened")]
    assert not engine.notices.is_of_another(engine.now())
