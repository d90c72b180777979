"""The healthy period after a repair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fswatchd.book import IncidentBook
from fswatchd.engine import closer as closer_module
from fswatchd.engine.closer import Closer
from fswatchd.incidents import Filesystem, Incident, Outcome, State, StepRecord, StepState
from fswatchd.inventory.view import NodeView
from fswatchd.repair import verify
from fswatchd.store.store import Store
from tests.unit.builders import filesystem, incident
from tests.unit.inventory.test_lookup import superblock

_ANY_BOOT = [1, 10**18]  # of long ago, and of a machine that ran much longer than this one


@pytest.fixture
async def book(tmp_path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[IncidentBook]:
    """A book that a closer looks after, in which everything is healthy."""

    async def healthy(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(verify, "healthy", healthy)
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    made = IncidentBook(store, "hn1")
    one = replace(superblock(3), disk_sequence=42)
    view = NodeView(superblocks={one.devno: one})
    inventory = SimpleNamespace(view=view, refresh=refreshed, problems={})
    closer = Closer(
        made,
        inventory,
        SimpleNamespace(),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=has_room,
        device_fault=no_fault,
    )
    made.subscribe(lambda _, after: after.state is State.VERIFYING and closer.wake())
    task = asyncio.create_task(closer.run())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await store.close()


def verifying(verified_ns: int, healthy_s: float, **more: object) -> Incident:
    timeline = {"repaired": verified_ns, "verified": verified_ns}
    return incident(state=State.VERIFYING, timeline=timeline, healthy_s=healthy_s, **more)


async def no_fault(_device: object) -> None:
    return None


async def has_room(_superblock: object) -> bool:
    return True


async def closed(book: IncidentBook, incident_id: str) -> None:
    while book.get(incident_id) is not None:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("verified_ns", _ANY_BOOT)
async def test_it_ends_whatever_clock_the_milestones_are_of(book, verified_ns: int) -> None:
    found = verifying(verified_ns, 0.05)
    book.put(found)
    async with asyncio.timeout(10):
        await closed(book, found.incident_id)


@pytest.mark.parametrize("verified_ns", _ANY_BOOT)
async def test_it_does_not_end_before_its_time(book, verified_ns: int) -> None:
    found = verifying(verified_ns, 3600.0)
    book.put(found)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await closed(book, found.incident_id)


async def test_a_second_repair_has_a_period_of_its_own(book) -> None:
    """The milestones keep the times of the first one."""
    found = verifying(1, 0.4, attempts=1)
    book.put(found)
    await asyncio.sleep(0.3)
    book.put(replace(found, attempts=2))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await closed(book, found.incident_id)
    async with asyncio.timeout(10):
        await closed(book, found.incident_id)


GONE = filesystem(disk_sequence=41, image="/vz/ve102.raw", image_inode=("8:1", 78))
HERE = filesystem(disk_sequence=41, image_inode=("8:1", 3))  # on another attachment


@pytest.mark.parametrize(
    ("step", "state", "known", "outcome", "text"),
    [
        ("evacuate", StepState.DONE, GONE, Outcome.DISMISSED, "moved away"),
        ("evacuate", StepState.FAILED, GONE, Outcome.DISMISSED, "not known here any more"),
        ("fsck", StepState.DONE, GONE, Outcome.DISMISSED, "not known here any more"),
        ("evacuate", StepState.DONE, HERE, None, "no longer mounted"),
    ],
    ids=["moved", "not-moved", "repaired", "came-back"],
)
async def test_what_was_moved_away_is_meant_to_be_gone(
    book,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    state: StepState,
    known: Filesystem,
    outcome: Outcome | None,
    text: str,
) -> None:
    monkeypatch.setattr(closer_module, "_COMES_BACK_S", 0.0)
    ended: asyncio.Future[Incident] = asyncio.get_running_loop().create_future()

    def heard(_: Incident | None, after: Incident) -> None:
        if after.state is not State.VERIFYING and not ended.done():
            ended.set_result(after)

    book.subscribe(heard)
    book.put(verifying(1, 0.05, filesystem=known, steps=(StepRecord(do=step, state=state),)))
    async with asyncio.timeout(10):
        after = await ended
    assert after.outcome is outcome
    assert after.state is (State.CLOSED if outcome else State.NEEDS_OPERATOR)
    assert text in after.log[-1][1]


async def test_a_ve_that_was_started_again_is_watched_on_its_new_device(book) -> None:
    """Its owner restarts it, or the node: that says nothing against the repair."""
    found = verifying(1, 0.05, filesystem=HERE)
    book.put(found)
    stories: list[str] = []
    book.subscribe(lambda _, after: stories.append(after.log[-1][1]))
    async with asyncio.timeout(10):
        await closed(book, found.incident_id)
    assert "mounted again as loop3, and is watched there" in stories[0]
    assert "healthy for 0 s" in stories[-1]


async def test_one_that_is_not_started_again_is_waited_for(
    book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: that it was stopped is no fault of it."""
    monkeypatch.setattr(closer_module, "_COMES_BACK_S", 0.0)
    monkeypatch.setattr(closer_module, "_SWEEP_S", 0.02)
    monkeypatch.setattr(closer_module, "is_known", lambda *_: True)
    found = verifying(1, 0.05, filesystem=GONE)
    LOOKS.clear()
    book.put(found)
    await asyncio.sleep(0.3)
    assert len(LOOKS) == 1  # a look at the node is not made for it again and again
    kept = book.get(found.incident_id)
    assert kept is not None
    assert kept.state is State.VERIFYING


LOOKS: list[None] = []


async def refreshed() -> None:
    """Everything is as it was."""
    LOOKS.append(None)


OTHER = filesystem(uuid="22222222-2222-3333-4444-555555555555", image=None, image_inode=None)


@pytest.mark.parametrize(
    ("earlier", "ends"),
    [
        ({"filesystem": filesystem(disk_sequence=41)}, True),
        ({"filesystem": filesystem(disk_sequence=41), "ves": ("lxc:renamed",)}, True),
        ({"filesystem": replace(OTHER, disk_sequence=41)}, False),
    ],
    ids=["same-ve", "same-image", "another-volume"],
)
async def test_a_repair_ends_what_an_earlier_one_had_handed_over(
    book, earlier: dict, *, ends: bool
) -> None:
    handed = incident(incident_id="handed", state=State.NEEDS_OPERATOR, **earlier)
    book.put(handed)
    found = verifying(1, 0.05)
    book.put(found)
    async with asyncio.timeout(10):
        await closed(book, found.incident_id)
    assert (book.get("handed") is None) is ends


async def test_what_two_templates_share_is_no_volume(book) -> None:
    """The same device number, name and UUID, and another VE."""
    handed = incident(
        incident_id="handed",
        state=State.NEEDS_OPERATOR,
        ves=("lxc:other",),
        filesystem=replace(OTHER, disk_sequence=41),
    )
    book.put(handed)
    found = verifying(1, 0.05, filesystem=OTHER)
    book.put(found)
    async with asyncio.timeout(10):
        await closed(book, found.incident_id)
    assert book.get("handed") is not None
