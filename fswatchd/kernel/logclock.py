"""The clock of the kernel's log beside CLOCK_MONOTONIC, by which we know when we did what.

printk() takes its times from local_clock() (kernel/printk/printk.c), which nobody corrects;
CLOCK_MONOTONIC is slewed by NTP. Some ten parts in a million are a second a day. What we write to
the log ourselves, to prove that we hear it, tells how far the two are apart.
"""

from __future__ import annotations

_MOST_NS = 5_000_000  # a writer that was interrupted for longer tells too little


class LogClock:
    """What is known of it; until something was read it counts as CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._written: tuple[str, int] | None = None
        self._ahead_ns = 0

    def wrote(self, token: str, before_ns: int, after_ns: int) -> None:
        """A record with this token was written between these two times (CLOCK_MONOTONIC)."""
        narrow = after_ns - before_ns <= _MOST_NS
        self._written = (token, (before_ns + after_ns) // 2) if narrow else None

    def read(self, token: str, time_us: int) -> None:
        """The record was read, and has this time."""
        if self._written is not None and self._written[0] == token:
            self._ahead_ns = time_us * 1000 - self._written[1]

    def monotonic_ns(self, time_us: int) -> int:
        """What CLOCK_MONOTONIC was when the log's clock was that."""
        return time_us * 1000 - self._ahead_ns


log_clock = LogClock()
"""The one of this kernel."""
