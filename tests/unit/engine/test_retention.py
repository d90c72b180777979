"""What a repair in place has written down to undo it goes in time, and its directory with it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fswatchd.engine.retention import Retention
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.store.store import Store
from tests.unit.builders import incident

DAY_S = 86400
NS = 1_000_000_000


class Known:
    """A store of these incidents, and no evidence."""

    def __init__(self, *found: Incident) -> None:
        self.found = list(found)

    async def with_original(self) -> list[Incident]:
        return [one for one in self.found if "original" in (one.undo or {})]

    async def known_incidents(self, ids: list[str]) -> dict[str, Incident | None]:
        return {one.incident_id: one for one in self.found if one.incident_id in ids}

    async def sweep(self, store: object, now_ns: int) -> None:
        """Nothing."""


def repaired(state: State, closed_days_ago: float, keep_days: float | None) -> Incident:
    return replace(
        incident(),
        incident_id="20261121-abcde",
        state=state,
        outcome=Outcome.REPAIRED,
        closed_ns=time.time_ns() - int(closed_days_ago * DAY_S * NS),
        undo=None if keep_days is None else {"keep_s": keep_days * DAY_S, "undo_file": "x"},
    )


def undo_directory(tmp_path: Path, *, empty: bool, days_ago: float = 0.0) -> Path:
    directory = tmp_path / "undo" / "20261121-abcde"
    directory.mkdir(parents=True)
    if not empty:
        (directory / "ve101.raw.e2undo").write_text("undo")
        (directory / "ve101.raw.e2undo.again").write_text("undo")
    when = time.time() - days_ago * DAY_S
    os.utime(directory, (when, when))
    return directory


async def look(tmp_path: Path, *found: Incident) -> None:
    known = cast("Any", Known(*found))
    await Retention(known, known, tmp_path).look()


@pytest.mark.parametrize(
    ("found", "empty", "stays"),
    [
        (repaired(State.CLOSED, 0, 7), True, False),
        (repaired(State.CLOSED, 0, None), True, False),
        (repaired(State.ACTING, 0, None), True, True),
        (repaired(State.CLOSED, 6, 7), False, True),
        (repaired(State.CLOSED, 8, 7), False, False),
        (repaired(State.CLOSED, 8, None), False, False),
        (repaired(State.NEEDS_OPERATOR, 99, 7), False, True),
    ],
    ids=["empty", "never used", "at work", "kept", "due", "not proven", "needs an operator"],
)
async def test_an_undo_file_stays_while_it_may_be_wanted(
    tmp_path: Path, found: Incident, *, empty: bool, stays: bool
) -> None:
    directory = undo_directory(tmp_path, empty=empty)
    await look(tmp_path, found)
    assert directory.exists() is stays
    if stays and not empty:
        assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize(("days_ago", "stays"), [(6, True), (8, False)])
async def test_what_nothing_is_known_of_is_as_old_as_its_directory(
    tmp_path: Path, days_ago: int, *, stays: bool
) -> None:
    directory = undo_directory(tmp_path, empty=False, days_ago=days_ago)
    await look(tmp_path)
    assert directory.exists() is stays


async def test_nothing_else_in_such_a_directory_is_deleted(tmp_path: Path) -> None:
    directory = undo_directory(tmp_path, empty=False)
    (directory / "notes.txt").write_text("a person's")
    await look(tmp_path, repaired(State.CLOSED, 8, 7))
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


async def test_the_undo_file_of_an_open_incident_stays_however_many_are_newer(tmp_path) -> None:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    store.save_incident(repaired(State.NEEDS_OPERATOR, 99, 7))
    for number in range(1000):
        newer = replace(incident(), incident_id=f"{number}", opened_ns=time.time_ns())
        store.save_incident(newer)
    directory = undo_directory(tmp_path, empty=False, days_ago=99)
    await Retention(store, cast("Any", Known()), tmp_path).look()
    await store.close()
    assert len(list(directory.iterdir())) == 2
