"""When the daemon does not trust itself, and what ends that. The store is a real one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.engine.hearing import Hearing, _Round
from fswatchd.engine.history import History
from fswatchd.engine.selfcheck import SelfCheck
from fswatchd.engine.trust import Trust
from fswatchd.events import SourceState
from fswatchd.sources import SourceStatus
from fswatchd.store.store import Store, StoreError
from tests.simulator import Clock
from tests.unit import builders


class Run:
    """One run of the daemon, as far as it is about trust."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.directory = directory
        self.told: list[str] = []
        self.changes = 0
        self.store = Store(directory / "fswatchd.db")
        self.book = IncidentBook(self.store, "hn1")
        self.history = History(self.store, cast("Any", clock))
        self.trust = Trust(self.store, lambda kind, data: self.told.append(kind))
        self.trust.on_change = self._changed
        machine = directory / "machine-id"
        self.check = SelfCheck(self.store, self.book, self.history, self.trust, machine)

    def _changed(self) -> None:
        self.changes += 1

    async def start(self) -> Run:
        await self.store.open()
        await self.history.load()
        await self.trust.load()
        await self.book.load()
        await self.check.begin()
        return self

    async def stop(self) -> None:
        self.book.flush()
        await self.store.close()


Start = Callable[..., Awaitable[Run]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the daemon, ending the run before."""
    (tmp_path / "machine-id").write_text("a" * 32 + "\n")
    runs: list[Run] = []

    async def begin(clock: Clock | None = None) -> Run:
        if runs:
            await runs[-1].stop()
        runs.append(Run(tmp_path, clock))
        return await runs[-1].start()

    yield begin
    await runs[-1].stop()


async def until(question: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not question():
            await asyncio.sleep(0.005)


async def with_room(store: Store) -> None:
    """Until it is said in a transaction in which nothing else fails."""
    more = "PRAGMA max_page_count = 100000"
    while True:
        try:
            await store.submit(lambda database: database.execute(more).fetchone())
        except StoreError:
            continue
        return


async def test_a_daemon_that_starts_again_and_again_trusts_itself(start: Start) -> None:
    for _ in range(3):
        run = await start()
        run.book.put(builders.incident())
        run.history.acted("rule", "volume")
        await run.check.look()
        assert (run.trust.why, run.told) == ("", [])


async def test_a_database_that_cannot_be_read_is_set_aside_and_wants_a_person(
    start: Start, tmp_path: Path
) -> None:
    await (await start()).stop()
    (tmp_path / "fswatchd.db").write_bytes(b"no database " * 1000)
    for _ in range(2):  # a restart does not end it
        run = await start()
        await run.check.look()
        assert "set aside" in run.trust.why
        (doubt,) = run.trust.document()
        assert doubt["ends"] == "by fswatch arm --node"
    (kept,) = tmp_path.glob("fswatchd.db.unreadable-*")
    assert kept.read_bytes().startswith(b"no database")
    assert run.trust.accept("alice")
    assert (run.trust.why, run.told) == ("", ["regained"])
    assert (await start()).trust.why == ""


async def test_one_that_is_only_another_versions_is_left_where_it_is(
    start: Start, tmp_path: Path
) -> None:
    await (await start()).stop()
    database = sqlite3.connect(tmp_path / "fswatchd.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(Exception, match="schema 99"):
        await start()
    assert not list(tmp_path.glob("*.unreadable-*"))


async def test_an_incident_that_cannot_be_read_does_not_keep_the_daemon_from_starting(
    start: Start, tmp_path: Path
) -> None:
    run = await start()
    run.book.put(builders.incident())
    await run.stop()
    database = sqlite3.connect(tmp_path / "fswatchd.db")
    database.execute("UPDATE incident SET document = substr(document, 1, 100)")
    database.execute("INSERT INTO fact VALUES ('disarm:node', '{')")
    database.commit()
    database.close()
    run = await start()
    assert run.book.open_incidents() == []
    assert "2 entries" in run.trust.why
    assert builders.incident().incident_id in run.trust.why
    run.trust.accept("alice")
    assert (await start()).trust.why == ""


async def test_a_full_disk_is_no_trust_until_everything_was_written_and_read(start: Start) -> None:
    run = await start()
    run.book.put(builders.incident())
    minding = asyncio.create_task(run.check.run())
    await run.store.submit(lambda db: db.execute("PRAGMA max_page_count = 1").fetchone())
    run.history.begun("lxc:" + "a" * 20_000)
    await until(lambda: run.trust.why)
    assert "full" in run.trust.why
    assert run.told == ["lost"]
    await with_room(run.store)
    await until(lambda: not run.trust.why)
    assert run.told == ["lost", "regained"]
    minding.cancel()
    # What could not be written then has been written now.
    assert "lxc:" + "a" * 20_000 in (await start()).history.begun_ns


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_database_that_was_taken_away_is_noticed(
    start: Start, tmp_path: Path, how: str
) -> None:
    run = await start()
    path = tmp_path / "fswatchd.db"
    path.rename(tmp_path / "kept")
    if how == "replaced":
        path.write_bytes((tmp_path / "kept").read_bytes())
    await run.check.look()
    assert how in run.trust.why.replace("gone", "removed")
    await run.check.look()
    assert run.trust.why
    (tmp_path / "kept").rename(path)
    await run.check.look()
    assert run.trust.why == ""


async def test_one_write_that_cannot_be_is_no_reason(start: Start) -> None:
    """A tenant could cause that."""
    run = await start()
    with pytest.raises(Exception, match="int"):
        await run.store.submit(lambda db: db.execute("SELECT ?", (1 << 70,)))
    await run.check.look()
    assert run.trust.why == ""


async def test_what_was_kept_on_another_machine_wants_a_person(
    start: Start, tmp_path: Path
) -> None:
    await start()
    (tmp_path / "machine-id").write_text("b" * 32 + "\n")
    assert "another machine" in (await start()).trust.why
    run = await start()
    assert "another machine" in run.trust.why
    run.trust.accept("alice")
    assert (await start()).trust.why == ""


async def test_a_node_without_a_machine_id_is_not_told_from_another(
    start: Start, tmp_path: Path
) -> None:
    await start()
    (tmp_path / "machine-id").unlink()
    assert (await start()).trust.why == ""


async def test_a_clock_of_one_boot_that_has_gone_back_wants_a_person(start: Start) -> None:
    clock = Clock()
    run = await start(clock)
    run.history.acted("rule", "volume")
    run.history.begun("lxc:a")
    clock.now_s -= 3600  # a virtual machine, back at a snapshot, with its disk as it was
    run = await start(clock)
    assert "gone back by 60 min" in run.trust.why
    await run.check.look()
    assert run.trust.why
    assert run.history.last_action_ns["rule", "volume"] == clock.boottime_ns()
    run.trust.accept("alice")
    assert (await start(clock)).trust.why == ""


async def test_a_clock_that_is_not_set_yet_after_a_boot_heals_when_it_is(start: Start) -> None:
    clock = Clock()
    run = await start(clock)
    run.history.acted("rule", "volume")
    clock.boots, clock.booted_s, clock.jumped_s = 1, clock.now_s, -40 * 86400.0
    clock.now_s += 60
    run = await start(clock)
    assert "behind what was remembered before its boot" in run.trust.why
    await run.check.look()
    assert run.trust.why
    clock.jumped_s = 0.0
    await run.check.look()
    assert (run.trust.why, run.told) == ("", ["lost", "regained"])
    assert run.history.last_action_ns["rule", "volume"] < clock.boottime_ns()


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0, 30.0, -30.0])
async def test_a_wall_clock_that_is_set_while_the_node_runs_is_no_reason(
    start: Start, jump_s: float
) -> None:
    clock = Clock()
    run = await start(clock)
    run.history.acted("rule", "volume")
    run.history.failed("lxc:a")
    clock.jumped_s += jump_s
    assert (await start(clock)).trust.why == ""


class Silent:
    """A source whose state the test sets."""

    def __init__(self, name: str, state: SourceState) -> None:
        self.name = name
        self.status = SourceStatus(name, state)
        self.starts_well = False

    async def start(self) -> None:
        self.status.state = SourceState.OK if self.starts_well else SourceState.BLIND

    async def stop(self) -> None:
        pass

    def blind(self, *_: object) -> None:
        pass


def hearing(trust: Trust, **states: SourceState) -> tuple[Hearing, dict[str, Silent]]:
    sources = {name: Silent(name, state) for name, state in states.items()}
    sink = SimpleNamespace(lost=lambda _: None)

    async def nothing() -> None:
        pass

    made = Hearing(cast("Any", sources), cast("Any", sink), 0.0, nothing)
    made.on_deaf = trust.follow_sources
    return made, sources


async def test_a_source_that_has_died_is_no_trust_until_it_hears_again(start: Start) -> None:
    run = await start()
    minds, sources = hearing(run.trust, kmsg=SourceState.OK, fanotify=SourceState.OK)
    await minds._tick(0.0)
    assert run.trust.why == ""
    sources["kmsg"].status.state = SourceState.BLIND
    sources["kmsg"].status.detail = "cannot read /dev/kmsg"
    await minds._tick(1.0)
    assert run.trust.why == "kmsg does not hear: cannot read /dev/kmsg"
    await minds._tick(2.0)
    assert run.told == ["lost"]
    sources["kmsg"].starts_well = True
    await minds._tick(100.0)
    assert (run.trust.why, run.told) == ("", ["lost", "regained"])


async def test_a_read_that_failed_once_is_no_reason_when_the_source_starts_again(
    start: Start,
) -> None:
    run = await start()
    minds, sources = hearing(run.trust, kmsg=SourceState.BLIND)
    sources["kmsg"].starts_well = True
    await minds._tick(0.0)
    assert run.told == []


@pytest.mark.parametrize("state", [SourceState.OFF, SourceState.UNAVAILABLE])
async def test_a_source_that_is_off_is_no_reason(start: Start, state: SourceState) -> None:
    run = await start()
    minds, _ = hearing(run.trust, kmsg=SourceState.OK, vzevent=state)
    await minds._tick(0.0)
    assert (run.trust.why, run.told) == ("", [])


async def test_who_arms_while_a_source_is_deaf_is_asked_again_when_it_goes_deaf_once_more(
    start: Start,
) -> None:
    run = await start()
    run.trust.follow_sources({"kmsg": "deaf"})
    assert run.trust.accept("alice") == ["kmsg does not hear: deaf"]
    run.trust.follow_sources({"kmsg": "deaf"})
    run = await start()  # she does not take it back by a restart
    run.trust.follow_sources({"kmsg": "deaf"})
    assert run.trust.why == ""
    run.trust.follow_sources({})
    run.trust.follow_sources({"kmsg": "deaf"})
    assert run.trust.why


async def test_a_restart_alone_does_not_make_a_deaf_source_hear(start: Start) -> None:
    run = await start()
    run.trust.follow_sources({"kmsg": "deaf"})
    run = await start()
    assert run.trust.why
    minds, sources = hearing(run.trust, kmsg=SourceState.OK)
    minds._every = 300.0
    minds.suspect(run.trust.doubted_sources())
    assert sources["kmsg"].status.state is SourceState.DEAF
    # Nor is one waited for that somebody has switched off since.
    minds, sources = hearing(run.trust, kmsg=SourceState.OFF)
    minds._every = 300.0
    minds.suspect(run.trust.doubted_sources())
    minds._tell_deaf()
    assert (sources["kmsg"].status.state, run.trust.why) == (SourceState.OFF, "")


async def test_a_daemon_that_did_not_run_does_not_call_its_sources_deaf(start: Start) -> None:
    """Stopped in the middle of a canary, for longer than an answer may take."""
    run = await start()
    minds, sources = hearing(run.trust, kmsg=SourceState.OK)
    minds._round = _Round("token", {"kmsg"}, 30.0)
    minds._look_at_clock(100.0)
    await minds._tick(100.0)
    assert (sources["kmsg"].status.state, run.trust.why) == (SourceState.OK, "")
    await minds._tick(131.0)
    assert "did not hear a canary" in run.trust.why


async def test_a_daemon_that_cannot_read_the_mounts_observes_until_it_can(start: Start) -> None:
    run = await start()
    run.trust.follow_mounts("")
    assert run.told == []
    for _ in range(2):
        run.trust.follow_mounts("Too many open files")
    assert "mounts" in run.trust.why
    assert "Too many open files" in run.trust.why
    run = await start()
    assert run.trust.has("mounts")
    run.trust.follow_mounts("")
    assert (run.trust.why, run.told) == ("", ["regained"])
