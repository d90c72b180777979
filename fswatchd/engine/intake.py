"""Events in, incidents out: attribution, de-duplication, joining, storing, publishing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from hashlib import blake2b

from fswatchd.book import IncidentBook
from fswatchd.engine import mounted_again
from fswatchd.engine.attribution import Attribution, attribute
from fswatchd.engine.hearing import Hearing
from fswatchd.engine.naming import Naming
from fswatchd.engine.stream import EventStream
from fswatchd.events import Domain, EventClass, FsEvent, Lost, domain_of, is_of_device
from fswatchd.incidents import Filesystem, Incident, Outcome
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import kmsg
from fswatchd.kernel.logclock import log_clock
from fswatchd.repair import scratch
from fswatchd.sources.quota import limits_after
from fswatchd.sources.state import StateSource
from fswatchd.sources.xfs_healer import GIVEN_UP, HEALER
from fswatchd.store.store import Store, StoredEvent

log = logging.getLogger(__name__)

_RECORDS_KEPT = 8192
_DIGEST_S = 0.002
_IDLE_SHARE = 3.0  # after a look that lines have asked for: so many times what that took
_ATTACHED_KNOWN_S = 1.0  # lines of before come in thousands
_AGAIN_S = (1.0, 60.0)  # after a failure to do so: at first, and at most, doubled each time


class Intake:
    """The sink of all sources."""

    def __init__(
        self, store: Store, book: IncidentBook, inventory: Inventory, stream: EventStream
    ) -> None:
        self._store = store
        self._book = book
        self._inventory = inventory
        self._stream = stream
        # Of the newest records of the kernel log, which two sources read: digests, they are long.
        self._records: OrderedDict[bytes, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unplaced: list[tuple[FsEvent, Attribution]] = []
        self._placing = False
        self._reading_everything = False
        self._lost_more = False
        self._rests_until = 0.0
        self._again: asyncio.TimerHandle | None = None
        self._again_s = _AGAIN_S[0]
        self._on_incident: list[Callable[[str], None]] = []
        self._undigested: list[tuple[StoredEvent, Attribution]] = []
        self._since_ns = time.monotonic_ns()
        # Of loop devices and the like, read where it matters: see _is_of_another.
        self._attached_us: dict[str, int] = {}
        self._looked = -_ATTACHED_KNOWN_S
        self.state: StateSource | None = None
        self.hearing: Hearing | None = None
        self.naming: Naming | None = None

    def subscribe(self, on_incident: Callable[[str], None]) -> None:
        """Be told the id of every incident that an event has opened or joined."""
        self._on_incident.append(on_incident)

    def remember_records(self, records: list[str]) -> None:
        """Records that an earlier run of the daemon has handled."""
        self._records.update(dict.fromkeys(map(_fingerprint, records)))

    def event(self, event: FsEvent) -> None:
        """See sources.Sink."""
        hearing = self.hearing
        if hearing is not None and event.devno is not None and event.devno == hearing.devno:
            hearing.heard(event.source, None)
            return
        if event.record is not None and self._is_copy(event.record):
            return
        if event.past:
            self._tell(event)
            return
        if self._is_of_another(event):
            detail = f"before {event.device} was attached as it is now: {event.detail}"
            self._tell(replace(event, detail=detail, past=True))
            return
        if event.device is not None and scratch.is_ours(event.device, _happened_ns(event)):
            return  # a clone that a repair works on; its findings are the repair's to tell
        found = attribute(event, self._inventory.view)
        devno = found.filesystem.devno
        nowhere = devno and devno not in self._inventory.view.devices
        if (
            found.superblock is None
            and nowhere
            and self._book.find(found.filesystem, domain_of(event.klass)) is None
        ):
            # Mounted a moment ago, perhaps: look again before deciding that nobody owns it.
            self._place_later(event, found)
            return
        self._accept(event, found)

    def report(self, event: FsEvent, found: Attribution) -> None:
        """An event whose place is known already."""
        self._accept(event, found)

    def lost(self, lost: Lost) -> None:
        """See sources.Sink: whatever was missed, the state of everything tells."""
        log.warning("%s lost %s: %s", lost.source, lost.count or "an unknown number", lost.reason)
        self._lost_more = True
        if not self._reading_everything and self._again is None:
            self._begin_reading_everything()

    def canary(self, source: str, token: str) -> None:
        """See sources.Sink."""
        if self.hearing is not None:
            self.hearing.heard(source, token)

    async def catch_up(self) -> None:
        """Join what was stored with an open incident before a crash, and not seen in it any more.

        Events are stored at once, incidents some milliseconds later; the sources have noted that
        they reported these events, and will not do it again.
        """
        for incident in self._book.open_incidents():
            missed = await self._store.events_of(incident.incident_id, incident.cursor)
            for stored in missed:
                self._join(stored)

    async def settle(self) -> None:
        """Wait until everything that was heard has been dealt with.

        But for what was missed and cannot be read: the next start reads all.
        """
        self._digest_all()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._digest_all()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _is_copy(self, record: str) -> bool:
        known = _fingerprint(record)
        if known in self._records:
            return True
        self._records[known] = None
        if len(self._records) > _RECORDS_KEPT:
            self._records.popitem(last=False)
        return False

    def _place_later(self, event: FsEvent, found: Attribution) -> None:
        """One look for all that wait for one: of a disk that nobody here knows lines may come by
        the thousand, and what is to be decided waits for looks too."""
        self._unplaced.append((event, found))
        if not self._placing:
            self._placing = True
            self._later(self._place())

    async def _place(self) -> None:
        try:
            while self._unplaced:
                events, self._unplaced = self._unplaced, []
                begin = time.monotonic()
                try:
                    await self._inventory.refresh()
                except Exception:  # a task border: their records are known as read
                    log.exception("whose %s is cannot be read again", events[0][0].device)
                for event, before in events:
                    # The first of them may have opened what the others belong to.
                    found = attribute(event, self._inventory.view)
                    self._accept(event, before if _is_gone(before, found) else found)
                if self._unplaced:
                    await asyncio.sleep(_IDLE_SHARE * (time.monotonic() - begin))
        finally:
            self._placing = False

    async def _read_everything(self) -> None:
        try:
            while self._lost_more:
                # While a log is flooded more is lost all the time: not for that alone a processor.
                await asyncio.sleep(max(self._rests_until - time.monotonic(), 0.0))
                self._lost_more = False
                begin = time.monotonic()
                try:
                    await self._inventory.refresh(forget=True)
                finally:
                    if self.state is not None:
                        await self.state.check_all()
                    end = time.monotonic()
                    # Also for a loss after this: the reading itself may have been its reason.
                    self._rests_until = end + _IDLE_SHARE * (end - begin)
        except Exception:  # a task border: what was missed stays to be read
            log.exception("not all that was missed could be read, again in %g s", self._again_s)
            self._lost_more = True
            self._read_again_later()
        else:
            self._again_s = _AGAIN_S[0]
        finally:
            self._reading_everything = False

    def _begin_reading_everything(self) -> None:
        self._again = None
        self._reading_everything = True
        self._later(self._read_everything())

    def _read_again_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._again = loop.call_later(self._again_s, self._begin_reading_everything)
        self._again_s = min(2 * self._again_s, _AGAIN_S[1])

    def _accept(self, event: FsEvent, found: Attribution) -> None:
        """Store first: what the event means for its incident can wait some milliseconds.

        Two threads of Python do not run at once: going on here would hold up the store's.
        """
        event = _completed(event, found.filesystem)
        cursor = self._store.next_cursor()
        stored = StoredEvent(
            cursor=cursor,
            event=event,
            ves=tuple(found.ves),
            incident_id=self._incident_for(event, found, cursor),
        )
        self._store.add_event(stored, self._publish)
        if not self._undigested:
            asyncio.get_running_loop().call_later(_DIGEST_S, self._digest_all)
        self._undigested.append((stored, found))

    def _tell(self, event: FsEvent) -> None:
        """Keep it for people only: nothing that is there now is what it is about.

        No incident: the fault of a filesystem that nobody can name any more would never end. What
        is still wrong the source `state` finds, which reads every filesystem when we start, and
        says what has it now.
        """
        event = replace(event, device=None, devno=None, server=None, lost=None)
        cursor = self._store.next_cursor()
        stored = StoredEvent(cursor=cursor, event=event, ves=(), incident_id=None)
        self._store.add_event(stored, self._publish)

    def _digest_all(self) -> None:
        undigested, self._undigested = self._undigested, []
        for stored, found in undigested:
            self._digest(stored, found)

    def _incident_for(self, event: FsEvent, found: Attribution, cursor: int) -> str | None:
        """The id of the incident that the event belongs to, opened where there is none.

        Nobody sees an incident without the event that has opened it: that one joins at once.
        """
        if not event.klass.is_problem:
            return None
        domain = domain_of(event.klass)
        incident = self._find(found, domain)
        devno = found.filesystem.devno
        if incident is None and devno and found.superblock is None and self._is_from_before(event):
            # A repair that is taken up again has detached the device that the line is about.
            incident = self._book.under_repair(devno, domain)
        if incident is not None and _knows_better(found, incident):
            incident = replace(incident, filesystem=found.filesystem)
            self._book.put(incident)
        written_ns = _written_ns(event)
        if incident is None and devno and written_ns is not None:
            # On a busy node the log is read when all is over: that is no new fault.
            over = self._book.repaired_since(devno, domain, written_ns)
            if over is not None:
                return over
        if incident is None:
            incident = self._book.new(found.filesystem, domain, tuple(found.ves))
            incident = replace(incident, through=tuple(found.through))
            incident = incident.noted(event.time_ns, f"first heard by {event.source}")
            incident = incident.reached("detected", event.mono_ns)
            if found.ves or found.superblock is not None:
                incident = incident.reached("attributed", time.monotonic_ns())
            self._book.put(self._joined(incident, event, cursor))
        return incident.incident_id

    def _find(self, found: Attribution, domain: Domain) -> Incident | None:
        """The open incident, also one of an earlier boot, or of a volume that its VE had put down,
        that nobody has found again yet."""
        incident = self._book.find(found.filesystem, domain)
        if incident is not None:
            return incident
        view, known = self._inventory.view, self._book.open_incidents()
        incident = mounted_again.find(view, known, found.filesystem, domain, found.ves)
        if incident is not None and incident is not self._book.get(incident.incident_id):
            self._book.put(incident)
        return incident

    def _is_from_before(self, event: FsEvent) -> bool:
        """Whether the kernel wrote the line before we were started, so that its device may be
        another one by now."""
        written_ns = _written_ns(event)
        return written_ns is not None and written_ns < self._since_ns

    def _is_of_another(self, event: FsEvent) -> bool:
        """Whether the kernel has attached the device to something since it wrote the line.

        It says so in its log, with the same clock. What was detached only is not another's. Where
        the log does not go back so far, or the kernel had too much to say, nobody can tell.
        """
        written_us = _written_us(event)
        if event.device is None or written_us is None or not self._is_from_before(event):
            return False
        now = time.monotonic()
        if now - self._looked > _ATTACHED_KNOWN_S:
            self._looked = now
            try:
                self._attached_us = kmsg.attachments(kmsg.buffer())
            except (OSError, kmsg.KmsgFormatError) as error:
                log.warning("since when devices are attached cannot be read: %s", error)
        return written_us < self._attached_us.get(kmsg.disk(event.device), 0)

    def _digest(self, stored: StoredEvent, found: Attribution) -> None:
        event = stored.event
        if stored.incident_id is not None:
            self._join(stored)
            if self.naming is not None and found.superblock is not None:
                self.naming.heard(event, stored.incident_id, found.superblock)
        elif event.klass is EventClass.RECOVERED:
            self._all_clear(event, found)
        if event.source != "state" and found.superblock is not None and self.state is not None:
            # The kernel's state confirms or refutes what was heard.
            self.state.check_soon(found.superblock.devno)

    def _join(self, stored: StoredEvent) -> None:
        event = stored.event
        incident = self._book.get(stored.incident_id or "")
        if incident is None:
            return  # closed in this very turn: the event is stored with it
        if incident.cursor < stored.cursor:
            incident = self._joined(incident, event, stored.cursor)
            self._book.put(incident)
        if _is_older_than_repair(event, incident):
            return
        for callback in self._on_incident:
            callback(incident.incident_id)

    def _joined(self, incident: Incident, event: FsEvent, cursor: int) -> Incident:
        """The incident with the event in it, and in its story where that says something new."""
        before = (incident.klass, incident.severity, incident.confirmed)
        fresh = event.source not in incident.sources
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        incident = incident.joined(event, now, cursor).on_clock(*self._book.clock())
        if event.source == "quota":
            incident = replace(incident, limits=limits_after(incident.limits, event.detail))
        gives_up = event.detail.startswith(HEALER) and event.detail.endswith(GIVEN_UP)
        if fresh or gives_up or before != (incident.klass, incident.severity, incident.confirmed):
            confirms = " (confirms)" if event.confirms else ""
            incident = incident.noted(event.time_ns, f"{event.source}: {event.detail}{confirms}")
        return incident

    def _all_clear(self, event: FsEvent, found: Attribution) -> None:
        domain = Domain.QUOTA if event.source == "quota" else Domain.REMOTE
        incident = self._find(found, domain)
        if incident is not None and domain is Domain.QUOTA:
            # Each is told of by itself: the last one that is below again ends it.
            left = limits_after(incident.limits, event.detail)
            if left:
                incident = replace(incident, limits=left)
                self._book.put(incident.noted(event.time_ns, f"{event.source}: {event.detail}"))
                return
        if incident is not None:
            self._book.close(incident, Outcome.RECOVERED, f"{event.source}: {event.detail}")

    def _publish(self, stored: StoredEvent, committed_ns: int | None) -> None:
        # Without a time it was not kept; readers get it all the same, and see that.
        self._stream.publish(replace(stored, stored_ns=committed_ns or 0))

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("an event could not be handled", exc_info=task.exception())


def _fingerprint(record: str) -> bytes:
    return blake2b(record.encode(errors="replace"), digest_size=16).digest()


def _is_older_than_repair(event: FsEvent, incident: Incident) -> bool:
    """Whether it happened before the repair, and was only read, or handled, afterwards.

    A repair shuts the damaged filesystem down, and the kernel says so. The next mount often gets
    the same loop device, so a late line would look like a relapse. A scrub meets the damage that
    it mends.
    """
    repaired_ns = incident.reached_ns("repaired")
    return repaired_ns is not None and _happened_ns(event) < repaired_ns


def _written_us(event: FsEvent) -> int | None:
    """When the kernel wrote the line, by the log's own clock; None where the event is none."""
    written_us, _, _ = (event.record or "").partition(":")
    return int(written_us) if written_us.isdecimal() else None


