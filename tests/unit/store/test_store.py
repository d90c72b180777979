from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.incidents import Outcome, State, StepRecord
from fswatchd.store.database import HAS_ORIGINAL
from fswatchd.store.spool import Spool
from fswatchd.store.store import Delivery, Store, StoredEvent, StoreError
from tests.unit.builders import NOW_NS, event, incident, lost_write


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


async def rows_after(store: Store, cursor: int, ve: str | None = None) -> list[dict]:
    """The stored events with greater cursors, oldest first."""
    return (await store.events_between(cursor, 10**9, 100, ve)).rows


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
    rows = await rows_after(again, 3)
    assert [row["id"] for row in rows] == [4, 5, 6]
    await again.close()


async def test_events_of_one_ve(store: Store) -> None:
    add(store, stored(store, "lxc:a"))
    await add(store, stored(store, "lxc:b"))
    assert len(await rows_after(store, 0, "lxc:a")) == 1


async def test_the_commit_time_is_told(store: Store) -> None:
    assert await add(store, stored(store)) > NOW_NS


class TestSpool:
    """The thread of the store waits for a disk that does not answer, and then the daemon dies."""

    @pytest.fixture
    def memory(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fswatchd-test-") as path:
            yield Path(path)

    async def killed(self, tmp_path: Path, spool: Path, *incidents: str | None) -> None:
        """A run that ends before the database has got any of these events."""
        run = Store(tmp_path / "fswatchd.db", Spool(spool))
        await run.open()
        await run.save_incident(replace(incident(), incident_id="known"))
        disk = threading.Event()
        written = tmp_path / "as-it-was"
        hanging = run.submit(lambda _: disk.wait(30))
        for one in incidents:
            run.add_event(replace(stored(run), incident_id=one), lambda *_: None)
        # The files as a kill leaves them now.
        written.mkdir()
        for file in tmp_path.glob("fswatchd.db*"):
            shutil.copy(file, written)
        left = spool.read_bytes()
        disk.set()
        await hanging
        await run.close()
        for file in written.iterdir():
            shutil.copy(file, tmp_path)
        spool.write_bytes(left)

    async def test_events_outlive_the_daemon(self, tmp_path: Path, memory: Path) -> None:
        spool = memory / "events.spool"
        await self.killed(tmp_path, spool, "known", None)
        again = Store(tmp_path / "fswatchd.db", Spool(spool))
        await again.open()
        found = await rows_after(again, 0)
        assert [(row["id"], row["incident"]) for row in found] == [(1, "known"), (2, None)]
        assert again.next_cursor() > 2
        await again.close()
        assert spool.stat().st_size == 0

    async def test_what_the_disk_did_not_take_is_written_when_it_does(
        self, tmp_path: Path, memory: Path
    ) -> None:
        spool = memory / "events.spool"
        store = Store(tmp_path / "fswatchd.db", Spool(spool))
        await store.open()
        refuses = "BEFORE INSERT ON event BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        await store.submit(
            lambda database: database.execute(f"CREATE TRIGGER t {refuses}") and None
        )
        assert await add(store, stored(store)) is None
        assert await store.incidents() == []
        assert "disk full" in (store.failed or ""), "reading does not make it well"
        assert spool.stat().st_size > 0
        await store.submit(lambda database: database.execute("DROP TRIGGER t") and None)
        assert await add(store, stored(store)) is not None
        assert await add(store, stored(store)) is not None
        assert [row["id"] for row in await rows_after(store, 0)] == [1, 2, 3]
        assert store.failed is None
        assert spool.stat().st_size == 0
        await store.close()

    async def test_an_event_of_an_incident_that_was_not_kept_is_left_to_be_reported_again(
        self, tmp_path: Path, memory: Path
    ) -> None:
        spool = memory / "events.spool"
        await self.killed(tmp_path, spool, "unknown")
        again = Store(tmp_path / "fswatchd.db", Spool(spool))
        await again.open()
        assert await rows_after(again, 0) == []
        await again.close()

    async def test_the_spool_of_another_database_is_not_taken_over(
        self, tmp_path: Path, memory: Path
    ) -> None:
        spool = memory / "events.spool"
        await self.killed(tmp_path, spool, None)
        other = Store(tmp_path / "other.db", Spool(spool))
        await other.open()
        assert await rows_after(other, 0) == []
        await other.close()

    async def test_records_of_another_version_do_not_keep_the_store_from_opening(
        self, tmp_path: Path, memory: Path
    ) -> None:
        path = memory / "events.spool"
        store = Store(tmp_path / "fswatchd.db", Spool(path))
        await store.open()
        log_id = store.log_id
        await store.close()
        older = Spool(path)
        older.open()
        for record in ([], [log_id], [log_id, 1, "too", "few"], [log_id, *["x"] * 20]):
            assert older.append(record)
        older.close()
        again = Store(tmp_path / "fswatchd.db", Spool(path))
        await asyncio.wait_for(again.open(), 10)
        assert await rows_after(again, 0) == []
        await again.close()

    async def test_without_a_spool_the_database_keeps_events_all_the_same(
        self, tmp_path: Path, memory: Path
    ) -> None:
        (memory / "events.spool").mkdir()
        store = Store(tmp_path / "fswatchd.db", Spool(memory / "events.spool"))
        await store.open()
        assert await add(store, stored(store)) > NOW_NS
        await store.close()

    async def test_what_is_in_the_database_leaves_the_spool(
        self, tmp_path: Path, memory: Path
    ) -> None:
        spool = memory / "events.spool"
        run = Store(tmp_path / "fswatchd.db", Spool(spool))
        await run.open()
        await asyncio.gather(*(add(run, stored(run)) for _ in range(100)))
        assert spool.stat().st_size == 0
        assert len(await rows_after(run, 0)) == 100
        await run.close()


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
    assert len(await rows_after(store, 0)) == 2
    assert store.failed is None or "UNIQUE" in store.failed


