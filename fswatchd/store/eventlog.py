"""The cursors of events: which were used, which belong to no event, and what a kill left behind."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

LOG_FACT = "event-log"
RESERVE = 10_000
# In the order of the table's columns.
INSERT = "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS, _CURSOR_COLUMN, _SOURCE_COLUMN, _INCIDENT_COLUMN = 16, 0, 2, 13
_INSERT_MISSING = f"INSERT OR IGNORE {INSERT.removeprefix('INSERT')}"
_SKIPS_KEPT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Cursors after `after` up to `upto` that belong to no stored event: the daemon was killed.

    `lost` is whether some may have been told to readers: after a power cut the last commits may be
    gone, after the end of a process they are not.
    """

    after: int
    upto: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is remembered of the cursors, as a fact.

    `reserved` is on the disk before a cursor up to it is used: a start after a power cut goes on
    behind it, so that no two events ever have the same cursor.
    """

    log_id: str
    boot_id: str
    reserved: int
    clean: bool
    skips: tuple[Skip, ...] = ()


LOG: TypeAdapter[Log] = TypeAdapter(Log)


def taken_up(log: Log, boot_id: str, last: int) -> Log:
    """The log as a new run goes on with it; `last` is the last cursor that an event has."""
    skips = log.skips
    if log.reserved > last and not log.clean:
        lost = log.boot_id != boot_id
        if skips and skips[-1].after == last:  # killed again before there was any event
            skips, lost = skips[:-1], lost or skips[-1].lost
        skipped = Skip(after=last, upto=log.reserved, lost=lost)
        skips = (*skips[-(_SKIPS_KEPT - 1) :], skipped)
    last = max(last, log.reserved)
    return replace(log, boot_id=boot_id, reserved=last + RESERVE, clean=False, skips=skips)


def take_over(database: sqlite3.Connection, records: list[list[Any]], log_id: str) -> None:
    """Insert what an earlier run has spooled and not written any more.

    Left out is a record of another version, with other columns, and what is reported again because
    what its source remembers comes after it in the queue of writes: events of `state`, and those of
    an incident that was not written either.
    """
    for owner, *row in (one for one in records if len(one) == _COLUMNS + 1):
        incident = row[_INCIDENT_COLUMN]
        known = database.execute("SELECT 1 FROM incident WHERE id = ?", (incident,)).fetchone()
        if owner == log_id and row[_SOURCE_COLUMN] != "state" and (incident is None or known):
            database.execute(_INSERT_MISSING, row)


def insert_again(
    database: sqlite3.Connection, records: list[list[Any]], log_id: str, upto: int
) -> None:
    """Insert what this run has spooled, up to a cursor, and the disk did not take then."""
    for owner, *row in records:
        if owner == log_id and row[_CURSOR_COLUMN] <= upto:
            database.execute(_INSERT_MISSING, row)
