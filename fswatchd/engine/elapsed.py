"""For how long something has been over, as far as a clock that nobody sets confirms it.

What is deleted in time must not go because the wall clock was stepped forward. CLOCK_BOOTTIME goes
on by itself, within one boot; what passed before that only the wall clock knows. That is believed
unless it was stepped since the daemon began: then only the time since then counts.
"""

from __future__ import annotations

import time

from fswatchd.book import IncidentBook
from fswatchd.engine.history import boottime_ns
from fswatchd.incidents import Incident

# A clock that is set right is no step, and what is deleted was kept for days.
_STEP_NS = 3600 * 1_000_000_000


class Elapsed:
    """Since the daemon began: make one then."""

    def __init__(self, book: IncidentBook) -> None:
        self._book = book
        self._ahead_ns = book.clock()[1]
        self._begun_ns = boottime_ns()

    def since_closed_ns(self, incident: Incident) -> int:
        """Since the incident was closed; 0 where it is not."""
        if incident.closed_ns is None:
            return 0
        boot, ahead_ns = self._book.clock()
        if incident.clock is None or incident.clock[0] != boot:
            return self.since_ns(incident.closed_ns)
        stepped_ns = ahead_ns - incident.clock[1]
        return time.time_ns() - incident.closed_ns - max(stepped_ns, 0)

    def since_ns(self, then_ns: int) -> int:
        """Since this time of the wall clock, of which nothing else is known."""
        passed_ns = time.time_ns() - then_ns
        if self._book.clock()[1] - self._ahead_ns <= _STEP_NS:
            return passed_ns
        return min(passed_ns, boottime_ns() - self._begun_ns)
