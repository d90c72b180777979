"""Which incident an event joins."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.book import IncidentBook
from fswatchd.events import Domain
from fswatchd.incidents import Outcome, State
from fswatchd.store.store import Store
from tests.unit import builders


@pytest.fixture
async def book(tmp_path: Path):
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    made = IncidentBook(store, "hn1")
    yield made
    made.flush()
    await store.close()


async def test_an_event_joins_the_incident_of_the_same_filesystem_only(book) -> None:
    incident = builders.incident()
    book.put(incident)
    same, other = builders.filesystem(), builders.filesystem(disk_sequence=43)
    assert book.find(same, Domain.DAMAGE) == incident
    assert book.find(other, Domain.DAMAGE) is None
    assert book.find(same, Domain.SPACE) is None


@pytest.mark.parametrize(
    ("state", "image", "joins"),
    [
        (State.ACTING, "/vz/ve101.raw", True),
        (State.ACTING, "/vz/ve102.raw", False),
        (State.ACTING, None, False),
        (State.WAITING, "/vz/ve101.raw", False),
    ],
)
async def test_what_is_told_of_an_image_during_its_repair_belongs_to_the_repair(
    book, state: State, image: str | None, *, joins: bool
) -> None:
    """The VE was started again, on another attachment of the device."""
    book.put(replace(builders.incident(), state=state))
    found = book.find(builders.filesystem(disk_sequence=43, image=image), Domain.DAMAGE)
    assert (found is not None) is joins


@pytest.mark.parametrize("first", ["old", "new"])
async def test_a_rollback_of_an_old_incident_takes_no_events_from_the_one_that_is_open(
    book, first: str
) -> None:
    """Both are about one filesystem; whichever ends, events join the other."""
    new = builders.incident(incident_id="new", opened_ns=builders.NOW_NS + 1)
    old = builders.incident(incident_id="old", state=State.ACTING)
    same = builders.filesystem()
    book.put(new)
    book.put(old)
    book.put(replace(old, attempts=2))
    assert book.find(same, Domain.DAMAGE) == new
    ends, stays = (old, new) if first == "old" else (new, old)
    book.close(ends, Outcome.DISMISSED, "over")
    assert book.find(same, Domain.DAMAGE).incident_id == stays.incident_id
    book.close(stays, Outcome.DISMISSED, "over")
    assert book.find(same, Domain.DAMAGE) is None


async def test_an_incident_that_is_about_another_device_now_leaves_that_of_others_alone(
    book,
) -> None:
    """The VE was started on the original again, on another attachment of the device."""
    new = builders.incident(incident_id="new", opened_ns=builders.NOW_NS + 1)
    old = builders.incident(incident_id="old", state=State.ACTING)
    book.put(old)
    book.put(new)
    elsewhere = builders.filesystem(disk_sequence=43)
    book.put(replace(old, filesystem=elsewhere))
    assert book.find(builders.filesystem(), Domain.DAMAGE) == new
    assert book.find(elsewhere, Domain.DAMAGE).incident_id == "old"


async def disk_takes_writes(book: IncidentBook, *, whether: bool) -> None:
    """SQLite itself refuses them, and goes on to read, as with a filesystem that is full."""
    refuses = "BEFORE INSERT ON incident BEGIN SELECT RAISE(FAIL, 'disk full'); END"
    work = "DROP TRIGGER refuses" if whether else f"CREATE TRIGGER refuses {refuses}"
    await book._store.submit(lambda database: database.execute(work) and None)


async def test_what_the_disk_did_not_take_is_written_when_it_does(book, monkeypatch) -> None:
    monkeypatch.setattr("fswatchd.book._OWED_AGAIN_S", 0.01)
    first, second = builders.incident(), builders.incident(incident_id="20261121-zzzzz")
    await disk_takes_writes(book, whether=False)
    book.put(first)
    book.put(second)
    book.close(first, Outcome.RECOVERED, "well again")
    assert await book._store.incidents() == []
    assert "disk full" in (book._store.failed or ""), "reading does not make it well"
    assert book.newest()[first.incident_id].state is State.CLOSED

    await disk_takes_writes(book, whether=True)
    async with asyncio.timeout(30):
        while len(kept := await book._store.incidents()) < 2:
            await asyncio.sleep(0.01)
    assert {one.incident_id: one.state for one in kept} == {
        first.incident_id: State.CLOSED,
        second.incident_id: second.state,
    }
    assert book._store.failed is None
    assert list(book.newest()) == [second.incident_id]


async def test_a_closed_incident_is_changed_only_while_it_is_closed(book) -> None:
    done = replace(builders.incident(), state=State.CLOSED)
    await book._store.save_incident(done)
    changed = await book.amend(done.incident_id, lambda found: replace(found, undo={}))
    assert changed == replace(done, undo={})
    assert await book.amend(done.incident_id, lambda _: None) is None
    book.put(replace(done, state=State.ACTING))
    assert await book.amend(done.incident_id, lambda found: found) is None


async def test_changes_of_one_closed_incident_do_not_lose_each_other(book) -> None:
    done = replace(builders.incident(), state=State.CLOSED, undo={}, evidence={})
    await book._store.save_incident(done)
    await asyncio.gather(
        book.amend(done.incident_id, lambda found: replace(found, undo=None)),
        book.amend(done.incident_id, lambda found: replace(found, evidence=None)),
    )
    (after,) = await book._store.find_incidents(done.incident_id)
    assert (after.undo, after.evidence) == (None, None)
