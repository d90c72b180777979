"""Mutes: incidents that somebody wants to hear nothing of, until a time or until they get worse.

`notify.notices` holds back what is muted; here a mute begins and ends. It is kept with its
incident, and so survives a restart.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from fswatchd.book import IncidentBook
from fswatchd.engine.history import History, boottime_ns
from fswatchd.errors import ConflictError
from fswatchd.incidents import Incident, Mute, State, worse_than_muted

_NS = 1_000_000_000
LONGEST_S = 30 * 86400.0


class Muting:
    """See the module. `resume` once the book is loaded."""

    def __init__(self, book: IncidentBook, history: History) -> None:
        self._book = book
        self._history = history
        self._timers: dict[str, asyncio.TimerHandle] = {}
        book.subscribe(self._changed)

    def resume(self) -> None:
        """Take up the mutes that an earlier run of the daemon has left."""
        for incident in self._book.open_incidents():
            if incident.mute is not None:
                self._wait(incident)

    def mute(self, incident: Incident, by: str, reason: str, for_s: float) -> Incident:
        """Nobody is told of it for so many seconds. Raises ConflictError, ValueError."""
        if not 0 < for_s <= LONGEST_S:
            raise ValueError("an incident can be muted for more than nothing, and at most 30d")
        if incident.state is State.CLOSED:
            raise ConflictError(f"{incident.incident_id} is closed", code="FSW-CONFLICT-CLOSED")
        now, span = time.time_ns(), int(for_s * _NS)
        mute = Mute(
            by=by,
            reason=reason,
            since_ns=now,
            until_ns=now + span,
            expiry=self._history.stamp(boottime_ns() + span),
            classes=incident.classes,
            severity=incident.severity,
            confirmed=incident.confirmed,
            state=incident.state,
            ves=incident.ves,
            lost=len(incident.lost),
        )
        why = f": {reason}" if reason else ""
        incident = replace(incident, mute=mute).noted(now, f"muted by {by}{why}")
        self._book.put(incident, durable=True)
        self._wait(incident)
        return incident

    def unmute(self, incident: Incident, by: str) -> Incident:
        """Tell of it again. Raises ConflictError when it is not muted."""
        if incident.mute is None or incident.state is State.CLOSED:
            raise ConflictError(f"{incident.incident_id} is not muted", code="FSW-CONFLICT-MUTED")
        return self._end(incident, f"unmuted by {by}")

    def stop(self) -> None:
        """Let no mute end any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _changed(self, _before: Incident | None, after: Incident) -> None:
        if after.state is State.CLOSED:
            self._forget(after.incident_id)
        elif worse := worse_than_muted(after):
            self._end(after, f"no longer muted: {worse}")

    def _wait(self, incident: Incident) -> None:
        self._forget(incident.incident_id)
        if incident.mute is None:
            return
        left_s = (self._history.here(incident.mute.expiry) - boottime_ns()) / _NS
        loop = asyncio.get_running_loop()
        # A timer stands still while the node sleeps: it asks again when it rings.
        ring = loop.call_later(max(left_s, 0.0), self._ring, incident.incident_id)
        self._timers[incident.incident_id] = ring

    def _ring(self, incident_id: str) -> None:
        incident = self._book.get(incident_id)
        if incident is None or incident.mute is None:
            return
        if self._history.here(incident.mute.expiry) > boottime_ns():
            self._wait(incident)
        else:
            self._end(incident, "no longer muted: its time is over")

    def _end(self, incident: Incident, why: str) -> Incident:
        self._forget(incident.incident_id)
        incident = replace(incident, mute=None).noted(time.time_ns(), why)
        self._book.put(incident, durable=True)
        return incident

    def _forget(self, incident_id: str) -> None:
        timer = self._timers.pop(incident_id, None)
        if timer is not None:
            timer.cancel()
