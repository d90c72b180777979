"""Readers of the log: every event once, in order, or a gap in its place."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fswatchd.engine import stream as stream_module
from fswatchd.engine.stream import Event, EventStream, Gap
from fswatchd.store import database, eventlog
from fswatchd.store.store import Store, StoredEvent
from tests.unit.builders import event

A, B = "lxc:a", "lxc:b"


class Log:
    """A store with its stream, that can end well, be killed, or lose power."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lives = 0
        self.told: dict[int, tuple[str, ...]] = {}

    async def start(self) -> None:
        self.store = Store(self._directory / str(self._lives) / "fswatchd.db")
        await self.store.open()
        self.stream = EventStream(self.store)
        self.stream.begin()

    def write(self, *ves: str) -> asyncio.Future[int]:
        """One more event; the future is done when readers were told of it."""
        future = asyncio.get_running_loop().create_future()
        cursor = self.store.next_cursor()
        self.told[cursor] = ves

        def committed(stored: StoredEvent, moment: int | None) -> None:
            self.stream.publish(replace(stored, stored_ns=moment or 0))
            future.set_result(cursor)

        stored = StoredEvent(cursor=cursor, event=event(), ves=ves, incident_id=None)
        self.store.add_event(stored, committed)
        return future

    async def restart(self) -> None:
        await self.store.close()
        await self.start()

    async def killed(self, *, lost: int = 0) -> None:
        """Go on from the files as they are on the disk while it runs, less the newest events."""
        await self.store.facts("")
        old = self._directory / str(self._lives)
        self._lives += 1
        new = self._directory / str(self._lives)
        shutil.copytree(old, new)
        with closing(sqlite3.connect(new / "fswatchd.db")) as database:
            database.execute("DELETE FROM event WHERE id > (SELECT max(id) FROM event) - ?", [lost])
            database.commit()
        await self.store.close()
        await self.start()


@pytest.fixture
async def log(tmp_path):
    made = Log(tmp_path)
    await made.start()
    yield made
    await made.store.close()


@pytest.fixture
def short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_TAIL", 4)


async def read_all(stream: EventStream, cursor: int, ve: str | None = None, **more) -> list:
    """Cursors of events, and gaps, until there is nothing more."""
    found: list = []
    while True:
        batch = await stream.read(cursor, ve, **more)
        more.pop("log_id", None)
        found += [item if isinstance(item, Gap) else item.cursor for item in batch.items]
        if batch.cursor == cursor and not batch.items:
            return found
        cursor = batch.cursor


@dataclass
class Follower:
    """Reads as a client does: keeps what arrived whole, and begins again from there."""

    ve: str | None
    cursor: int = 0
    seen: list[int] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    async def follow(self, log: Log, cut: int) -> None:
        """Read until the end, or until the connection breaks after `cut` items."""
        while True:
            batch = await log.stream.read(self.cursor, self.ve, limit=3)
            for item in batch.items:
                if cut == 0:
                    return
                cut -= 1
                if isinstance(item, Gap):
                    self.gaps.append(item)
                    self.cursor = item.upto
                else:
                    assert json.loads(item.text)["cursor"] == item.cursor
                    self.seen.append(item.cursor)
                    self.cursor = item.cursor
            if batch.cursor == self.cursor and not batch.items:
                return
            self.cursor = batch.cursor


STEP = st.one_of(
    st.tuples(st.just("write"), st.lists(st.sampled_from([(A,), (B,), (A, B), ()]), max_size=9)),
    st.tuples(st.just("read"), st.tuples(st.integers(0, 2), st.integers(0, 8))),
    st.tuples(st.sampled_from(["restart", "kill", "pause"]), st.none()),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEP, max_size=25))
