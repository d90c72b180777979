"""The kernel's log as it is: what was written while nobody listened is read by who listens next."""

from __future__ import annotations

import asyncio

import pytest

from fswatchd.engine import canary
from fswatchd.kernel import kmsg
from fswatchd.kernlog.grammar import shipped
from fswatchd.sources import kmsg as source
from fswatchd.sources.kmsg import KmsgSource
from tests.collected import NothingLost


class Kept:
    """A cursor as it is stored."""

    def __init__(self) -> None:
        self.place: object | None = None

    def load(self) -> object | None:
        return self.place

    def save(self, value: object) -> None:
        self.place = value


class Ear(NothingLost):
    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def canary(self, source: str, token: str) -> None:
        super().canary(source, token)
        self.heard.set()


async def heard(kept: Kept, *expected: str) -> list[str]:
    """What a run hears of these canaries until the last of them."""
    ear = Ear()
    run = KmsgSource(ear, shipped(), kept)
    run.expect_canary(expected[0])
    await run.start()
    canary.write_record(expected[-1])
    async with asyncio.timeout(10):
        await ear.heard.wait()
    await run.stop()
    return ear.canaries


async def first_run(kept: Kept) -> None:
    """One that hears nothing and is killed."""
    run = KmsgSource(NothingLost(), shipped(), kept)
    await run.start()
    place = kept.place
    await run.stop()
    kept.place = place


async def test_what_comes_after_a_first_run_that_heard_nothing_is_not_lost() -> None:
    kept = Kept()
    await first_run(kept)
    canary.write_record("missed")
    assert await heard(kept, "missed", "another") == ["kmsg missed"]


async def test_what_was_there_before_the_first_run_is_not_heard() -> None:
    canary.write_record("before")
    kept = Kept()
    await first_run(kept)
    assert await heard(kept, "now") == ["kmsg now"]


async def test_a_log_that_is_written_faster_than_it_is_read_is_begun_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canary.write_record("before")
    kept = Kept()
    monkeypatch.setattr(source, "_MOST_SKIPPED", 1)
    await first_run(kept)
    assert kept.place is None
    assert await heard(kept, "now") == ["kmsg now"]


async def test_the_place_is_the_last_record() -> None:
    kept = Kept()
    await first_run(kept)
    *_, last = kmsg.buffer()
    assert isinstance(kept.place, list)
    assert kept.place[1] <= kmsg.parse(last).sequence
