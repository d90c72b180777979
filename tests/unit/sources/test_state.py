"""When the probes look, with an inventory that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fswatchd.events import EventClass
from fswatchd.inventory.model import Superblock
from fswatchd.sources import state
from fswatchd.sources.state import StateSource
from tests.collected import Memory, NothingLost
from tests.unit.inventory.test_lookup import NODE, superblock

XFS = replace(superblock(200, (NODE, "/")), fstype="xfs")
EXT4 = superblock(201, (NODE, "/"))


class Mounts:
    """Counts the questions; raises what it is told to, once."""

    def __init__(self) -> None:
        self.options: tuple[str, ...] = ()
        self.failure: Exception | None = None
        self.asked = 0
        self.looked = 0
        self.rounds = 0

    def current_options(self, _: Superblock) -> tuple[str, ...]:
        self.looked += 1
        return self.options

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self.rounds += 1
        yield

    async def root_error(self, _: Superblock) -> int:
        self.asked += 1
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return 5

    btrfs_error = root_error


@pytest.fixture
def mounts() -> Mounts:
    return Mounts()


@pytest.fixture
def sink() -> NothingLost:
    return NothingLost()


@pytest.fixture
async def source(sink, mounts, monkeypatch) -> AsyncIterator[StateSource]:
    monkeypatch.setattr(state, "_HINT_S", 0)
    made = StateSource(sink, mounts, Memory())
    await made.start()
    yield made
    await made.stop()


async def until(question) -> None:
    async with asyncio.timeout(5):
        while not question():
            await asyncio.sleep(0)


async def test_many_hints_are_one_look(source, mounts) -> None:
    source.watch(EXT4)
    before = mounts.looked
    for _ in range(50):
        source.check_soon(EXT4.devno)
    await until(lambda: mounts.looked > before)
    assert mounts.looked == before + 1
    # The kernel may do what it has written only after that.
    await until(lambda: mounts.looked > before + 1)
    await asyncio.sleep(0)
    assert mounts.looked == before + 2


async def test_an_answer_of_the_helper_becomes_an_event(source, sink, mounts) -> None:
    source.watch(XFS)
    await until(lambda: sink.events)
    (found,) = sink.events
    assert (found.klass, found.devno) == (EventClass.SHUTDOWN, XFS.devno)


async def test_a_question_that_breaks_does_not_end_the_asking(source, sink, mounts, caplog) -> None:
    mounts.failure = RuntimeError("a mistake")
    source.watch(XFS)
    await until(lambda: mounts.asked)
    source.check(XFS.devno)
    await until(lambda: sink.events)
    assert "cannot ask the filesystem 7:200" in caplog.text


async def test_what_is_answered_after_the_filesystem_has_gone_is_nothing(
    source, sink, mounts
) -> None:
    source.watch(XFS)
    source.forget(XFS)
    source.watch(EXT4)
    mounts.options = ("emergency_ro",)
    source.check(EXT4.devno)
    await asyncio.sleep(0)
    assert [event.klass for event in sink.events] == [EventClass.READONLY]
    assert mounts.asked == 0


async def test_a_filesystem_whose_probe_is_lost_is_so_until_it_is_handed_in_again(source) -> None:
    source.watch(EXT4)
    assert source.lost() == set()
    source._watched[EXT4.devno].probes[0].lost = True
    assert source.lost() == {EXT4.devno}
    source.watch(EXT4)
    assert source.lost() == set()


async def test_a_look_at_everything_is_one_round_where_it_takes_no_time(
    source, mounts, monkeypatch
) -> None:
    monkeypatch.setattr(state, "_AT_ONCE_S", 60.0)
    for number in range(10):
        source.watch(superblock(number, (NODE, "/")))
    looked, rounds = mounts.looked, mounts.rounds
    await source.check_all()
    assert (mounts.looked - looked, mounts.rounds - rounds) == (10, 1)


async def test_a_look_at_everything_that_takes_long_lets_others_run(
    source, mounts, monkeypatch
) -> None:
    monkeypatch.setattr(state, "_AT_ONCE_S", 0.0)
    for number in range(10):
        source.watch(superblock(number, (NODE, "/")))
    looked = mounts.looked
    at: list[int] = []
    checking = asyncio.create_task(source.check_all())
    while not checking.done():
        await asyncio.sleep(0)
        at.append(mounts.looked - looked)
    assert set(range(1, 11)) <= set(at)
