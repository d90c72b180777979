"""A mute holds notices back until its time is over or the incident gets worse; restarts too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from fswatchd import views
from fswatchd.api import prose
from fswatchd.book import IncidentBook
from fswatchd.engine.history import History
from fswatchd.engine.muting import Muting
from fswatchd.errors import ConflictError
from fswatchd.events import EventClass, Severity
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.notify.notices import Notices
from fswatchd.store.store import Store
from tests.unit import builders

ID = "20261121-abcde"


class Outbox:
    names = ("ops",)

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def send(self, _channel: str, kind: str, *_: object) -> None:
        self.kinds.append(kind)


class Engine:
    def __init__(self, store: Store) -> None:
        self.book = IncidentBook(store, "hn1")
        self.outbox = Outbox()
        self.notices = Notices(self.book, cast("Any", self.outbox))
        self.muting = Muting(self.book, History(store))

    def now(self) -> Incident:
        found = self.book.get(ID)
        assert found is not None
        return found

    def put(self, **changes: Any) -> None:
        self.book.put(replace(self.now(), **changes))


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    incident = builders.incident(builders.event("kmsg", klass="readonly"))
    incident = replace(incident, severity=Severity.ERROR, channels=("ops",))
    made.book.put(incident.reached("decided", 1))
    yield made
    made.muting.stop()
    made.book.flush()


async def test_nothing_is_told_of_what_is_muted_not_even_its_end(engine: Engine) -> None:
    engine.muting.mute(engine.now(), "root", "known, new disk is ordered", 3600)
    engine.put(state=State.WAITING, waiting_for="approval")
    engine.put(state=State.OPEN, waiting_for="")
    engine.book.close(engine.now(), Outcome.RECOVERED, "it is well")
    assert engine.outbox.kinds == []


async def test_without_a_mute_the_same_changes_are_told(engine: Engine) -> None:
    engine.put(state=State.WAITING, waiting_for="approval")
    engine.put(state=State.OPEN, waiting_for="")
    engine.book.close(engine.now(), Outcome.RECOVERED, "it is well")
    assert engine.outbox.kinds == ["waiting", "closed"]


async def test_that_it_waits_for_somebody_is_told_once_however_often_it_is_tried(
    engine: Engine,
) -> None:
    for _ in range(3):
        engine.put(state=State.ACTING, waiting_for="")
        engine.put(state=State.WAITING, waiting_for="busy")
        engine.put(state=State.OPEN, waiting_for="")
    assert engine.outbox.kinds == ["waiting"]
    engine.put(state=State.ACTING)
    engine.put(state=State.VERIFYING)
    assert engine.outbox.kinds == ["waiting", "repaired"]
    engine.put(state=State.WAITING, waiting_for="busy")
    assert engine.outbox.kinds[2:] == ["waiting"]


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        ({"severity": Severity.CRITICAL}, "updated", "it is critical now, not error"),
        ({"confirmed": True}, "updated", "confirmed"),
        ({"ves": ("lxc:ve101", "lxc:ve102")}, "updated", "concerns lxc:ve102 now"),
        ({"state": State.NEEDS_OPERATOR}, "needs-operator", "needs an operator"),
        ({"lost": (builders.lost_write(),)}, "updated", "more data was lost"),
    ],
)
async def test_what_gets_worse_is_told_at_once_and_is_muted_no_more(
    engine: Engine, change: dict[str, Any], kind: str, why: str
) -> None:
    engine.muting.mute(engine.now(), "root", "", 3600)
    engine.put(**change)
    assert engine.outbox.kinds == [kind]
    assert engine.now().mute is None
    assert why in engine.now().log[-1][1]


async def test_another_class_is_worse(engine: Engine) -> None:
    engine.muting.mute(engine.now(), "root", "", 3600)
    engine.book.put(engine.now().joined(builders.event("kmsg", severity=Severity.ERROR), 1))
    assert engine.now().mute is None
    assert "it is corruption now too" in engine.now().log[-1][1]


async def test_what_stops_now_as_well_is_worse_although_its_class_stays(engine: Engine) -> None:
    engine.put(classes=engine.now().classes | {EventClass.CORRUPTION})
    engine.muting.mute(engine.now(), "root", "", 3600)
    engine.put(classes=engine.now().classes | {EventClass.RECOVERED})
    assert engine.now().mute is not None
    engine.put(classes=engine.now().classes | {EventClass.SHUTDOWN})
    assert engine.now().mute is None
    assert engine.now().klass is EventClass.CORRUPTION


async def test_more_of_the_same_is_not_worse(engine: Engine) -> None:
    engine.muting.mute(engine.now(), "root", "", 3600)
    again = builders.event("kmsg", klass="readonly", severity=Severity.ERROR, count=100)
    engine.book.put(engine.now().joined(again, 1))
    assert engine.now().mute is not None
    assert engine.outbox.kinds == []


async def test_when_its_time_is_over_it_is_told_again(engine: Engine) -> None:
    engine.muting.mute(engine.now(), "root", "", 0.01)
    while engine.now().mute is not None:
        await asyncio.sleep(0.01)
    assert engine.outbox.kinds == ["updated"]
    assert "its time is over" in engine.now().log[-1][1]


async def test_who_why_and_until_when_is_shown(engine: Engine) -> None:
    engine.muting.mute(engine.now(), "alice", "disk is ordered", 3600)
    shown = views.incident(engine.now())["muted"]
    assert (shown["by"], shown["reason"]) == ("alice", "disk is ordered")
    assert "by alice until" in prose.why(engine.now())
    assert "disk is ordered" in prose.why(engine.now())
    engine.muting.unmute(engine.now(), "bob")
    assert views.incident(engine.now())["muted"] is None
    assert "unmuted by bob" in prose.why(engine.now())
    assert engine.outbox.kinds == ["updated"]


async def test_a_restart_ends_no_mute_and_forgets_no_end(engine: Engine, store: Store) -> None:
    engine.muting.mute(engine.now(), "root", "", 3600)
    engine.muting.stop()
    later = Engine(store)
    await later.book.load()
    later.muting.resume()
    assert later.now().mute is not None
    later.put(state=State.WAITING, waiting_for="approval")
    assert later.outbox.kinds == []
    later.put(state=State.NEEDS_OPERATOR)
    assert later.outbox.kinds == ["needs-operator"]
    later.muting.mute(later.now(), "root", "", 0.01)
    later.muting.stop()
    last = Engine(store)
    await last.book.load()
    last.muting.resume()
    while last.now().mute is not None:
        await asyncio.sleep(0.01)
    assert last.outbox.kinds == ["updated"]
    for one in (later, last):
        one.muting.stop()
        one.book.flush()


async def test_what_cannot_be_muted(engine: Engine) -> None:
    for for_s in (0, -1, 31 * 86400):
        with pytest.raises(ValueError, match="at most 30d"):
            engine.muting.mute(engine.now(), "root", "", for_s)
    with pytest.raises(ConflictError, match="not muted"):
        engine.muting.unmute(engine.now(), "root")
    closed = engine.book.close(engine.now(), Outcome.RECOVERED, "it is well")
    with pytest.raises(ConflictError, match="closed"):
        engine.muting.mute(closed, "root", "", 3600)
