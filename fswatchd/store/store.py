"""Everything the daemon must remember, and in which form; `database` writes it.

Calls return futures of the event loop, but for events, of which there may be many: their commit is
told by a callback, in the order of their cursors. What is about to be done to a volume is kept with
`durable`: the future then waits for the disk.

Raises StoreError through the futures. The daemon then goes on from memory and does not act,
because an action that cannot be recorded cannot be undone after a crash.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from pydantic import TypeAdapter

from fswatchd.devno import Devno
from fswatchd.events import EventClass, FsEvent, Severity
from fswatchd.incidents import Incident, State
from fswatchd.kernlog import grammar
from fswatchd.store.database import HAS_ORIGINAL, Database, StoreError
from fswatchd.store.eventlog import Skip

__all__ = ["RECORD_COLUMNS", "Delivery", "EventPage", "Skip", "Store", "StoreError", "StoredEvent"]

_UNREADABLE = "unreadable"
_SCAN = 1_000
_RECORD_PAGE = 5_000
# What decisions depend on; the last two are the VEs and the incident.
RECORD_COLUMNS = (
    *("id", "time_ns", "source", "class", "severity", "confirms", "device", "devno"),
    *("fstype", "errno", "count", "ves", "incident"),
)

# Called when the event is in the database, with when it was kept (CLOCK_REALTIME ns; None: it is
# not).
OnCommit = Callable[["StoredEvent", int | None], None]


@cache
def _incident_type() -> TypeAdapter[Incident]:
    # Made with the first incident: a start has no use for it where there is none.
    return TypeAdapter(Incident)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it is kept; `cursor` grows by one with every event, and is never used again.

    `stored_ns` (CLOCK_REALTIME) is when it was kept: in the spool, or without one when its
    transaction was committed (in rows that are read back: when the row was written into it).
    """

    cursor: int
    event: FsEvent
    ves: tuple[str, ...]
    incident_id: str | None
    stored_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Stored events after some cursor. `rows` are those asked for, `ids` the cursors of all that
    were looked at, `oldest` is the first cursor that is kept. `end` is true when nothing follows.
    """

    rows: list[dict[str, Any]]
    ids: list[int]
    oldest: int | None
    end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A notice that some channel is to get, as it is kept until it arrived."""

    delivery_id: str
    channel: str
    incident_id: str
    type: str
    body: bytes
    created_ns: int
    attempts: int = 0
    next_ns: int = 0
    state: str = "waiting"
    last_error: str = ""
    target: str = ""


@dataclass(slots=True)
class _EventWrite:
    """See database.Insert."""

    stored: StoredEvent
    on_commit: OnCommit
    stored_ns: int = 0

    @property
    def cursor(self) -> int:
        return self.stored.cursor

    def told(self, moment: int | None) -> None:
        self.on_commit(self.stored, moment)

    def row(self) -> list[object]:
        stored, event = self.stored, self.stored.event
        return [
            stored.cursor,
            event.time_ns,
            event.source,
            event.klass.value,
            event.severity.label,
            event.device,
            str(event.devno) if event.devno else None,
            event.fstype,
            event.errno,
            event.count,
            int(event.confirms),
            event.detail,
            _as_json(stored.ves),
            stored.incident_id,
            event.record,
            self.stored_ns or time.time_ns(),
        ]


@lru_cache(maxsize=4096)
def _as_json(names: tuple[str, ...]) -> str:
    return json.dumps(names)


