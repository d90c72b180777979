"""One SQLite database, and one thread that writes it.

What is waiting is written in one transaction, so a storm costs few commits. `synchronous` is NORMAL
(an event may be lost by a power cut, never half-written) and FULL for a batch with a `durable`
operation in it. Events go to the `spool` first: from then on the end of the daemon does not lose
them, however long the disk takes. Not here: what is kept and in which form (`store`), but for the
tables; cursors (`eventlog`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fswatchd.errors import FswatchError
from fswatchd.store import eventlog
from fswatchd.store.eventlog import (
    INSERT,
    LOG,
    LOG_FACT,
    Log,
    Skip,
    insert_again,
    take_over,
    taken_up,
)
from fswatchd.store.spool import Spool

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_BATCH = 512
_ANSWER_S = 15.0
_QUEUE = 20_000
_KEEP_EVENTS = 200_000
_PRUNE_EVERY = 1_000
# Of SQLite's pages. Hardly anything is read twice, and what was written is in the page cache.
_CACHE_KIB = 512
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA = """
CREATE TABLE event (
    id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, source TEXT NOT NULL, class TEXT NOT NULL,
    severity TEXT NOT NULL, device TEXT, devno TEXT, fstype TEXT, errno INTEGER,
    count INTEGER NOT NULL, confirms INTEGER NOT NULL, detail TEXT NOT NULL,
    ves TEXT NOT NULL, incident TEXT, record TEXT, stored_ns INTEGER NOT NULL);
CREATE TABLE incident (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, opened_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL, document TEXT NOT NULL);
CREATE INDEX incident_by_state ON incident (state);
CREATE TABLE outbox (
    id TEXT PRIMARY KEY, channel TEXT NOT NULL, incident TEXT NOT NULL, type TEXT NOT NULL,
    body BLOB NOT NULL, created_ns INTEGER NOT NULL, attempts INTEGER NOT NULL,
    next_ns INTEGER NOT NULL, state TEXT NOT NULL, last_error TEXT NOT NULL, target TEXT NOT NULL);
CREATE INDEX outbox_by_state ON outbox (state);
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

# SQLite keeps an index of what this finds, if it is asked for in the very same words.
HAS_ORIGINAL = (
    "CASE WHEN json_valid(document) THEN coalesce(json_extract(document, '$.undo.original'),"
    " json_extract(document, '$.undo.deleting')) END IS NOT NULL"
)
_INDEX = f"CREATE INDEX IF NOT EXISTS incident_with_original ON incident (id) WHERE {HAS_ORIGINAL}"

# sqlite3.h: what is there is no database, or not a whole one.
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

T = TypeVar("T")


class StoreError(FswatchError):
    """The database cannot be opened, read or written."""


class Insert(Protocol):
    """An event to insert: the common case, without the cost of a future.

    `stored_ns` (CLOCK_REALTIME) is when it was first kept, 0 before that.
    """

    stored_ns: int

    @property
    def cursor(self) -> int:
        """Its cursor."""
        ...

    def row(self) -> list[object]:
        """The columns of the table `event`."""
        ...

    def told(self, moment: int | None) -> None:
        """It is in the database, and was kept at this time; None where it could not be."""
        ...


@dataclass(slots=True)
class _Operation:
    """A piece of work for the database and the future that waits for it."""

    work: Callable[[sqlite3.Connection], Any]
    future: Future[Any]
    durable: bool


_Write = _Operation | Insert


