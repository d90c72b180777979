"""Begins and ends storms: one incident for many VEs that have failed at once (see `storm`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from fswatchd import storm
from fswatchd.book import IncidentBook
from fswatchd.engine.history import History, boottime_ns
from fswatchd.events import Domain, Severity
from fswatchd.incidents import Filesystem, Incident, Outcome, State
from fswatchd.rules.model import Storm
from fswatchd.situation import StormState
from fswatchd.summary import names
from fswatchd.units import show_duration


class Storms:
    """Counts the VEs that fail; `poke` is asked to decide about an incident, `poke_all` about all.

    Not counted is what only suffers from something beneath it, which is waited for anyway, and what
    is less than an error.
    """

    def __init__(
        self,
        book: IncidentBook,
        history: History,
        poke: Callable[[str], None],
        poke_all: Callable[[], None],
    ) -> None:
        self._book = book
        self._history = history
        self._poke = poke
        self._poke_all = poke_all
        self._timer: asyncio.TimerHandle | None = None
        self.settings: Storm | None = None
        book.subscribe(self._changed)

    def state(self) -> StormState | None:
        """The storm that goes on, None where there is none."""
        found = self._incident()
        if found is None:
            return None
        text = f"{len(found.ves)} VEs have failed at once: nothing is repaired until that is over"
        return StormState(incident_id=found.incident_id, text=text)

    def failed(self, incident: Incident, total: int) -> None:
        """It was decided for the first time about an incident; the node has `total` VEs."""
        if incident.domain is not Domain.DAMAGE or _has_known_cause(incident):
            return
        if incident.severity < Severity.ERROR:
            return
        if incident.requested_by and not incident.counts:
            return  # nothing has failed: somebody has asked
        for ve in incident.direct_ves:
            self._history.failed(ve)
        if self.settings is None:
            return
        ves = storm.failing(self.settings, self._history.failed_ns, boottime_ns())
        known = self._incident()
        if known is not None:
            self._grow(known, ves)
        elif storm.breaks_out(self.settings, len(ves), total):
            self._begin(self.settings, ves)

    def follow(self, settings: Storm | None) -> None:
        """The rules say something else about storms."""
        self.settings = settings
        self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, settings: Storm, ves: tuple[str, ...]) -> None:
        incidents = self._incidents_of(ves)
        nothing = Filesystem(devno=None, device=None, fstype=None)
        text = (
            f"{len(ves)} VEs have failed within {show_duration(settings.window)} "
            f"({names(ves)}): {storm.likely_cause(incidents)}"
        )
        found = self._book.new(nothing, Domain.STORM, ves)
        found = replace(
            found,
            through=ves,
            classes=frozenset(klass for one in incidents for klass in one.classes),
            severity=Severity.CRITICAL,
            confirmed=True,
            sources=("policy",),
            channels=tuple(dict.fromkeys(name for one in incidents for name in one.channels)),
            consequences=tuple(one.incident_id for one in incidents),
        )
        self._book.put(found.noted(time.time_ns(), text))
        self._poke(found.incident_id)
        self._poke_all()
        self._look_later()

    def _grow(self, known: Incident, ves: tuple[str, ...]) -> None:
        new = tuple(ve for ve in ves if ve not in known.ves)
        more = tuple(
            one.incident_id
            for one in self._incidents_of(ves)
            if one.incident_id not in known.consequences
        )
        if new or more:
            grown = replace(
                known,
                ves=(*known.ves, *new),
                through=(*known.through, *new),
                consequences=(*known.consequences, *more),
            )
            self._book.put(grown)
        self._look_later()

    def _incident(self) -> Incident | None:
        return self._book.find_key("name:::", Domain.STORM)

    def _incidents_of(self, ves: tuple[str, ...]) -> list[Incident]:
        wanted = set(ves)
        return [
            one
            for one in self._book.open_incidents()
            if one.domain is Domain.DAMAGE
            and not _has_known_cause(one)
            and not wanted.isdisjoint(one.direct_ves)
        ]

    def _look_later(self) -> None:
        """Look when it may be over."""
        self.stop()
        if self._incident() is None:
            return
        left_s = 0.0
        if self.settings is not None:
            after_s = storm.over_after_s(self.settings, self._history.failed_ns, boottime_ns())
            if after_s is None:
                return
            left_s = after_s
        self._timer = asyncio.get_running_loop().call_later(left_s, self._look)

    def _look(self) -> None:
        self._timer = None
        found, left_s = self._incident(), 0.0
        if found is None:
            return
        text = "the rules know no storms any more"
        if self.settings is not None:
            after_s = storm.over_after_s(self.settings, self._history.failed_ns, boottime_ns())
            left_s = 1.0 if after_s is None else after_s
            text = f"no further VE has failed for {show_duration(self.settings.resume or 0.0)}"
        if left_s > 0:
            self._look_later()
        else:
            self._book.close(found, Outcome.RECOVERED, text)

    def _changed(self, before: Incident | None, after: Incident) -> None:
        if _has_known_cause(after) and (before is None or not _has_known_cause(before)):
            self._history.forget_failures(*after.direct_ves)
        if after.domain is not Domain.STORM:
            return
        if after.state is State.CLOSED:
            # Those that have failed until now are settled: the next storm needs others.
            self._history.forget_failures(*self._history.failed_ns)
            asyncio.get_running_loop().call_soon(self._poke_all)
        elif after.state is State.OPEN and "decided" in after.timeline and self._needs_operator():
            asyncio.get_running_loop().call_soon(self._hand_over, after.incident_id)

    def _needs_operator(self) -> bool:
        return self.settings is not None and self.settings.resume is None

    def _hand_over(self, incident_id: str) -> None:
        found = self._book.get(incident_id)
        if found is not None and found.state is State.OPEN:
            found = replace(found, state=State.NEEDS_OPERATOR)
            text = "repairs go on when somebody has looked: fswatch ack"
            self._book.put(found.noted(time.time_ns(), text))


def _has_known_cause(incident: Incident) -> bool:
    return incident.cause is not None and not incident.cause_is_over
