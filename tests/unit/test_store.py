from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from fswatchd.incidents import Outcome, State, StepRecord
from fswatchd.store import Delivery, Store, StoredEvent, StoreError
from tests.unit.builders import NOW_NS, event, incident


@pytest.fixture
async def store(tmp_path):
    opened = Store(tmp_path / "fswatchd.db")
    await opened.open()
    yield opened
    await opened.close()


async def reopened(store: Store) -> Store:
    await store.close()
    again = Store(store._path)
    await again.open()
    return again


def add(store: Store, stored: StoredEvent) -> asyncio.Future[int | None]:
    """Keep an event; the future's result is the time of its commit."""
    future = asyncio.get_running_loop().create_future()
    store.add_event(stored, lambda _, moment: future.set_result(moment))
    return future


def stored(store: Store, *ves: str) -> StoredEvent:
    return StoredEvent(cursor=store.next_cursor(), event=event(), ves=ves, incident_id="i")


async def test_an_incident_comes_back_as_it_was(store: Store) -> None:
    step = StepRecord(do="fsck", options={"strategy": "clone"}, journal={"stopping": True})
    found = replace(
        incident(event("kmsg"), event("state")),
        state=State.ACTING,
        steps=(step,),
        timeline={"detected": 5},
        undo={"image": "/x"},
        guards=(("scope", True, "ok"),),
    )
    await store.save_incident(found, durable=True)
    again = await reopened(store)
    assert await again.open_incidents() == [found]
    await again.close()


async def test_closed_incidents_are_found_by_the_end_of_their_id(store: Store) -> None:
    found = replace(incident(), state=State.CLOSED, outcome=Outcome.REPAIRED)
    await store.save_incident(found)
    assert await store.open_incidents() == []
    assert await store.find_incidents("abcde") == [found]
    assert await store.find_incidents("20261121-abcde") == [found]
    assert await store.find_incidents("%") == []
    assert await store.find_incidents("cde") == []


async def test_a_cursor_resumes_without_gap_or_repeat_across_a_restart(store: Store) -> None:
    for _ in range(5):
        add(store, stored(store))
    again = await reopened(store)
    await add(again, stored(again))
    rows = await again.events_since(3, 100)
    assert [row["id"] for row in rows] == [4, 5, 6]
    await again.close()


async def test_events_of_one_ve(store: Store) -> None:
    add(store, stored(store, "lxc:a"))
    await add(store, stored(store, "lxc:b"))
    assert len(await store.events_since(0, 10, "lxc:a")) == 1


async def test_the_commit_time_is_told(store: Store) -> None:
    assert await add(store, stored(store)) > NOW_NS


async def test_deliveries_wait_in_order_until_they_are_done(store: Store) -> None:
    first = Delivery(
        delivery_id="a", channel="ops", incident_id="i", type="opened", body=b"1", created_ns=1
    )
    second = replace(first, delivery_id="b", created_ns=2)
    await store.add_delivery(second)
    await store.add_delivery(first)
    assert await store.waiting_deliveries() == [first, second]
    await store.add_delivery(replace(first, state="delivered"))
    assert await store.waiting_deliveries() == [second]
    assert await store.delivery_counts() == {"delivered": 1, "waiting": 1}


async def test_facts_are_remembered_and_forgotten(store: Store) -> None:
    await store.set_fact("seen:x", [1, 2])
    await store.set_fact("seen:y", [3])
    await store.set_fact("other", 1)
    assert await store.facts("seen:") == {"seen:x": [1, 2], "seen:y": [3]}
    await store.set_fact("seen:x", None)
    assert await store.facts("seen:") == {"seen:y": [3]}


async def test_one_bad_write_does_not_take_the_others_along(store: Store) -> None:
    twice = stored(store)
    results = await asyncio.gather(add(store, twice), add(store, twice), add(store, stored(store)))
    assert [moment is None for moment in results] == [False, True, False]
    assert len(await store.events_since(0, 10)) == 2
    assert store.failed is None or "UNIQUE" in store.failed


async def test_a_question_with_a_number_too_large_does_not_end_the_thread(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.events_since(10**30, 1)
    await store.set_fact("a", 1)
    assert await store.facts("a") == {"a": 1}


async def test_a_thread_that_has_ended_is_said(store: Store, monkeypatch) -> None:
    def breaks(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(store, "_write", breaks)
    store.set_fact("a", 1)
    store._thread.join(10)
    assert store.failed is not None
    with pytest.raises(StoreError):
        await store.set_fact("b", 2)


async def test_a_store_that_cannot_be_opened_says_where(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    broken = Store(tmp_path / "file" / "fswatchd.db")
    with pytest.raises(StoreError, match="cannot open"):
        await broken.open()


async def test_a_newer_schema_is_not_touched(tmp_path) -> None:
    import sqlite3

    database = sqlite3.connect(tmp_path / "fswatchd.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="99"):
        await Store(tmp_path / "fswatchd.db").open()


async def test_a_caller_that_gives_up_does_not_break_the_thread(store: Store) -> None:
    store.save_incident(incident()).cancel()
    await add(store, stored(store))
    assert len(await store.open_incidents()) == 1
