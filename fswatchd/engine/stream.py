"""The log of events as readers follow it: from any cursor on, out of the store into what comes now.

A reader is only a cursor. What it has not read yet comes from the newest events in memory, or from
the store when it is further behind, so a slow reader costs nothing and loses nothing that the node
still has. What is missing between two events is told as a gap, in its place.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fswatchd import views
from fswatchd.store.store import EventPage, Skip, Store, StoredEvent

PAGE = 1000
MAX_READERS = 64
_TAIL = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Events after the cursor `after` up to `upto` that nobody can tell any more.

    `count` is how many, of all VEs; None when nobody can say. `reason` is `retention` (no longer
    kept), `not-stored` (the store could not be written), `crash` (a power cut may have taken the
    last ones) or `foreign` (`after` is no cursor of this log; reading begins where the log does).
    """

    after: int
    upto: int
    count: int | None
    reason: str

    def document(self) -> dict[str, Any]:
        """As readers get it."""
        return views.gap(self.after, self.upto, self.count, self.reason)


@dataclass(frozen=True, slots=True)
class Event:
    """An event as readers get it: its cursor, and its document as JSON."""

    cursor: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a reader gets next, in the order of cursors, and the cursor it then has."""

    items: tuple[Event | Gap, ...]
    cursor: int


class Reader:
    """One who follows. `alive` tells whether somebody is still there."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        self.alive = alive
        self._news = asyncio.Event()

    def poke(self) -> None:
        """There is something to read, or nothing will come any more."""
        self._news.set()

    def expect(self) -> None:
        """Call before reading, so that what comes meanwhile ends the next `wait`."""
        self._news.clear()

    async def wait(self, timeout_s: float) -> bool:
        """Until there is something; false when it took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True


class EventStream:
    """All readers, and the newest events."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: set[Reader] = set()
        self._tail: deque[StoredEvent] = deque()
        # Written once, however many read it.
        self._texts: dict[int, str] = {}
        # One page at a time: many readers who catch up must not keep the store from writing.
        self._turn = asyncio.Lock()
        # Every event after `_floor` up to `last` that was published is in the tail.
        self._floor = 0
        self.last = 0
        self.closed = False

    def begin(self) -> None:
        """The store is open: everything up to now is read from there."""
        self._floor = self.last = self._store.last_cursor

    @property
    def log_id(self) -> str:
        """The log that cursors belong to."""
        return self._store.log_id

    def join(self, alive: Callable[[], bool]) -> Reader | None:
        """Begin to be poked; None when there are too many. End with `leave`."""
        if len(self._readers) >= MAX_READERS:
            # Who has gone without a word leaves at its next heartbeat; its place is free now.
            present = sum(reader.alive() for reader in self._readers)
            if present >= MAX_READERS:
                return None
        reader = Reader(alive)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """Be poked no more."""
        self._readers.discard(reader)

    def close(self) -> None:
        """The daemon ends: so do all streams."""
        self.closed = True
        for reader in self._readers:
            reader.poke()

    def publish(self, stored: StoredEvent) -> None:
        """One more event, kept or not; cursors must grow."""
        if len(self._tail) == _TAIL:
            self._floor = self._tail.popleft().cursor
            self._texts.pop(self._floor, None)
        self._tail.append(stored)
        self.last = stored.cursor
        for reader in self._readers:
            reader.poke()

    async def read(
        self, cursor: int, ve: str | None = None, *, limit: int = PAGE, log_id: str | None = None
    ) -> Batch:
        """What follows `cursor`; nothing when there is nothing yet, or nothing of this VE.

        `log_id` is where the cursor is from, if the reader knows. Raises StoreError.
        """
        if cursor > self.last or log_id not in {None, self.log_id}:
            return await self._from_the_beginning(cursor)
        if cursor < self._floor:
            upto = self._floor
            async with self._turn:
                page = await self._store.events_between(cursor, upto, limit, ve)
            return _stored(page, cursor, upto, self._store.skips)
        return self._newest(cursor, ve, limit)

    async def _from_the_beginning(self, cursor: int) -> Batch:
        async with self._turn:
            page = await self._store.events_between(0, self.last, 1)
        start = self.last if page.oldest is None else page.oldest - 1
        gap = Gap(after=cursor, upto=start, count=None, reason="foreign")
        return Batch(items=(gap,), cursor=start)

    def _newest(self, cursor: int, ve: str | None, limit: int) -> Batch:
        unread: list[StoredEvent] = []
        for stored in reversed(self._tail):
            if stored.cursor <= cursor:
                break
            unread.append(stored)
        items: list[Event | Gap] = []
        for stored in reversed(unread[-limit:]):
            items += _missing(cursor, stored.cursor - 1, 0, ())
            if ve is None or ve in stored.ves:
                items.append(Event(stored.cursor, self._text(stored)))
            cursor = stored.cursor
        return Batch(items=tuple(items), cursor=cursor)

    def _text(self, stored: StoredEvent) -> str:
        text = self._texts.get(stored.cursor)
        if text is None:
            text = self._texts[stored.cursor] = json.dumps(views.stored_event(stored))
        return text


def _stored(page: EventPage, cursor: int, upto: int, skips: tuple[Skip, ...]) -> Batch:
    """The batch from a page of the store. Pure."""
    rows = {row["id"]: row for row in page.rows}
    oldest = upto + 1 if page.oldest is None else page.oldest
    items: list[Event | Gap] = []
    for number in page.ids:
        items += _missing(cursor, number - 1, oldest, skips)
        if row := rows.get(number):
            document = views.event_row(row, json.loads(row["ves"]))
            items.append(Event(number, json.dumps(document)))
        cursor = number
    if page.end:
        items += _missing(cursor, upto, oldest, skips)
        cursor = upto
    return Batch(items=tuple(items), cursor=cursor)


def _missing(after: int, upto: int, oldest: int, skips: tuple[Skip, ...]) -> list[Gap]:
    """The gap that cursors after `after` up to `upto` are, unless no event ever had them."""
    count = upto - after
    unsure = False
    for skip in skips:
        common = min(upto, skip.upto) - max(after, skip.after)
        if common > 0:
            count -= common
            unsure = unsure or skip.lost
    if count <= 0 and not unsure:
        return []
    reason = "retention" if after + 1 < oldest else "crash" if unsure else "not-stored"
    return [Gap(after=after, upto=upto, count=None if unsure else count, reason=reason)]