def test_whoever_reads_gets_every_event_once_whatever_happens(short_tail, steps) -> None:
    """A writer, three readers that break off anywhere, restarts and kills of the daemon."""

    async def story(directory: Path) -> None:
        log = Log(directory)
        await log.start()
        followers = [Follower(None), Follower(A), Follower(B)]
        try:
            for what, detail in steps:
                if what == "write":
                    # Nobody waits: reading goes on beside the commits.
                    [log.write(*ves) for ves in detail]
                elif what == "read":
                    await followers[detail[0]].follow(log, detail[1])
                elif what == "pause":
                    await asyncio.sleep(0)
                else:
                    await log.store.facts("")
                    await (log.restart() if what == "restart" else log.killed())
            await log.write()
            for follower in followers:
                await follower.follow(log, -1)
                wanted = [n for n, ves in log.told.items() if follower.ve in {None, *ves}]
                assert follower.seen == wanted
                assert follower.gaps == []
        finally:
            await log.store.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(story(Path(directory)))


async def test_a_writer_and_readers_at_the_same_time(log: Log, short_tail) -> None:
    """2 000 events in bursts, while readers come and go: each gets each event once."""
    done = asyncio.Event()

    async def write() -> None:
        for number in range(2000):
            last = log.write(A if number % 3 else B)
            if number % 7 == 0:
                await last
        await last
        done.set()

    async def read(follower: Follower, cut: int) -> None:
        while not done.is_set():
            await follower.follow(log, cut)
            await asyncio.sleep(0)
        await follower.follow(log, -1)

    followers = [Follower(None), Follower(A), Follower(B), Follower(None)]
    await asyncio.gather(
        write(), *(read(one, cut) for one, cut in zip(followers, (1, 5, 17, -1), strict=True))
    )
    for follower in followers:
        wanted = [n for n, ves in log.told.items() if follower.ve in {None, *ves}]
        assert follower.seen == wanted
        assert follower.gaps == []


async def test_what_is_no_longer_kept_is_a_gap_and_then_comes_what_is(
    log: Log, short_tail, monkeypatch
) -> None:
    monkeypatch.setattr(database, "_KEEP_EVENTS", 10)
    monkeypatch.setattr(database, "_PRUNE_EVERY", 1)
    for _ in range(30):
        await log.write(A)
    await log.store.facts("")
    first, *rest = await read_all(log.stream, 5)
    assert rest == list(range(21, 31))
    assert first == Gap(after=5, upto=20, count=15, reason="retention")
    # A reader of one VE is told too: nobody knows any more whose these events were.
    assert (await read_all(log.stream, 5, B)) == [first]
    assert await read_all(log.stream, 20) == rest


async def test_events_that_could_not_be_stored_are_told_live_and_a_gap_to_who_comes_late(
    log: Log, short_tail
) -> None:
    for _ in range(3):
        await log.write(A)
    twice = StoredEvent(cursor=3, event=event(), ves=(A,), incident_id=None)
    failed = asyncio.get_running_loop().create_future()
    log.store.add_event(twice, lambda _, moment: failed.set_result(moment))
    assert await failed is None
    cursor = log.store.next_cursor()
    log.stream.publish(replace(twice, cursor=cursor))
    batch = await log.stream.read(3)
    assert [json.loads(i.text)["stored"] for i in batch.items if isinstance(i, Event)] == [None]
    for _ in range(4):
        await log.write(A)
    assert await read_all(log.stream, 3) == [
        Gap(after=3, upto=4, count=1, reason="not-stored"), 5, 6, 7, 8
    ]  # fmt: skip
    # It stays a gap after a restart, and its cursor is not used again.
    await log.restart()
    assert (await read_all(log.stream, 0))[3] == Gap(after=3, upto=4, count=1, reason="not-stored")
    assert await log.write() == 9


async def test_an_event_that_found_the_queue_full_is_a_gap_in_its_place(log: Log) -> None:
    await log.write()
    log.store.next_cursor()  # dropped: nobody is told
    await log.write()
    assert await read_all(log.stream, 0) == [
        1, Gap(after=1, upto=2, count=1, reason="not-stored"), 3
    ]  # fmt: skip


