"""What is over, and what has only just begun."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.engine.closer import NS, Closer
from fswatchd.engine.history import boottime_ns
from fswatchd.events import Health
from fswatchd.incidents import Incident
from fswatchd.inventory.model import Backing, Superblock
from fswatchd.inventory.view import NodeView
from tests.unit import builders


class Book:
    """What was closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def close(self, incident: Incident, *_: object) -> None:
        self.closed.append(incident.incident_id)


class State:
    """A filesystem that is as it was at the last look, until somebody looks again."""

    def __init__(self, at_the_next_look: Health) -> None:
        self._now, self._next = Health.OK, at_the_next_look

    def check(self, _devno: Devno) -> None:
        self._now = self._next

    def health(self, _devno: Devno) -> Health:
        return self._now


def look(incident: Incident, health: Health = Health.OK) -> bool:
    """Whether the incident is closed."""
    superblock = SimpleNamespace(devno=builders.LOOP3)
    inventory = SimpleNamespace(view=SimpleNamespace(attached=lambda _: superblock))
    book = Book()
    closer = Closer(
        cast("Any", book),
        cast("Any", inventory),
        cast("Any", State(health)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    closer._look_for_recovery(incident)
    return bool(book.closed)


def unconfirmed() -> Incident:
    incident = builders.incident(builders.event("kmsg"), healthy_s=0.001)
    # A machine may have been started just now.
    return replace(incident, recent=((boottime_ns() - NS, "kmsg", 1),), confirmed=False)


@pytest.mark.parametrize("has_events", [True, False])
def test_an_incident_whose_first_event_has_not_joined_yet_is_not_closed(
    *, has_events: bool
) -> None:
    incident = unconfirmed()
    assert look(incident if has_events else replace(incident, recent=())) is has_events


@pytest.mark.parametrize(("health", "closes"), [(Health.OK, True), (Health.SHUTDOWN, False)])
def test_nothing_is_a_false_alarm_on_the_word_of_an_old_look(
    health: Health, *, closes: bool
) -> None:
    """The kernel writes that it shuts a filesystem down before it does."""
    assert look(unconfirmed(), health) is closes


@pytest.mark.parametrize(("kind", "errors"), [("loop", 0), ("device", 5)])
def test_errors_of_an_attachment_are_no_errors_of_the_next_one(kind: str, errors: int) -> None:
    """What a loop device reports came from beneath it; a disk that is back is the same disk."""
    inode = (Devno(8, 1), 77) if kind == "loop" else (None, None)
    again = Superblock(
        devno=builders.LOOP3,
        fstype="ext4",
        device="loop3",
        disk_sequence=43,
        mounts=(),
        backing=Backing(kind=kind, image_devno=inode[0], image_inode=inode[1]),
        uuid=builders.filesystem().uuid,
    )
    known = {} if kind == "loop" else {"image": None, "image_inode": None}
    before = builders.incident(filesystem=builders.filesystem(**known), device_errors=5)
    put: list[Incident] = []
    closer = Closer(
        cast("Any", SimpleNamespace(put=put.append)),
        cast("Any", SimpleNamespace(view=NodeView(superblocks={again.devno: again}))),
        cast("Any", State(Health.OK)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    closer._state._now = Health.DAMAGED  # type: ignore[attr-defined]
    closer._look_for_recovery(before)
    (moved,) = put
    assert (moved.filesystem.disk_sequence, moved.device_errors) == (43, errors)
