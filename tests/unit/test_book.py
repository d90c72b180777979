"""Which incident an event joins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.book import IncidentBook
from fswatchd.events import Domain
from fswatchd.incidents import State
from fswatchd.store import Store
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
