"""Kernel messages from the journal (systemd.journal-fields(7)), through systemd-python.

The journal repeats /dev/kmsg some hundred milliseconds later, and keeps what the kernel's buffer
has already dropped. It counts as the same witness as `kmsg`, and the engine drops the copies.

Where xfs_healer(8) holds the health monitor of an XFS, its lines are read too.

It also keeps what was said before this boot. That is told, for it may not have been heard then; but
what had a device's name is not what has it now, so such lines are about nothing that is there.

Positioning follows what was measured: `seek_tail` loses entries, `seek_realtime` does not; a
cursor of a vacuumed journal raises nothing and lands somewhere else, which `test_cursor` shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from systemd import journal

from fswatchd.events import SourceState
from fswatchd.kernel import proc
from fswatchd.kernlog.grammar import Grammar
from fswatchd.sources import Cursor, Sink, batch, xfs_healer
from fswatchd.sources.kernel_lines import KernelLineSource
from fswatchd.sources.xfs_healer import HealerLine

_LOOK_EVERY_S = 30.0


class JournalSource(KernelLineSource):
    """Entries with _TRANSPORT=kernel and facility 0; those of xfs_healer go to `on_healer`."""

    name = "journal"

    def __init__(
        self,
        sink: Sink,
        grammar: Grammar,
        cursor: Cursor,
        path: str | None = None,
        on_healer: Callable[[HealerLine], None] = lambda _: None,
    ) -> None:
        super().__init__(sink, grammar)
        self._on_healer = on_healer
        self._cursor = cursor
        self._path = path
        self._reader: journal.Reader | None = None
        self._timer: asyncio.Task[None] | None = None
        self._read_to: str | None = None
        self._saved: str | None = None
        self._last_read_ns = time.time_ns()
        self._boot = UUID(proc.boot_id())

    async def start(self) -> None:
        """See Source."""
        try:
            self._open()
        except (OSError, ValueError) as error:
            self._unavailable(f"cannot open the journal: {error}")
            return
        self._timer = asyncio.create_task(self._look_regularly())

    async def stop(self) -> None:
        """See Source."""
        if self._timer is not None:
            self._timer.cancel()
            with suppress(asyncio.CancelledError):
                await self._timer
        self._save()
        self._close()
        self.status.state = SourceState.OFF

    def _open(self) -> None:
        reader = journal.Reader(path=self._path) if self._path else journal.Reader()
        # Asked for at once: watches set up later miss files that are rotated meanwhile.
        fd = reader.fileno()
        reader.add_match(_TRANSPORT="kernel")
        reader.add_disjunction()
        reader.add_match(_SYSTEMD_SLICE=xfs_healer.SLICE, _UID=0)
        self._reader = reader
        self._position(reader)
        asyncio.get_running_loop().add_reader(fd, self._readable)
        if _has_entries(self._path):
            self._available()
        else:
            self._unavailable("there is no journal on this node yet")

    def _position(self, reader: journal.Reader) -> None:
        saved = self._cursor.load()
        if isinstance(saved, str):
            with suppress(OSError, ValueError):  # rubbish instead of a cursor is a ValueError
                reader.seek_cursor(saved)
                if reader.get_next() and reader.test_cursor(saved):
                    return
            self._report_loss("the journal no longer has the place where reading stopped")
        reader.seek_tail()
        if last := reader.get_previous():
            # What is written while nobody listens is read later, also if it is the first.
            self._read_to = str(last["__CURSOR"])
            self._save()
        else:
            reader.seek_realtime(time.time())

    def _close(self) -> None:
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader.fileno())
            self._reader.close()
            self._reader = None

    def _readable(self) -> None:
        reader = self._reader
        if reader is None:
            return
        try:
            reader.process()
            for _ in batch():
                entry = reader.get_next()
                if not entry:
                    self._last_read_ns = time.time_ns()
                    return
                self._entry(entry)
        except OSError as error:
            asyncio.get_running_loop().remove_reader(reader.fileno())
            self._fail(f"cannot read the journal: {error.strerror}", self._last_read_ns)
            return
        asyncio.get_running_loop().call_soon(self._readable)

    def _entry(self, entry: dict[str, Any]) -> None:
        if self.status.state is not SourceState.OK:
            self._available()
        self._read_to = str(entry["__CURSOR"])
        message = entry.get("MESSAGE")
        past = None if entry.get("_BOOT_ID") == self._boot else _when(entry)
        if entry.get("_TRANSPORT") != "kernel":
            self._healer_entry(entry, message, past)
            return
        facility = entry.get("SYSLOG_FACILITY")
        if not isinstance(message, str) or not isinstance(facility, int):
            return  # binary or repeated fields are not how journald stores a kernel message
        since_boot = entry.get("_SOURCE_MONOTONIC_TIMESTAMP")
        time_us = None
        if isinstance(since_boot, timedelta):
            time_us = since_boot // timedelta(microseconds=1)
        if self._take(message, time_us, facility=facility, past=past):
            self._save()

    def _healer_entry(self, entry: dict[str, Any], message: object, past: str | None) -> None:
        unit = entry.get("_SYSTEMD_UNIT")
        if isinstance(unit, str) and isinstance(message, str):
            line = xfs_healer.read(unit, message)
            if line is not None:
                if past is None:
                    self._on_healer(line)
                elif not line.refused:
                    detail = f"{past}: {line.detail}"
                    self._emit(line.klass, detail, confirms=False, fstype="xfs", past=True)
                self._save()

    def _save(self) -> None:
        if self._read_to is not None and self._read_to != self._saved:
            self._cursor.save(self._read_to)
            self._saved = self._read_to

    async def _look_regularly(self) -> None:
        # On some filesystems the journal cannot tell of changes; and a first journal may appear.
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._readable()
            self._save()  # what was read long ago may be vacuumed


def _when(entry: dict[str, Any]) -> str:
    written = entry.get("__REALTIME_TIMESTAMP")
    if not isinstance(written, datetime):
        return "before this boot"
    return f"before this boot, {written.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _has_entries(path: str | None) -> bool:
    reader = journal.Reader(path=path) if path else journal.Reader()
    try:
        return bool(reader.get_next())
    finally:
        reader.close()
