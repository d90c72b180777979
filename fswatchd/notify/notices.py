"""Which change of an incident is told, and to whom."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from typing import Any

from fswatchd import views
from fswatchd.book import IncidentBook
from fswatchd.incidents import Incident, State
from fswatchd.notify.outbox import Outbox
from fswatchd.notify.webhook import Channel
from fswatchd.store.store import Delivery

DRILL = "drill"
_UPDATE_EVERY_S = 10.0
_SETTLE_S = 1.0
_KIND = {
    State.WAITING: "waiting",
    State.VERIFYING: "repaired",
    State.NEEDS_OPERATOR: "needs-operator",
    State.CLOSED: "closed",
}


class Notices:
    """Listens to the book and fills the outbox.

    An incident's channels are those that the `notify` steps of its rule name. Scratch VEs of a
    drill have a channel of their own and never reach another one.
    """

    def __init__(self, book: IncidentBook, outbox: Outbox) -> None:
        self._book = book
        self._outbox = outbox
        self._updated: dict[str, float] = {}
        self._due: dict[str, asyncio.TimerHandle] = {}
        self._busy: set[str] = set()
        self._scratch: dict[str, str] = {}
        self._elsewhere: set[str] = set()
        book.subscribe(self._changed)

    def opened(self, incident: Incident) -> None:
        """The first decision has been made: now it is known whom to tell.

        What waits for a person from the beginning has no later change that would tell so.
        """
        self._tell_of(incident)

    def send(
        self, incident: Incident, kind: str, channels: tuple[str, ...] | None = None
    ) -> list[str]:
        """Tell the incident's channels, or those given; returns whom: nobody while it is muted."""
        if incident.mute is not None:
            return []
        wanted = incident.channels if channels is None else channels
        names = self._resolve(incident, wanted)
        ves = incident.direct_ves
        subject = ves[0] if ves else (incident.filesystem.device or incident.node)
        for name in names:
            data = views.incident(incident)
            self._outbox.send(name, kind, incident.incident_id, subject, data)
        return names

    def tell_of_rules(self, kind: str, node: str, data: Any) -> None:
        """Tell every channel what has become of the rule files."""
        for name in self.channels():
            self._outbox.send(name, kind, "", node, data, about="rules")

    def tell_of_trust(self, kind: str, node: str, data: Any) -> None:
        """Tell every channel that the daemon trusts itself no more, or again."""
        for name in self.channels():
            self._outbox.send(name, kind, "", node, data, about="trust")

    def channels(self) -> list[str]:
        """Those that are configured, without those of drills."""
        return [name for name in self._outbox.names if not name.startswith(f"{DRILL}:")]

    def add_scratch_channel(self, ve_id: str, url: str, secret: bytes | None) -> None:
        """Incidents of this scratch VE are told to this receiver."""
        name = f"{DRILL}:{ve_id}"
        self._scratch[ve_id] = name
        self._outbox.add_channel(Channel(name=name, url=url, secret=secret))

    def remove_scratch_channel(self, ve_id: str) -> None:
        """The drill is over."""
        name = self._scratch.pop(ve_id, None)
        if name is not None:
            self._outbox.remove_channel(name)

    def leave_to_another(self, ve_id: str) -> None:
        """Another daemon handles the drill of this VE, and tells of it.

        For good: an incident may end after its VE has gone, and no other VE gets its id.
        """
        self._elsewhere.add(ve_id)

    def is_of_another(self, incident: Incident) -> bool:
        """Whether it is about nothing but VEs that another daemon handles."""
        ves = incident.direct_ves
        return bool(ves) and self._elsewhere.issuperset(ves)

    def delivered(self, delivery: Delivery) -> None:
        """A notice has arrived."""
        incident = self._book.get(delivery.incident_id)
        if incident is not None:
            self._book.put(incident.reached("notified", time.monotonic_ns()))

    def _resolve(self, incident: Incident, wanted: tuple[str, ...]) -> list[str]:
        if self.is_of_another(incident):
            return []
        # Not those through the stack: an error of the node's own disk is no drill's.
        if any(ve in self._scratch for ve in incident.direct_ves):
            return [self._scratch[ve] for ve in incident.direct_ves if ve in self._scratch]
        return [
            n for n in self.channels() if any(fnmatch.fnmatchcase(n, pattern) for pattern in wanted)
        ]

    def _changed(self, before: Incident | None, after: Incident) -> None:
        if before is None or "decided" not in before.timeline:
            return  # nobody has been told that it exists
        if before.mute is not None and after.mute is None and after.state is not State.CLOSED:
            moved = after.state is not before.mute.state
            self.send(after, _KIND.get(after.state, "updated") if moved else "updated")
            return
        if before.untold or after.untold:
            # The incident of its cause has been told instead. Lost data is told all the same.
            if after.state is State.CLOSED and after.lost:
                self.send(after, "closed")
            return
        if after.part_of is not None and after.part_of == before.part_of:
            return
        if before.channels != after.channels and after.consequences:
            self._tell_others(before, after)
        again = self._tries_again(after)
        moved = before.state is not after.state and after.state in _KIND
        if moved or (_asks(after) and not _asks(before)):
            if not again:
                self.send(after, _KIND[after.state])
        elif _substance(before) != _substance(after):
            self._update(after, 0.0)
        elif _extent(before) != _extent(after):
            self._update(after, _SETTLE_S)  # it grows by many at once
        if after.state is State.CLOSED:
            self._updated.pop(after.incident_id, None)
            self._forget_update(after.incident_id)

    def _tries_again(self, after: Incident) -> bool:
        """Whether it is between two attempts of which the first has ended by waiting for somebody.

        That it waits was told then, and half a minute later is nothing new.
        """
        known = after.incident_id in self._busy
        if after.state is State.WAITING and after.waiting_for == "busy":
            self._busy.add(after.incident_id)
            return known
        if after.state not in {State.OPEN, State.ACTING}:
            self._busy.discard(after.incident_id)
            return False
        return known

    def _tell_others(self, before: Incident, after: Incident) -> None:
        """What came of it concerns people whom its own rule does not name."""
        known = self._resolve(before, before.channels)
        new = [name for name in self._resolve(after, after.channels) if name not in known]
        if new:
            self._tell_of(after, tuple(new))

    def _tell_of(self, incident: Incident, channels: tuple[str, ...] | None = None) -> None:
        """To those who have not heard of it."""
        self.send(incident, "opened", channels)
        if _asks(incident):
            self.send(incident, "waiting", channels)

    def _update(self, incident: Incident, delay_s: float) -> None:
        """Tell of a change, not too often: what is held back is told with the next."""
        incident_id = incident.incident_id
        last = self._updated.get(incident_id, -_UPDATE_EVERY_S)
        delay_s = max(delay_s, last + _UPDATE_EVERY_S - time.monotonic())
        if delay_s <= 0:
            self._forget_update(incident_id)
            self._updated[incident_id] = time.monotonic()
            self.send(incident, "updated")
        elif incident_id not in self._due:
            loop = asyncio.get_running_loop()
            self._due[incident_id] = loop.call_later(delay_s, self._update_late, incident_id)

    def _update_late(self, incident_id: str) -> None:
        del self._due[incident_id]
        incident = self._book.get(incident_id)
        if incident is not None and incident.part_of is None:
            self._updated[incident_id] = time.monotonic()
            self.send(incident, "updated")

    def _forget_update(self, incident_id: str) -> None:
        due = self._due.pop(incident_id, None)
        if due is not None:
            due.cancel()


def _asks(incident: Incident) -> bool:
    return incident.state is State.WAITING and incident.waiting_for == "approval"


def _extent(incident: Incident) -> tuple[int, int]:
    return (len(incident.consequences), len(incident.lost))


def _substance(incident: Incident) -> tuple[object, ...]:
    seen = bool(incident.preview)
    what = (incident.klass, incident.severity, incident.confirmed, seen)
    return (*what, incident.ves, incident.part_of)