async def test_a_cursor_of_the_future_is_a_gap_and_reading_begins_with_the_log(log: Log) -> None:
    for _ in range(3):
        await log.write()
    gap = Gap(after=900, upto=0, count=None, reason="foreign")
    assert await read_all(log.stream, 900) == [gap, 1, 2, 3]


async def test_a_cursor_of_another_log_is_noticed_by_its_name(log: Log) -> None:
    for _ in range(3):
        await log.write()
    assert await read_all(log.stream, 2, log_id=log.stream.log_id) == [3]
    gap = Gap(after=2, upto=0, count=None, reason="foreign")
    assert await read_all(log.stream, 2, log_id="0123456789abcdef") == [gap, 1, 2, 3]


async def test_after_a_power_cut_no_cursor_is_used_again_and_the_doubt_is_told(
    log: Log, monkeypatch, tmp_path
) -> None:
    for _ in range(5):
        await log.write()
    other_boot = tmp_path / "boot_id"
    other_boot.write_text("11111111-2222-3333-4444-555555555555\n")
    monkeypatch.setattr(database, "_BOOT_ID", other_boot)
    await log.killed(lost=2)
    fresh = await log.write()
    assert fresh > 5
    # One reader has had event 5, which the disk never got, the other had stopped before.
    for cursor in (5, 3):
        gap = Gap(after=cursor, upto=fresh - 1, count=None, reason="crash")
        assert await read_all(log.stream, cursor) == [gap, fresh]
    assert await read_all(log.stream, fresh - 1) == [fresh]


async def test_cursors_are_reserved_before_they_are_used(log: Log, monkeypatch) -> None:
    monkeypatch.setattr(eventlog, "RESERVE", 10)
    await log.restart()
    for _ in range(50):
        last = await log.write()
    await log.killed(lost=4)
    assert await log.write() > last


async def test_a_daemon_that_is_killed_again_and_again_keeps_what_it_has(
    log: Log, monkeypatch
) -> None:
    monkeypatch.setattr(database, "_KEEP_EVENTS", 10)
    monkeypatch.setattr(database, "_PRUNE_EVERY", 1)
    monkeypatch.setattr(eventlog, "_SKIPS_KEPT", 2)
    told = [await log.write()]
    for _ in range(4):
        await log.killed()
    told.append(await log.write())
    await log.killed()
    told.append(await log.write())
    await log.store.facts("")
    assert await read_all(log.stream, 0) == told
    assert len(log.store.skips) == 2


async def test_a_clean_end_leaves_no_hole(log: Log) -> None:
    for _ in range(3):
        await log.write()
        await log.restart()
    assert await read_all(log.stream, 0) == [1, 2, 3]


async def test_many_readers_who_catch_up_leave_room_for_writes(
    log: Log, short_tail, monkeypatch
) -> None:
    """However many read, at most one page waits before the next event is written."""
    for _ in range(20):
        await log.write()
    waiting, most = 0, 0
    ask = log.store.events_between

    async def counted(*arguments):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        page = await ask(*arguments)
        waiting -= 1
        return page

    monkeypatch.setattr(log.store, "events_between", counted)
    found = await asyncio.gather(*(read_all(log.stream, 0, limit=2) for _ in range(20)))
    assert most == 1
    assert all(one == list(range(1, 21)) for one in found)


async def test_readers_are_limited_and_who_has_gone_takes_no_place(log: Log, monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_READERS", 2)
    there = {"first": True}
    assert log.stream.join(lambda: there["first"]) is not None
    second = log.stream.join(lambda: True)
    assert second is not None
    assert log.stream.join(lambda: True) is None
    there["first"] = False
    assert log.stream.join(lambda: True) is not None
    assert log.stream.join(lambda: True) is None
    log.stream.leave(second)
    assert log.stream.join(lambda: True) is not None
