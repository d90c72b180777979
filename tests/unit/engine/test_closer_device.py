"""A device that only other things rest on: when its incident is over, and when not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import closer
from fswatchd.engine.closer import Closer
from fswatchd.engine.history import boottime_ns
from fswatchd.incidents import Incident
from fswatchd.inventory.model import BlockDevice
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block
from tests.unit import builders

SDA = Devno(8, 0)


class Book:
    """What was closed."""

    def __init__(self, incident: Incident) -> None:
        self.incident = incident
        self.closed: list[str] = []

    def get(self, _: str) -> Incident:
        return self.incident

    def close(self, incident: Incident, *_: object) -> None:
        self.closed.append(incident.incident_id)


async def no_fault(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("quiet_s", "readable", "over"), [(601, True, True), (601, False, False), (60, True, False)]
)
async def test_it_is_over_after_long_quiet_and_reads_that_succeed(
    monkeypatch: pytest.MonkeyPatch, *, quiet_s: int, readable: bool, over: bool
) -> None:
    def read_ends(_: str) -> None:
        if not readable:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(block, "read_ends", read_ends)
    filesystem = builders.filesystem(devno=SDA, device="sda", fstype="block", disk_sequence=7)
    event = builders.event("kmsg", "io_error", fstype="block")
    incident = builders.incident(event, filesystem=filesystem)
    incident = replace(incident, recent=((boottime_ns() - quiet_s * closer.NS, "kmsg", 1),))
    book = Book(incident)
    disk = BlockDevice(devno=SDA, name="sda", kind="disk", disk_sequence=7)
    view = NodeView(devices={SDA: disk})
    under_test = Closer(
        cast("Any", book),
        cast("Any", SimpleNamespace(view=view)),
        cast("Any", SimpleNamespace()),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=no_fault,
    )
    await under_test._look_at(incident)
    assert bool(book.closed) is over
