"""Sources: each hears one channel of the kernel and yields `FsEvent` or `Lost`.

A source never blocks the event loop: it takes as many items a wake-up as `batch` permits and hands
them on at once. It never swallows an overflow, a gap or a stale position: each becomes a `Lost`,
and the daemon reads all states again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from fswatchd.devno import Devno
from fswatchd.events import (
    EventClass,
    FsEvent,
    Lost,
    LostWrite,
    Severity,
    SourceState,
    usual_severity,
)

_BATCH = 256
# A decision, or an answer to `fswatch status`, takes tens of wake-ups: between all of them a source
# that is flooded may have its turn.
_BATCH_S = 0.01
_BLIND_KEPT = 16


def batch() -> Iterator[None]:
    """One turn for each item of a wake-up; the end is when others have to get theirs."""
    until = time.monotonic() + _BATCH_S
    for _ in range(_BATCH):
        yield
        if time.monotonic() > until:
            return


class Sink(Protocol):
    """Where sources put what they hear; called from the event loop, returns at once."""

    def event(self, event: FsEvent) -> None:
        """Something was heard."""
        ...

    def lost(self, lost: Lost) -> None:
        """Something was missed."""
        ...

    def canary(self, source: str, token: str) -> None:
        """The source has heard a canary by its token."""
        ...


class Cursor(Protocol):
    """Where a source remembers how far it has read, across restarts of the daemon."""

    def load(self) -> object | None:
        """What was saved last."""
        ...

    def save(self, value: object) -> None:
        """Remember; written together with the events that were handed on before."""
        ...


@dataclass(slots=True)
class SourceStatus:
    """What `fswatch status` shows of a source.

    `blind` holds the latest (since, until, how many were missed or None); `proven_ns` is when a
    canary was last heard. Both are CLOCK_REALTIME nanoseconds. `demanded` says that an admin wants
    it and nothing less.
    """

    name: str
    state: SourceState = SourceState.OFF
    detail: str = ""
    events: int = 0
    lost: int = 0
    blind: list[tuple[int, int, int | None]] = field(default_factory=list)
    proven_ns: int | None = None
    demanded: bool = False


class Source:
    """What all sources share: a name, a status, and the way to a sink."""

    name = ""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.status = SourceStatus(self.name)

    async def start(self) -> None:
        """Begin to listen. What cannot work sets the state `unavailable` and says why."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop listening and close everything."""
        raise NotImplementedError

    def expect_canary(self, token: str) -> None:
        """A canary with this token is about to be sent."""

    def blind(self, since_ns: int, count: int | None) -> None:
        """Note that nothing was heard from `since_ns` until now."""
        kept = self.status.blind[-(_BLIND_KEPT - 1) :]
        self.status.blind = [*kept, (since_ns, time.time_ns(), count)]

    def _available(self, detail: str = "") -> None:
        self.status.state, self.status.detail = SourceState.OK, detail

    def _unavailable(self, detail: str) -> None:
        self.status.state, self.status.detail = SourceState.UNAVAILABLE, detail

    def _emit(
        self,
        klass: EventClass,
        detail: str,
        *,
        confirms: bool,
        severity: Severity | None = None,
        device: str | None = None,
        devno: Devno | None = None,
        fstype: str | None = None,
        errno: int | None = None,
        count: int = 1,
        record: str | None = None,
        server: str | None = None,
        lost: LostWrite | None = None,
        past: bool = False,
    ) -> None:
        self.status.events += 1
        self._sink.event(
            FsEvent(
                source=self.name,
                klass=klass,
                severity=usual_severity(klass) if severity is None else severity,
                confirms=confirms,
                time_ns=time.time_ns(),
                mono_ns=time.monotonic_ns(),
                detail=detail,
                device=device,
                devno=devno,
                fstype=fstype,
                errno=errno,
                count=count,
                record=record,
                server=server,
                lost=lost,
                past=past,
            )
        )

    def _report_loss(
        self, reason: str, count: int | None = None, since_ns: int | None = None
    ) -> None:
        now = time.time_ns()
        since = now if since_ns is None else since_ns
        self.status.lost += count or 1
        self.blind(since, count)
        self._sink.lost(
            Lost(source=self.name, since_ns=since, until_ns=now, reason=reason, count=count)
        )

    def _fail(self, reason: str, since_ns: int | None = None) -> None:
        """Reading does not work any more; whoever minds the sources starts this one again."""
        self.status.state, self.status.detail = SourceState.BLIND, reason
        self._report_loss(reason, since_ns=since_ns)
