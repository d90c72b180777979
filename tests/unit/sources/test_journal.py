"""Entries as python-systemd gives them; the journal itself is in tests/system."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from fswatchd.events import EventClass
from fswatchd.kernel import proc
from fswatchd.kernlog.grammar import shipped
from fswatchd.sources.journal import JournalSource
from fswatchd.sources.xfs_healer import HealerLine
from tests.collected import Collected

EARLIER = UUID("0f0f0f0f-1234-4321-8765-0123456789ab")
WRITTEN = "before this boot, 2026-11-21T06:35:59Z"
KERNEL = {
    "_TRANSPORT": "kernel",
    "SYSLOG_FACILITY": 0,
    "_SOURCE_MONOTONIC_TIMESTAMP": timedelta(seconds=5),
    "MESSAGE": "XFS (loop3): Metadata corruption detected at xfs_agi_verify+0x1/0x2",
}
HEALER = {
    "_TRANSPORT": "stdout",
    "_SYSTEMD_UNIT": "xfs_healer@srv-vz.service",
    "MESSAGE": "/srv/vz agno 0x5 bnobt: sick",
}


class Kept:
    def __init__(self) -> None:
        self.cursor: object | None = None

    def load(self) -> object | None:
        return self.cursor

    def save(self, value: object) -> None:
        self.cursor = value


class Read:
    """What comes of one entry."""

    def __init__(self, entry: dict[str, Any]) -> None:
        sink, kept = Collected(), Kept()
        self.healer: list[HealerLine] = []
        source = JournalSource(sink, shipped(), kept, on_healer=self.healer.append)
        written = datetime(2026, 11, 21, 6, 35, 59, tzinfo=UTC)
        source._entry({"__CURSOR": "s=1", "__REALTIME_TIMESTAMP": written, **entry})
        self.events, self.kept = sink.events, kept.cursor == "s=1"


def test_a_line_of_this_boot_is_about_its_device() -> None:
    read = Read(KERNEL | {"_BOOT_ID": UUID(proc.boot_id())})
    (found,) = read.events
    assert (found.device, found.past, found.detail) == ("loop3", False, KERNEL["MESSAGE"])
    assert read.kept


# A field that is there twice is a list.
@pytest.mark.parametrize("boot", [EARLIER, [EARLIER, EARLIER], b"rubbish", None])
def test_a_line_of_another_boot_says_so_and_is_not_read_again(boot: object) -> None:
    read = Read(KERNEL | {"_BOOT_ID": boot})
    (found,) = read.events
    assert (found.klass, found.past) == (EventClass.CORRUPTION, True)
    assert found.detail == f"{WRITTEN}: {KERNEL['MESSAGE']}"
    assert read.kept


def test_a_healer_of_this_boot_is_about_what_is_mounted_there() -> None:
    read = Read(HEALER | {"_BOOT_ID": UUID(proc.boot_id())})
    assert [line.mountpoint for line in read.healer] == ["/srv/vz"]
    assert read.events == []


def test_a_healer_of_another_boot_is_not_about_what_is_mounted_there_now() -> None:
    read = Read(HEALER | {"_BOOT_ID": EARLIER})
    (found,) = read.events
    assert read.healer == []
    assert (found.klass, found.device, found.past) == (EventClass.CORRUPTION, None, True)
    assert found.detail == f"{WRITTEN}: xfs_healer: {HEALER['MESSAGE']}"
    assert read.kept


def test_that_a_healer_of_another_boot_was_refused_says_nothing_of_our_monitors() -> None:
    said = "/srv/vz: XFS health monitoring already running."
    read = Read(HEALER | {"_BOOT_ID": EARLIER, "MESSAGE": said})
    assert (read.healer, read.events) == ([], [])