class Store(Database):
    """The database of one daemon. `open` before use; the thread ends with `close`."""

    # --- events -----------------------------------------------------------------------------

    def add_event(self, stored: StoredEvent, on_commit: OnCommit) -> None:
        """Keep an event; `on_commit` is then called in the event loop."""
        self.insert(_EventWrite(stored, on_commit))

    async def events_between(
        self, after: int, upto: int, limit: int, ve: str | None = None
    ) -> EventPage:
        """Up to `limit` events of one VE (None: all) with cursors after `after` up to `upto`.

        May end earlier, so that a rare VE does not hold up the thread: go on after `ids[-1]`.
        """

        def work(database: sqlite3.Connection) -> EventPage:
            oldest = database.execute("SELECT min(id) FROM event").fetchone()[0]
            found = database.execute(
                "SELECT * FROM event WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
                (after, upto, _SCAN),
            )
            rows: list[dict[str, Any]] = []
            ids: list[int] = []
            for row in found:
                ids.append(row["id"])
                if ve is None or ve in json.loads(row["ves"]):
                    rows.append(dict(row))
                    if len(rows) == limit:
                        break
            end = len(rows) < limit and len(ids) < _SCAN
            return EventPage(rows=rows, ids=ids, oldest=oldest, end=end)

        return await self.ask(work)

    async def record(self, after: int) -> tuple[list[tuple[Any, ...]], bool]:
        """Events after a cursor in short (`RECORD_COLUMNS`), and whether these are all."""

        def work(database: sqlite3.Connection) -> tuple[list[tuple[Any, ...]], bool]:
            rows = database.execute(
                f"SELECT {', '.join(RECORD_COLUMNS)} FROM event"  # noqa: S608 - our own constants
                " WHERE id > ? ORDER BY id LIMIT ?",
                (after, _RECORD_PAGE),
            )
            found = [(*row[:-2], json.loads(row[-2]), row[-1]) for row in rows]
            return found, len(found) < _RECORD_PAGE

        return await self.ask(work)

    async def events_of(self, incident_id: str, cursor: int) -> list[StoredEvent]:
        """The events stored with an incident that have a greater cursor, oldest first."""

        def work(database: sqlite3.Connection) -> list[StoredEvent]:
            rows = database.execute(
                "SELECT * FROM event WHERE id > ? AND incident = ? ORDER BY id",
                (cursor, incident_id),
            )
            return [_stored_event(row) for row in rows]

        return await self.ask(work)

    async def recent_records(self, limit: int = 4096) -> list[str]:
        """The identities of the newest log records that were stored, oldest first."""

        def work(database: sqlite3.Connection) -> list[str]:
            rows = database.execute(
                "SELECT record FROM event WHERE record IS NOT NULL ORDER BY id DESC LIMIT ?",
                (limit,),
            )
            return [row[0] for row in rows][::-1]

        return await self.ask(work)

    # --- incidents --------------------------------------------------------------------------

    def save_incident(self, incident: Incident, *, durable: bool = False) -> asyncio.Future[None]:
        """Keep the incident as it is now; with `durable` the future waits for the disk."""
        document = _incident_type().dump_json(incident).decode()
        values = (
            incident.incident_id,
            incident.state.value,
            incident.opened_ns,
            incident.updated_ns,
            document,
        )

        def work(database: sqlite3.Connection) -> None:
            database.execute("INSERT OR REPLACE INTO incident VALUES (?, ?, ?, ?, ?)", values)

        return self.submit(work, durable=durable)

    async def open_incidents(self) -> list[Incident]:
        """Every incident that is not closed, oldest first. One that cannot be read is left where it
        is, under another state, and named in `unreadable`."""

        def work(database: sqlite3.Connection) -> list[Incident]:
            query = "SELECT id, document FROM incident WHERE state NOT IN (?, ?) ORDER BY opened_ns"
            found: list[Incident] = []
            for incident_id, document in database.execute(
                query, (State.CLOSED.value, _UNREADABLE)
            ).fetchall():
                try:
                    found.append(_incident_type().validate_json(document))
                except ValueError:
                    database.execute(
                        "UPDATE incident SET state = ? WHERE id = ?", (_UNREADABLE, incident_id)
                    )
                    self.unreadable.append(f"incident {incident_id}")
            return found

        return await self.ask(work)

    async def reread(self, incidents: Sequence[Incident]) -> str | None:
        """Write these, and read everything again; returns what is wrong, None where nothing is.
        Raises StoreError."""
        wanted = {one.incident_id: _incident_type().dump_json(one).decode() for one in incidents}
        for one in incidents[:-1]:
            self.save_incident(one, durable=True)
        if incidents:
            await self.save_incident(incidents[-1], durable=True)

        def work(database: sqlite3.Connection) -> str | None:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                return f"the database is damaged: {found}"
            rows = database.execute("SELECT id, document FROM incident WHERE state <> 'closed'")
            kept = {row[0]: row[1] for row in rows}
            wrong = [one for one, document in wanted.items() if kept.get(one) != document]
            return f"incident {wrong[0]} is not what was written" if wrong else None

        return await self.ask(work)

    async def incidents(self, limit: int = 1000) -> list[Incident]:
        """The newest incidents, closed ones too, newest first."""
        return await self._incidents("ORDER BY opened_ns DESC LIMIT ?", (limit,))

    async def with_original(self) -> list[Incident]:
        """Every incident, however old, whose volume from before a repair is kept, or is
        about to be deleted."""
        return await self._incidents(f"WHERE {HAS_ORIGINAL}", ())

    async def known_incidents(self, ids: Sequence[str]) -> dict[str, Incident | None]:
        """Those of these that there are, however old; None for one that cannot be read."""
        if not ids:
            return {}

        def work(database: sqlite3.Connection) -> dict[str, Incident | None]:
            found: dict[str, Incident | None] = {}
            for one in ids:
                row = database.execute(
                    "SELECT document FROM incident WHERE id = ?", (one,)
                ).fetchone()
                if row is not None:
                    found[one] = None
                    with suppress(ValueError):
                        found[one] = _incident_type().validate_json(row[0])
            return found

        return await self.ask(work)

    async def find_incidents(self, text: str) -> list[Incident]:
        """The incidents whose id is `text`, or ends in it."""
        exact = await self._incidents("WHERE id = ?", (text,))
        if exact:
            return exact
        # "-" before the suffix: ids end in a random part that people type alone.
        pattern = "%-" + text.replace("%", "").replace("_", "")
        return await self._incidents("WHERE id LIKE ? ORDER BY opened_ns DESC", (pattern,))

    async def _incidents(self, clause: str, values: tuple[object, ...]) -> list[Incident]:
        def work(database: sqlite3.Connection) -> list[Incident]:
            query = f"SELECT document FROM incident {clause}"  # noqa: S608 - our own constants
            found = []
            for row in database.execute(query, values):
                with suppress(ValueError):  # see `open_incidents`
                    found.append(_incident_type().validate_json(row[0]))
            return found

        return await self.ask(work)

    # --- outbox -----------------------------------------------------------------------------

    def add_delivery(self, delivery: Delivery) -> asyncio.Future[None]:
        """Keep a notice until it is delivered; the future waits for the disk."""
        values = tuple(getattr(delivery, name) for name in _DELIVERY_FIELDS)

        def work(database: sqlite3.Connection) -> None:
            database.execute(
                f"INSERT OR REPLACE INTO outbox VALUES ({','.join('?' * len(values))})",  # noqa: S608
                values,
            )

        return self.submit(work, durable=True)

    async def waiting_deliveries(self) -> list[Delivery]:
        """Notices that have not arrived, oldest first."""

        def work(database: sqlite3.Connection) -> list[Delivery]:
            rows = database.execute(
                "SELECT * FROM outbox WHERE state = 'waiting' ORDER BY created_ns"
            )
            return [
                Delivery(**dict(zip(_DELIVERY_FIELDS, tuple(row), strict=True))) for row in rows
            ]

        return await self.ask(work)

    async def delivery_counts(self) -> dict[str, int]:
        """State → number of notices."""

        def work(database: sqlite3.Connection) -> dict[str, int]:
            return dict(
                tuple(row)
                for row in database.execute("SELECT state, count(*) FROM outbox GROUP BY state")
            )

        return await self.ask(work)

    # --- facts ------------------------------------------------------------------------------

    async def facts(self, prefix: str) -> dict[str, Any]:
        """Every remembered fact whose key starts with `prefix`."""

        def work(database: sqlite3.Connection) -> dict[str, Any]:
            rows = database.execute(
                "SELECT key, value FROM fact WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
            )
            found: dict[str, Any] = {}
            for key, value in rows.fetchall():
                try:
                    found[key] = json.loads(value)
                except ValueError:
                    aside = (f"{_UNREADABLE}:{key}", key)
                    database.execute("UPDATE OR REPLACE fact SET key = ? WHERE key = ?", aside)
                    self.unreadable.append(f"fact {key!r}")
            return found

        return await self.ask(work)

    def set_fact(
        self, key: str, value: object | None, *, durable: bool = False
    ) -> asyncio.Future[None]:
        """Remember a JSON value; None forgets it."""
        text = None if value is None else json.dumps(value)

        def work(database: sqlite3.Connection) -> None:
            if text is None:
                database.execute("DELETE FROM fact WHERE key = ?", (key,))
            else:
                database.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, text))

        return self.submit(work, durable=durable)


def _stored_event(row: sqlite3.Row) -> StoredEvent:
    said = grammar.shipped().classify(row["detail"]) if row["class"] == "data_loss" else None
    event = FsEvent(
        source=row["source"],
        klass=EventClass(row["class"]),
        severity=Severity.parse(row["severity"]),
        confirms=bool(row["confirms"]),
        time_ns=row["time_ns"],
        mono_ns=0,  # of another boot, perhaps: it is not kept
        detail=row["detail"],
        device=row["device"],
        devno=Devno.parse(row["devno"]) if row["devno"] else None,
        fstype=row["fstype"],
        errno=row["errno"],
        count=row["count"],
        record=row["record"],
        # The line of the kernel is kept as it was, and says it again.
        lost=said.lost if said else None,
    )
    return StoredEvent(
        cursor=row["id"],
        event=event,
        ves=tuple(json.loads(row["ves"])),
        incident_id=row["incident"],
        stored_ns=row["stored_ns"],
    )


_DELIVERY_FIELDS = (
    "delivery_id",
    "channel",
    "incident_id",
    "type",
    "body",
    "created_ns",
    "attempts",
    "next_ns",
    "state",
    "last_error",
    "target",
)
