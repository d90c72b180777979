"""A sink that keeps what a source hands on, and what sources remember."""

from __future__ import annotations

from fswatchd.events import FsEvent, Lost


class Collected:
    """See sources.Sink."""

    def __init__(self) -> None:
        self.events: list[FsEvent] = []
        self.losses: list[Lost] = []
        self.canaries: list[str] = []

    def event(self, event: FsEvent) -> None:
        self.events.append(event)

    def lost(self, lost: Lost) -> None:
        self.losses.append(lost)

    def canary(self, source: str, token: str) -> None:
        self.canaries.append(f"{source} {token}")


class NothingLost(Collected):
    """For sources that have no reason to lose anything."""

    def lost(self, lost: Lost) -> None:
        raise AssertionError(lost)


class Memory(dict[str, list[int]]):
    """See sources.probes.Memory."""

    def load(self, volume: str) -> list[int] | None:
        return self.get(volume)

    def save(self, volume: str, seen: list[int]) -> None:
        self[volume] = seen
