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
from fswatchd.engine.said_well import SaidWell
from fswatchd.errors import ConflictError, RefusedError
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.model import BlockDevice
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block
from fswatchd.repair import verify
from tests.unit import builders
from tests.unit.inventory.test_lookup import superblock

SDA = Devno(8, 0)


class Book:
    """What was closed."""

    def __init__(self, incident: Incident) -> None:
        self.incident = incident
        self.closed: list[str] = []

    def get(self, _: str) -> Incident:
        return self.incident

    def put(self, incident: Incident) -> None:
        self.incident = incident

    def close(self, incident: Incident, outcome: Outcome, text: str) -> Incident:
        self.closed.append(text)
        self.incident = replace(incident, state=State.CLOSED, outcome=outcome)
        return self.incident


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
        cast("Any", SimpleNamespace(view=view, refresh=refreshed, problems={})),
        cast("Any", SimpleNamespace()),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=no_fault,
    )
    await under_test._look_at(incident.incident_id)
    assert bool(book.closed) is over


class Disk:
    """A disk with an incident of its own, 60 s after its last error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fault: str | None = None
        self.readable = True
        self.forgotten: list[str] = []
        monkeypatch.setattr(block, "read_ends", self._read_ends)
        filesystem = builders.filesystem(devno=SDA, device="sda", fstype="block", disk_sequence=7)
        event = builders.event("kmsg", "io_error", fstype="block")
        self.book = Book(builders.incident(event, filesystem=filesystem))
        disk = BlockDevice(devno=SDA, name="sda", kind="disk", disk_sequence=7)
        self.view = NodeView(devices={SDA: disk})
        self.said_well = SaidWell(
            cast("Any", self.book),
            cast("Any", SimpleNamespace(view=self.view, refresh=refreshed)),
            cast("Any", SimpleNamespace()),
            forget_volume=self.forgotten.append,
            poke=lambda _: None,
            device_fault=self._fault,
        )

    def _read_ends(self, _: str) -> None:
        if not self.readable:
            raise OSError(5, "Input/output error")

    async def _fault(self, _: object) -> str | None:
        return self.fault

    async def recovered(self) -> Incident:
        return await self.said_well.recovered(self.book.incident, "root", "root says so")


async def test_somebody_says_that_it_has_recovered_and_it_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk(monkeypatch)
    found = await disk.recovered()
    assert (found.state, found.outcome) == (State.CLOSED, Outcome.RECOVERED)
    assert disk.book.closed == ["root says so"]


@pytest.mark.parametrize(
    ("fault", "readable", "text"),
    [
        ("it is offline", True, "/dev/sda has not recovered: it is offline"),
        (None, False, "/dev/sda has not recovered: a read at its begin or end fails"),
    ],
)
async def test_it_says_otherwise_itself(
    monkeypatch: pytest.MonkeyPatch, *, fault: str | None, readable: bool, text: str
) -> None:
    disk = Disk(monkeypatch)
    disk.fault, disk.readable = fault, readable
    before = disk.book.incident
    with pytest.raises(RefusedError) as refused:
        await disk.recovered()
    assert (str(refused.value), refused.value.code) == (text, "FSW-REFUSED-DEVICE")
    assert disk.book.incident == before


async def test_another_error_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    asked = disk.book.incident
    disk.book.incident = asked.joined(builders.event("kmsg", "io_error", fstype="block"), 1)
    with pytest.raises(ConflictError) as refused:
        await disk.said_well.recovered(asked, "root", "root says so")
    assert refused.value.code == "FSW-CONFLICT-GOES-ON"
    assert not disk.book.closed


@pytest.mark.parametrize("unwell", [None, "the filesystem has recorded 3 errors"])
async def test_of_what_is_no_fault_of_a_device_the_filesystem_is_asked(
    monkeypatch: pytest.MonkeyPatch, unwell: str | None
) -> None:
    disk = Disk(monkeypatch)
    disk.readable = False  # nobody asks the device
    mounted = superblock(3)
    disk.said_well._inventory.view = NodeView(  # type: ignore[misc]
        superblocks={mounted.devno: mounted}
    )
    disk.said_well._state = cast("Any", SimpleNamespace(errors=lambda _: 0))

    async def healthy(*_: object, **__: object) -> str | None:
        return unwell

    monkeypatch.setattr(verify, "healthy", healthy)
    disk.book.incident = builders.incident(builders.event("kmsg", "corruption", fstype="xfs"))
    if unwell is None:
        assert (await disk.recovered()).outcome is Outcome.RECOVERED
        assert disk.forgotten == []
        return
    with pytest.raises(RefusedError, match=r"loop3 has not recovered: .*3 errors") as refused:
        await disk.recovered()
    assert refused.value.code == "FSW-REFUSED-UNWELL"
    assert not disk.book.closed


async def test_of_what_is_gone_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    event = builders.event("journal", "io_error", fstype="block")
    gone = builders.filesystem(devno=None, device="sdz1", image=None, image_inode=None)
    disk.book.incident = builders.incident(event, filesystem=gone)
    assert (await disk.recovered()).outcome is Outcome.RECOVERED


async def test_what_the_next_mount_of_an_unmounted_volume_says_is_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk(monkeypatch)
    known = builders.filesystem(unmounted=True)
    disk.book.incident = builders.incident(filesystem=known)
    assert (await disk.recovered()).outcome is Outcome.RECOVERED
    assert disk.forgotten == [known.volume_key]


async def test_of_a_device_that_is_another_one_by_now_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk(monkeypatch)
    disk.fault = "it is offline"
    disk.view.devices[SDA] = BlockDevice(devno=SDA, name="sda", kind="disk", disk_sequence=8)
    assert (await disk.recovered()).outcome is Outcome.RECOVERED


async def refreshed() -> None:
    """Everything is as it was."""