def _written_ns(event: FsEvent) -> int | None:
    """The same by CLOCK_MONOTONIC."""
    written_us = _written_us(event)
    return None if written_us is None else log_clock.monotonic_ns(written_us)


def _happened_ns(event: FsEvent) -> int:
    """When the kernel wrote the line, or when we heard of it (CLOCK_MONOTONIC)."""
    written_ns = _written_ns(event)
    return event.mono_ns if written_ns is None else written_ns


def _is_gone(before: Attribution, found: Attribution) -> bool:
    """Whether a device is nobody's by now, or another's: a mount that fails gives its loop device
    back at once."""
    if found.superblock is None and not found.ves:
        return True
    was, now = before.filesystem.disk_sequence, found.filesystem.disk_sequence
    return bool(was) and bool(now) and was != now


def _knows_better(found: Attribution, incident: Incident) -> bool:
    """Whether what is mounted says what the incident has only from a line about a bare device.

    The line may be one of another type, of what had the device before: its tools are not for this.
    """
    known = incident.filesystem
    return (
        found.superblock is not None
        and known.uuid is None
        and (known.fstype, known.image) != (found.filesystem.fstype, found.filesystem.image)
    )


def _completed(event: FsEvent, filesystem: Filesystem) -> FsEvent:
    """The event with what attribution has found out about its device."""
    device = filesystem.device or event.device
    # What the block layer says of the device stays known as such: no filesystem has said it.
    of_device = is_of_device(event.klass, event.fstype)
    fstype = event.fstype if of_device else event.fstype or filesystem.fstype
    if (event.devno, event.device, event.fstype) == (filesystem.devno, device, fstype):
        return event
    return replace(event, devno=filesystem.devno, device=device, fstype=fstype)
