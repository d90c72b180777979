"""What is over, and what has only just begun."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.engine.closer import NS, Closer
from fswatchd.engine.history import boottime_ns
from fswatchd.events import Health
from fswatchd.incidents import Incident
from tests.unit import builders


class Book:
    """What was closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def close(self, incident: Incident, *_: object) -> None:
        self.closed.append(incident.incident_id)


@pytest.mark.parametrize("has_events", [True, False])
def test_an_incident_whose_first_event_has_not_joined_yet_is_not_closed(
    *, has_events: bool
) -> None:
    incident = builders.incident(builders.event("kmsg"), healthy_s=0.001)
    # A machine may have been started just now.
    recent = ((boottime_ns() - NS, "kmsg", 1),) if has_events else ()
    incident = replace(incident, recent=recent, confirmed=False)
    superblock = SimpleNamespace(
        disk_sequence=incident.filesystem.disk_sequence, devno=builders.LOOP3
    )
    inventory = SimpleNamespace(view=SimpleNamespace(superblocks={builders.LOOP3: superblock}))
    state = SimpleNamespace(health=lambda _: Health.OK)
    book = Book()
    closer = Closer(
        cast("Any", book),
        cast("Any", inventory),
        cast("Any", state),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
    )
    closer._look_for_recovery(incident)
    assert bool(book.closed) is has_events
