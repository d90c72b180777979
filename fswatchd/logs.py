"""Logging that never blocks the daemon.

journald may be stopped, or wait for the very disk that is sick, and then a write to it does not
return. Records go through a bounded queue to a thread that writes them; what does not fit is
counted, and the count is logged when there is room again.
"""

from __future__ import annotations

import copy
import logging
import logging.handlers
import os
import queue
import sys

_PENDING = 1000


class _DroppingHandler(logging.handlers.QueueHandler):
    """Puts records into the queue, or counts them."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """See QueueHandler, which would format a traceback here: for that, lines of source are read
        from the disk. The thread that writes does it."""
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """See QueueHandler."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lost = logging.LogRecord(
                __name__,
                logging.WARNING,
                __file__,
                0,
                "%d log lines were dropped",
                (dropped,),
                None,
            )
            try:
                self.queue.put_nowait(lost)
            except queue.Full:
                self._dropped = dropped


def set_up(level: int = logging.INFO) -> logging.handlers.QueueListener:
    """Log to stderr through the queue; `stop` the listener at the end."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_formatter())
    records: queue.Queue[logging.LogRecord] = queue.Queue(_PENDING)
    listener = logging.handlers.QueueListener(records, stream)
    root = logging.getLogger()
    root.handlers[:] = [_DroppingHandler(records)]
    root.setLevel(level)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    listener.start()
    return listener


def _formatter() -> logging.Formatter:
    if "JOURNAL_STREAM" in os.environ:  # systemd.exec(5): stderr is the journal
        return _PriorityFormatter("%(message)s")
    return logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")


_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _PriorityFormatter(logging.Formatter):
    """sd-daemon(3): a priority in angle brackets before each line."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelname, 5)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())
