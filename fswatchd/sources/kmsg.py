"""The kernel's log from /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

Every reader has its own position and every record a sequence number, so a gap is always known.
The position is remembered with the boot id: after a restart of the daemon the records written
meanwhile are read, and those already seen are not.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import suppress
from itertools import islice

from fswatchd.events import SourceState
from fswatchd.kernel import kmsg, proc
from fswatchd.kernlog.grammar import Grammar
from fswatchd.sources import Cursor, Sink, batch
from fswatchd.sources.kernel_lines import KernelLineSource

_RECORD_SIZE = 8192
_SAVE_EVERY_S = 5.0
_MOST_SKIPPED = 1 << 16


class KmsgSource(KernelLineSource):
    """Records of /dev/kmsg."""

    name = "kmsg"

    def __init__(
        self, sink: Sink, grammar: Grammar, cursor: Cursor, path: str = "/dev/kmsg"
    ) -> None:
        super().__init__(sink, grammar)
        self._cursor = cursor
        self._path = path
        self._fd: int | None = None
        self._last: int | None = None
        self._missed = 0
        self._saved: int | None = None
        self._saver: asyncio.Task[None] | None = None
        self._last_read_ns = time.time_ns()

    async def start(self) -> None:
        """See Source."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._unavailable(f"cannot open {self._path}: {error.strerror}")
            return
        self._last = self._resume()
        if self._last is None:
            self._last = _skip(self._fd)
            self._save()  # what is written while nobody listens is read later, if it is the first
        asyncio.get_running_loop().add_reader(self._fd, self._readable)
        self._saver = asyncio.create_task(self._save_regularly())
        self._available()

    async def stop(self) -> None:
        """See Source."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            with suppress(OSError):
                os.close(self._fd)
            self._fd = None
        if self._saver is not None:
            self._saver.cancel()
            with suppress(asyncio.CancelledError):
                await self._saver
        self._save()
        self.status.state = SourceState.OFF

    def _resume(self) -> int | None:
        saved = self._cursor.load()
        if isinstance(saved, list) and len(saved) == 2 and saved[0] == proc.boot_id():
            return int(saved[1])
        return None

    def _readable(self) -> None:
        for _ in batch():
            if self._fd is None:
                return
            try:
                record = kmsg.parse(os.read(self._fd, _RECORD_SIZE))
            except BlockingIOError:
                break
            except kmsg.KmsgFormatError as error:
                self._report_loss(str(error), 1, self._last_read_ns)
                continue
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue  # overwritten before we read it: the next sequence number tells
                asyncio.get_running_loop().remove_reader(self._fd)
                self._fail(f"cannot read {self._path}: {error.strerror}", self._last_read_ns)
                break
            if self._last is None or record.sequence > self._last:
                if self._last is not None:
                    self._missed += record.sequence - self._last - 1
                self._last = record.sequence
                if self._take(record.text, record.time_us, facility=record.facility):
                    self._save()
        # While the kernel writes faster than this reads every few records have a gap: one report.
        if missed := self._missed:
            self._missed = 0
            self._report_loss(f"{missed} records were overwritten", missed, self._last_read_ns)
        self._last_read_ns = time.time_ns()

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            self._save()

    def _save(self) -> None:
        if self._last is not None and self._last != self._saved:
            self._cursor.save([proc.boot_id(), self._last])
            self._saved = self._last


def _skip(fd: int) -> int | None:
    """Go to the end of the log; the number of the last record, None where nobody knows it.

    Only a record tells its number.
    """
    last, skipped = None, 0
    with suppress(OSError, kmsg.KmsgFormatError):
        for raw in islice(kmsg.records(fd), _MOST_SKIPPED):
            last, skipped = raw, skipped + 1
        if last is not None and skipped < _MOST_SKIPPED:
            return kmsg.parse(last).sequence
    os.lseek(fd, 0, os.SEEK_END)  # it is empty, or written faster than it is read
    return None
