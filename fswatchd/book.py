"""The incidents that are not closed, in memory and in the store."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from fswatchd.devno import Devno
from fswatchd.events import Domain
from fswatchd.incidents import Filesystem, Incident, Outcome, State
from fswatchd.kernel import proc
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_SAVE_DELAY_S = 0.05
_REPAIRED_KEPT = 64
_OWED_AGAIN_S = 5.0
_OWED_MOST = 1000
_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"

Listener = Callable[[Incident | None, Incident], None]


@dataclass(frozen=True, slots=True)
class _Repaired:
    """`devices` are all that its filesystem was on; `repaired_ns` is of CLOCK_MONOTONIC."""

    incident_id: str
    domain: Domain
    devices: set[Devno]
    repaired_ns: int


class IncidentBook:
    """One entry per open incident. All changes go through `put`, which saves and tells."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node
        self._boot = proc.boot_id()
        self._open: dict[str, Incident] = {}
        self._by_key: dict[tuple[str, Domain], str] = {}
        self._devices: dict[str, set[Devno]] = {}
        self._repaired: deque[_Repaired] = deque(maxlen=_REPAIRED_KEPT)
        self._dirty: set[str] = set()
        self._flush: asyncio.TimerHandle | None = None
        # What the disk has not taken, as it is now: closed ones too. The oldest goes first.
        self._owed: dict[str, Incident] = {}
        self._owed_again: asyncio.TimerHandle | None = None
        self._listeners: list[Listener] = []
        self._amending = asyncio.Lock()

    async def load(self) -> list[Incident]:
        """Take in what an earlier run of the daemon left open."""
        for incident in await self._store.open_incidents():
            self._remember(incident.on_clock(*self.clock()))
        return list(self._open.values())

    def clock(self) -> tuple[str, int]:
        """The boot, and what CLOCK_REALTIME is ahead of CLOCK_BOOTTIME, in ns."""
        return self._boot, time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def subscribe(self, listener: Listener) -> None:
        """Be told of every change, as (before or None, after)."""
        self._listeners.append(listener)

    def open_incidents(self) -> list[Incident]:
        """All that are not closed, oldest first."""
        return sorted(self._open.values(), key=lambda incident: incident.opened_ns)

    def get(self, incident_id: str) -> Incident | None:
        """An open incident."""
        return self._open.get(incident_id)

    def told_elsewhere(self, incident: Incident) -> bool:
        """Whether the incident is only a part of another one that is open."""
        return incident.part_of in self._open

    def find(self, filesystem: Filesystem, domain: Domain) -> Incident | None:
        """The open incident that an event on this filesystem joins.

        While a repair is under way that is also one of the same image on another device: the kernel
        may still tell of the old one when the VE has been started on the new one.
        """
        found = self.find_key(filesystem.key, domain)
        if found is None and filesystem.image is not None:
            found = next(
                (
                    one
                    for one in self._open.values()
                    if one.state is State.ACTING
                    and (one.domain, one.filesystem.image) == (domain, filesystem.image)
                ),
                None,
            )
        return found

    def under_repair(self, devno: Devno, domain: Domain) -> Incident | None:
        """The incident that is acted on whose filesystem had this device, whoever has it now."""
        acting = (one for one in self._open.values() if one.state is State.ACTING)
        wanted = (devno, None, domain)
        return next(
            (
                one
                for one in acting
                if (one.filesystem.devno, one.filesystem.boot, one.domain) == wanted
            ),
            None,
        )

    def repaired_since(self, devno: Devno, domain: Domain, mono_ns: int) -> str | None:
        """The id of the newest closed incident whose filesystem had this device at a time before
        its repair, so that a line that the kernel wrote then is a part of it."""
        found = (
            one.incident_id
            for one in reversed(self._repaired)
            if one.domain is domain and devno in one.devices and mono_ns < one.repaired_ns
        )
        return next(found, None)

    def find_key(self, key: str, domain: Domain) -> Incident | None:
        """The same by the key of a filesystem (`Filesystem.key`)."""
        incident_id = self._by_key.get((key, domain))
        return self._open.get(incident_id) if incident_id else None

    def new(self, filesystem: Filesystem, domain: Domain, ves: tuple[str, ...]) -> Incident:
        """An incident with nothing in it yet; `put` makes it known."""
        now = time.time_ns()
        return Incident(
            incident_id=_new_id(now),
            node=self._node,
            domain=domain,
            filesystem=filesystem,
            opened_ns=now,
            updated_ns=now,
            ves=ves,
            clock=self.clock(),
        )

    def put(self, incident: Incident, *, durable: bool = False) -> Awaitable[None] | None:
        """Replace the incident; with `durable`, what is returned waits for the disk."""
        if incident.clock is not None and incident.clock[0] != self._boot:
            incident = incident.on_clock(*self.clock())  # a closed one that is taken up again
        before = self._open.get(incident.incident_id)
        if before is not None and before.key != incident.key:
            self._leave_key(before)
        if incident.state is State.CLOSED:
            # What passes from now on can be told without the wall clock, until the next boot.
            incident = incident.on_clock(*self.clock())
            self._open.pop(incident.incident_id, None)
            self._leave_key(incident)
            self._remember_repair(incident)
        else:
            self._remember(incident)
        saved = None
        if durable or before is None or before.state is not incident.state:
            # At once, so that it is on the disk together with the notice of the change.
            self._dirty.discard(incident.incident_id)
            saved = self._save(incident, durable=durable)
        else:
            self._dirty.add(incident.incident_id)
            if self._flush is None:
                loop = asyncio.get_running_loop()
                self._flush = loop.call_later(_SAVE_DELAY_S, self.flush)
        for listener in self._listeners:
            listener(before, incident)
        return saved

    def close(self, incident: Incident, outcome: Outcome, why: str) -> Incident:
        """End the incident; returns it as it is then."""
        now = time.time_ns()
        incident = replace(incident, state=State.CLOSED, outcome=outcome, closed_ns=now)
        incident = replace(incident, waiting_for="")
        incident = incident.noted(now, f"closed, {outcome.value}: {why}")
        self.put(incident)
        return incident

    def note(self, incident_id: str, text: str) -> None:
        """Add a line to the incident's story."""
        incident = self._open.get(incident_id)
        if incident is not None:
            self.put(incident.noted(time.time_ns(), text))

    async def amend(
        self, incident_id: str, change: Callable[[Incident], Incident | None]
    ) -> Incident | None:
        """Change a closed incident as it is kept now; returns it when that is on the disk.

        None, and nothing is changed, where it is open, where the database does not know it as
        closed yet, and where `change` returns None. Raises StoreError.
        """
        async with self._amending:
            found = (await self._store.known_incidents([incident_id])).get(incident_id)
            if found is None or found.state is not State.CLOSED or incident_id in self.newest():
                return None
            changed = change(found)
            if changed is not None:
                await self._store.save_incident(changed, durable=True)
            return changed

    def flush(self) -> None:
        """Save what has changed since the last time."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for incident_id in self._dirty:
            if incident_id in self._open:
                self._save(self._open[incident_id])
        self._dirty.clear()

    def newest(self) -> dict[str, Incident]:
        """All that are open, and closed ones that the database does not know as closed yet."""
        return self._owed | self._open

    def _save(self, incident: Incident, *, durable: bool = False) -> asyncio.Future[None]:
        if incident.incident_id in self._owed:
            self._owed[incident.incident_id] = incident
        saved = self._store.save_incident(incident, durable=durable)
        saved.add_done_callback(partial(self._saved, incident))
        return saved

    def _saved(self, incident: Incident, done: asyncio.Future[None]) -> None:
        name = incident.incident_id
        if done.cancelled():
            return
        if done.exception() is None:
            if self._owed.get(name) is incident:
                del self._owed[name]
                self._save_owed()
            return
        if name not in self._owed or self._owed[name].updated_ns <= incident.updated_ns:
            self._owed[name] = incident
        while len(self._owed) > _OWED_MOST:
            del self._owed[next(iter(self._owed))]
        if self._owed_again is None:
            loop = asyncio.get_running_loop()
            self._owed_again = loop.call_later(_OWED_AGAIN_S, self._save_owed)

    def _save_owed(self) -> None:
        """Try one of what the disk has not taken; when it takes that, the next follows."""
        if self._owed_again is not None:
            self._owed_again.cancel()
            self._owed_again = None
        oldest = next(iter(self._owed.values()), None)
        if oldest is not None:
            self._save(oldest)

    def _remember(self, incident: Incident) -> None:
        """A rollback opens an old incident again, beside the one that events join since."""
        self._open[incident.incident_id] = incident
        joined = self._open.get(self._by_key.get(incident.key, ""))
        if joined is None or joined.opened_ns <= incident.opened_ns:
            self._by_key[incident.key] = incident.incident_id
        if incident.filesystem.devno is not None and incident.filesystem.boot is None:
            devices = self._devices.setdefault(incident.incident_id, set())
            devices.add(incident.filesystem.devno)

    def _leave_key(self, incident: Incident) -> None:
        """Events join it no more, but the newest of the others that are open, if any is."""
        if self._by_key.get(incident.key) != incident.incident_id:
            return
        del self._by_key[incident.key]
        others = [
            one
            for one in self._open.values()
            if one.key == incident.key and one.incident_id != incident.incident_id
        ]
        if others:
            newest = max(others, key=lambda one: one.opened_ns)
            self._by_key[incident.key] = newest.incident_id

    def _remember_repair(self, incident: Incident) -> None:
        devices = self._devices.pop(incident.incident_id, set())
        repaired_ns = incident.reached_ns("repaired")
        if devices and repaired_ns is not None:
            entry = _Repaired(incident.incident_id, incident.domain, devices, repaired_ns)
            self._repaired.append(entry)


def _new_id(now_ns: int) -> str:
    day = time.strftime("%Y%m%d", time.gmtime(now_ns / 1e9))
    return f"{day}-{''.join(secrets.choice(_ALPHABET) for _ in range(5))}"
