"""Want of room ends with the room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.engine.closer import Closer
from fswatchd.engine.history import boottime_ns
from fswatchd.events import Domain
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.view import NodeView
from fswatchd.repair import verify
from tests.unit import builders
from tests.unit.inventory.test_lookup import superblock

CAUSE = {"kind": "space", "object": "xfs /vz (loop0)", "text": "it is full", "since": "now"}
OVER = {**CAUSE, "until": "2100-01-01T00:00:00Z"}


class Book:
    """One incident, and perhaps another one of its filesystem."""

    def __init__(self, incident: Incident, damage: Incident | None = None) -> None:
        self.incident = incident
        self.damage = damage
        self.closed: list[tuple[Outcome, str]] = []

    def get(self, _incident_id: str) -> Incident:
        return self.incident

    def find(self, _filesystem: object, _domain: Domain) -> Incident | None:
        return self.damage

    def close(self, _incident: Incident, outcome: Outcome, why: str) -> None:
        self.closed.append((outcome, why))


async def look(
    incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    *,
    room: bool | None = True,
    unwell: str | None = None,
    damage: Incident | None = None,
) -> list[tuple[Outcome, str]]:
    async def healthy(*_: object, **__: object) -> str | None:
        return unwell

    async def has_room(_superblock: object) -> bool | None:
        return room

    monkeypatch.setattr(verify, "healthy", healthy)
    book = Book(incident, damage)
    one = replace(superblock(3), disk_sequence=42)
    closer = Closer(
        cast("Any", book),
        cast(
            "Any", SimpleNamespace(view=NodeView(superblocks={one.devno: one}), refresh=refreshed)
        ),
        cast("Any", SimpleNamespace(health=lambda _: None)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=has_room,
        device_fault=cast("Any", None),
    )
    await closer._look_at(incident.incident_id)
    return book.closed


def full(source: str = "state", ago_s: int = 0, **more: Any) -> Incident:
    found = builders.incident(builders.event(source, "space"), domain=Domain.SPACE, **more)
    return replace(found, recent=((boottime_ns() - ago_s * 1_000_000_000, source, 1),))


@pytest.mark.parametrize(
    ("make", "room", "closed"),
    [
        pytest.param(full, True, True, id="a fact that is over"),
        pytest.param(full, False, False, id="a fact that is not"),
        pytest.param(full, None, False, id="nobody can tell"),
        pytest.param(partial(full, "kmsg"), True, False, id="a line of a moment ago"),
        pytest.param(partial(full, "kmsg", ago_s=3600), True, True, id="a line of an hour ago"),
        pytest.param(partial(full, "kmsg", ago_s=3600), False, False, id="full for an hour"),
        pytest.param(partial(full, cause=CAUSE), True, False, id="what is beneath comes first"),
    ],
)
async def test_a_full_filesystem_is_well_when_it_has_room(
    make: Callable[[], Incident],
    room: bool | None,
    closed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made here and not before the first test: a moment ago is a moment ago."""
    assert bool(await look(make(), monkeypatch, room=room)) is closed


async def test_what_waited_for_room_recovers_and_says_what_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = builders.event("kmsg", "data_loss", lost=builders.lost_write(inode=133, offset=0))
    ((outcome, why),) = await look(builders.incident(lost, cause=OVER), monkeypatch)
    assert outcome is Outcome.RECOVERED
    assert "what was written meanwhile is lost: inode 133, from byte 0 on" in why


async def test_want_of_room_ends_where_the_damage_it_has_done_is_another_incident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage = builders.incident(incident_id="damage")
    unwell = {"unwell": "the superblock has the option emergency_ro"}
    ((outcome, why),) = await look(full(cause=OVER), monkeypatch, damage=damage, **unwell)
    assert (outcome, "damage" in why) == (Outcome.RECOVERED, True)
    assert await look(full(cause=OVER), monkeypatch, damage=None, **unwell) == []


async def test_damage_that_the_want_of_room_has_done_does_not_recover_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage = builders.incident(builders.event("state", "readonly"), cause=OVER, state=State.OPEN)
    assert await look(damage, monkeypatch, unwell="it is read-only") == []


async def refreshed() -> None:
    """Everything is as it was."""