async def test_a_question_with_a_number_too_large_does_not_end_the_thread(store: Store) -> None:
    with pytest.raises(StoreError):
        await rows_after(store, 10**30)
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


async def test_which_file_has_lost_data_comes_back_with_the_event(store: Store) -> None:
    line = "loop5: writeback error on inode 133, offset 8192, sector 2240"
    lost = lost_write(inode=133, offset=8192)
    one = event("kmsg", "data_loss", detail=line, lost=lost)
    cursor = store.next_cursor()
    await add(store, StoredEvent(cursor=cursor, event=one, ves=(), incident_id="i"))
    (again,) = await store.events_of("i", 0)
    assert again.event.lost == lost


async def test_an_original_of_long_ago_is_found_among_thousands_without_reading_them(store) -> None:
    kept = replace(incident(), incident_id="kept", undo={"original": "/x"}, opened_ns=1)
    for number in range(1001):
        store.save_incident(replace(incident(), incident_id=f"{number}", opened_ns=2 + number))
    await store.save_incident(kept)
    store = await reopened(store)
    assert await store.with_original() == [kept]
    plan = await store.ask(
        lambda database: database.execute(
            f"EXPLAIN QUERY PLAN SELECT document FROM incident WHERE {HAS_ORIGINAL}"
        ).fetchone()["detail"]
    )
    assert "incident_with_original" in plan
    await store.close()


async def test_what_is_known_and_cannot_be_read_is_not_unknown(store) -> None:
    found = replace(incident(), incident_id="closed", state=State.CLOSED)
    await store.save_incident(found)
    await store.save_incident(replace(found, incident_id="broken"))
    for document in ("not JSON", '{"undo": 5}'):
        await store.submit(
            lambda database, document=document: (
                database.execute(
                    "UPDATE incident SET document = ? WHERE id = 'broken'", (document,)
                ).rowcount
            )
        )
        known = await store.known_incidents(["closed", "broken", "never"])
        assert known == {"closed": found, "broken": None}
        assert await store.with_original() == []