class Database:
    """`open` before use; the thread ends with `close`."""

    def __init__(self, path: Path, spool: Spool | None = None) -> None:
        self._path = path
        self._spool = spool
        self._spooled = 0
        self._unwritten = False  # the spool has events that the disk did not take
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._synchronous = ""
        self._thread: threading.Thread | None = None
        self._cursor = 0
        self._since_prune = 0
        self._ended = False
        self._log = Log(log_id="", boot_id="", reserved=0, clean=True)
        self._inode: tuple[int, int] | None = None
        self.failed: str | None = None
        # Where a database that could not be read is now; set by `open`.
        self.set_aside: Path | None = None
        # What could not be read since `open`.
        self.unreadable: list[str] = []
        # Called in the event loop when the database cannot be read or written any more.
        self.on_trouble: Callable[[str], None] = lambda _: None

    async def open(self) -> None:
        """Open or create the database and start the thread; raises StoreError."""
        self._loop = asyncio.get_running_loop()
        opened: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="store", daemon=True)
        self._thread.start()
        self._cursor = await asyncio.wrap_future(opened)

    async def close(self) -> None:
        """Write what is waiting and end the thread."""
        if self._thread is None:
            return
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, 10)
        self._thread = None
        if self._spool is not None:
            self._spool.close()

    def next_cursor(self) -> int:
        """The cursor of the next event; only the event loop asks."""
        self._cursor += 1
        return self._cursor

    @property
    def last_cursor(self) -> int:
        """The cursor of the newest event."""
        return self._cursor

    @property
    def log_id(self) -> str:
        """Names this log of events: cursors of another one mean nothing here."""
        return self._log.log_id

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Cursors that no event has."""
        return self._log.skips

    def submit(
        self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False
    ) -> asyncio.Future[T]:
        """Have the thread do `work`; with `durable` the future waits for the disk."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a caller that gives up cannot undo the write
        self._enqueue(_Operation(work, future, durable))
        wrapped = asyncio.wrap_future(future)
        # Who does not wait for the result is told of a failure through `failed`.
        wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
        return wrapped

    async def ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` reads; raises StoreError, also when the disk does not answer."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self.submit(work)
        except TimeoutError:
            error = StoreError(
                f"{self._path} does not answer within {_ANSWER_S:.0f} s",
                hint="is the filesystem with state_dir frozen, or its disk failing?",
            )
            self.on_trouble(error.message)
            raise error from None

    async def displaced(self) -> str | None:
        """What is wrong with the database's file as others would find it; None where it is the one
        that is open. Raises StoreError."""

        def work(_database: sqlite3.Connection) -> str | None:
            try:
                found = os.stat(self._path)
            except OSError as error:
                return f"{self._path}, which is open, is gone: {error.strerror}"
            same = (found.st_dev, found.st_ino) == self._inode
            return None if same else f"{self._path} was replaced while it was open"

        return await self.ask(work)

    def insert(self, event: Insert) -> None:
        """Have the thread insert an event, which is `told` in the event loop, in their order."""
        if self._spool is not None:
            event.stored_ns = time.time_ns()
            if self._spool.append([self._log.log_id, *event.row()]):
                self._spooled = event.cursor
            else:
                event.stored_ns = 0
        self._enqueue(event)

    def _enqueue(self, write: _Write) -> None:
        if self._queue.qsize() < _QUEUE and not self._ended:
            self._queue.put(write)
            return
        if not self._ended:
            self.failed = f"{_QUEUE} writes wait for {self._path}"
        # An event is dropped without a word: told now, readers would get it before those that
        # wait. They see by its cursor that one is missing.
        if isinstance(write, _Operation):
            write.future.set_exception(StoreError(self.failed or "the database is closed"))

    def _run(self, opened: Future[int]) -> None:
        try:
            database, cursor = self._connect_or_set_aside()
        except (sqlite3.Error, OSError, ValueError, StoreError) as error:
            hint = "is state_dir a writable directory on a healthy filesystem?"
            opened.set_exception(StoreError(f"cannot open {self._path}: {error}", hint=hint))
            return
        opened.set_result(cursor)
        try:
            self._serve(database)
            with suppress(sqlite3.Error):
                self._save_log(database, replace(self._log, reserved=self._cursor, clean=True))
        finally:
            self._ended = True
            self.failed = f"nothing is written to {self._path} any more"
            self._refuse_waiting()
            database.close()

    def _refuse_waiting(self) -> None:
        """Nobody may wait for ever for what comes too late."""
        with suppress(queue.Empty):
            while True:
                write = self._queue.get_nowait()
                if isinstance(write, _Operation):
                    write.future.set_exception(StoreError(self.failed or ""))

    def _serve(self, database: sqlite3.Connection) -> None:
        while True:
            write = self._queue.get()
            if write is None:
                break
            batch: list[_Write] = [write]
            ending = False
            while len(batch) < _BATCH:
                try:
                    write = self._queue.get_nowait()
                except queue.Empty:
                    break
                if write is None:
                    ending = True
                    break
                batch.append(write)
            self._write(database, batch)
            if ending:
                break

    def _connect_or_set_aside(self) -> tuple[sqlite3.Connection, int]:
        """With a database that SQLite cannot read the daemon would not start, and be deaf: it
        begins a new one, and keeps that one."""
        try:
            database = self._connect()
            return database, self._open_log(database)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _BROKEN:
                raise
            logger.critical("%s cannot be read: %s", self._path, error)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.set_aside = self._path.with_name(f"{self._path.name}.unreadable-{stamp}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(f"{self._path}{suffix}", f"{self.set_aside}{suffix}")
        database = self._connect()
        return database, self._open_log(database)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=True)
        database.row_factory = sqlite3.Row
        # Nobody else opens the database while the daemon runs, so no locks are taken per write.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA busy_timeout = 5000")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise StoreError(f"schema {version}, this version of fswatchd knows {SCHEMA_VERSION}")
        with suppress(sqlite3.OperationalError):  # a disk that is full: then all rows are read
            database.execute(_INDEX)
        status = os.stat(self._path)
        self._inode = (status.st_dev, status.st_ino)
        return database

    def _open_log(self, database: sqlite3.Connection) -> int:
        """The last cursor that may have been used; notes what the end of a run has left unsure."""
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        row = database.execute("SELECT value FROM fact WHERE key = ?", (LOG_FACT,)).fetchone()
        if row is None:
            log = Log(log_id=secrets.token_hex(8), boot_id=boot_id, reserved=0, clean=True)
        else:
            log = LOG.validate_json(row[0])
        if self._spool is not None:
            try:
                take_over(database, self._spool.open(), log.log_id)
                self._spool.clear()
            except OSError as error:
                logger.warning("events are kept by the database alone: %s", error)
        last: int = database.execute("SELECT max(id) FROM event").fetchone()[0] or 0
        log = taken_up(log, boot_id, last)
        last = log.reserved - eventlog.RESERVE
        self._save_log(database, log)
        return last

    def _save_log(self, database: sqlite3.Connection, log: Log) -> None:
        self._set_synchronous(database, durable=True)
        document = LOG.dump_json(log).decode()
        database.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (LOG_FACT, document))
        self._log = log

    def _reserve(self, database: sqlite3.Connection, batch: list[_Write]) -> None:
        last = max((w.cursor for w in batch if not isinstance(w, _Operation)), default=0)
        if last > self._log.reserved - eventlog.RESERVE // 2:
            self._save_log(database, replace(self._log, reserved=last + eventlog.RESERVE))

    def _write(self, database: sqlite3.Connection, batch: list[_Write]) -> None:
        results: list[tuple[_Write, Any, StoreError | None]] = []
        before = database.total_changes
        try:
            self._reserve(database, batch)
            self._set_synchronous(
                database, durable=any(isinstance(w, _Operation) and w.durable for w in batch)
            )
            if len(batch) == 1 and not isinstance(batch[0], _Operation):
                _run(database, batch[0])  # a statement alone is a transaction
                results = [(batch[0], None, None)]
            else:
                database.execute("BEGIN IMMEDIATE")
                results += [self._write_one(database, write) for write in batch]
                database.execute("COMMIT")
        except sqlite3.Error as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            failure = StoreError(f"cannot write {self._path}: {error}")
            results = [(write, None, failure) for write in batch]
            self._report(failure.message)
        failures = [problem for _, _, problem in results if problem]
        # That something can be read says nothing about a disk that takes no writes.
        if failures or database.total_changes != before:
            self.failed = str(failures[0]) if failures else None
        self._tell(results, time.time_ns())
        self._prune(database, len(batch))

    def _tell(self, results: list[tuple[_Write, Any, StoreError | None]], now: int) -> None:
        committed: list[tuple[Insert, int | None]] = []
        for write, result, problem in results:
            if not isinstance(write, _Operation):
                committed.append((write, None if problem else write.stored_ns or now))
            elif problem:
                write.future.set_exception(problem)
            else:
                write.future.set_result(result)
        if committed and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver, committed)

    def _write_one(
        self, database: sqlite3.Connection, write: _Write
    ) -> tuple[_Write, Any, StoreError | None]:
        """One write of a batch; when it fails, the others are not taken along."""
        database.execute("SAVEPOINT one")
        try:
            result: tuple[_Write, Any, StoreError | None] = (write, _run(database, write), None)
        except (sqlite3.Error, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if not database.in_transaction:
                raise  # a full disk ends the whole transaction (lang_transaction.html, 2.3)
            # Whatever is wrong with one write, also a number too large for SQLite.
            if type(error) in {sqlite3.DatabaseError, sqlite3.OperationalError}:
                self._report(f"{self._path}: {error}")
            database.execute("ROLLBACK TO one")
            result = (write, None, StoreError(f"{self._path}: {error}"))
        database.execute("RELEASE one")
        return result

    def _report(self, text: str) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.on_trouble, text)

    def _deliver(self, committed: list[tuple[Insert, int | None]]) -> None:
        for write, moment in committed:
            write.told(moment)
        if self._spool is None:
            return
        if any(moment is None for _, moment in committed):
            self._unwritten = True
        elif self._unwritten:
            # The disk takes writes again. Later inserts are behind this in the queue, so nothing
            # clears the spool before it is done.
            self._unwritten = False
            upto = committed[-1][0].cursor
            again = self.submit(partial(self._write_spooled, upto), durable=True)
            again.add_done_callback(self._spool_written)
        elif committed[-1][0].cursor >= self._spooled:
            self._spool.clear()

    def _write_spooled(self, upto: int, database: sqlite3.Connection) -> None:
        """Later ones are in the queue, and written by themselves."""
        if self._spool is not None:
            insert_again(database, self._spool.left(), self._log.log_id, upto)

    def _spool_written(self, done: asyncio.Future[None]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._unwritten = True

    def _set_synchronous(self, database: sqlite3.Connection, *, durable: bool) -> None:
        wanted = "FULL" if durable else "NORMAL"
        if wanted != self._synchronous:
            database.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def _prune(self, database: sqlite3.Connection, written: int) -> None:
        self._since_prune += written
        if self._since_prune >= _PRUNE_EVERY:
            self._since_prune = 0
            with suppress(sqlite3.Error):
                # By number, not by cursor: a daemon that is killed again and again skips many.
                database.execute(
                    "DELETE FROM event WHERE id <="
                    " (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (_KEEP_EVENTS,),
                )


def _run(database: sqlite3.Connection, write: _Write) -> Any:
    if isinstance(write, _Operation):
        return write.work(database)
    return database.execute(INSERT, write.row())
