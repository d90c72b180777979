"""What a repair in place has written down to undo it goes in time, and its directory with it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine import originals
from fswatchd.engine.retention import Retention
from fswatchd.errors import RefusedError
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.view import NodeView
from fswatchd.repair import originals as kept_originals
from fswatchd.repair import rollback
from fswatchd.repair.images import Images
from fswatchd.repair.volume import ImageFile
from fswatchd.store.store import Store
from tests.unit.builders import incident

DAY_S = 86400
NS = 1_000_000_000


class NoEvidence:
    """There is none."""

    async def sweep(self, *_: object) -> None:
        """Nothing."""


def repaired(state: State, closed_days_ago: float, keep_days: float | None) -> Incident:
    return replace(
        incident(),
        incident_id="20261121-abcde",
        state=state,
        outcome=Outcome.REPAIRED,
        closed_ns=time.time_ns() - int(closed_days_ago * DAY_S * NS),
        undo=None if keep_days is None else {"keep_s": keep_days * DAY_S, "undo_file": "x"},
    )


def undo_directory(tmp_path: Path, *, empty: bool, days_ago: float = 0.0) -> Path:
    directory = tmp_path / "undo" / "20261121-abcde"
    directory.mkdir(parents=True)
    if not empty:
        (directory / "ve101.raw.e2undo").write_text("undo")
        (directory / "ve101.raw.e2undo.again").write_text("undo")
    when = time.time() - days_ago * DAY_S
    os.utime(directory, (when, when))
    return directory


def retention(
    tmp_path: Path, store: Store, book: IncidentBook | None = None, distrust: str = ""
) -> Retention:
    book = book or IncidentBook(store, "hn1")
    return Retention(store, book, cast("Any", NoEvidence()), tmp_path, lambda: distrust)


async def look(tmp_path: Path, store: Store, *found: Incident) -> None:
    for one in found:
        await store.save_incident(one)
    await retention(tmp_path, store).look()


@pytest.mark.parametrize(
    ("found", "empty", "stays"),
    [
        (repaired(State.CLOSED, 0, 7), True, False),
        (repaired(State.CLOSED, 0, None), True, False),
        (repaired(State.ACTING, 0, None), True, True),
        (repaired(State.CLOSED, 6, 7), False, True),
        (repaired(State.CLOSED, 8, 7), False, False),
        (repaired(State.CLOSED, 8, None), False, False),
        (repaired(State.NEEDS_OPERATOR, 99, 7), False, True),
    ],
    ids=["empty", "never used", "at work", "kept", "due", "not proven", "needs an operator"],
)
async def test_an_undo_file_stays_while_it_may_be_wanted(
    tmp_path: Path, store: Store, found: Incident, *, empty: bool, stays: bool
) -> None:
    directory = undo_directory(tmp_path, empty=empty)
    await look(tmp_path, store, found)
    assert directory.exists() is stays
    if stays and not empty:
        assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize(("days_ago", "stays"), [(6, True), (8, False)])
async def test_what_nothing_is_known_of_is_as_old_as_its_directory(
    tmp_path: Path, store: Store, days_ago: int, *, stays: bool
) -> None:
    directory = undo_directory(tmp_path, empty=False, days_ago=days_ago)
    await look(tmp_path, store)
    assert directory.exists() is stays


async def test_nothing_else_in_such_a_directory_is_deleted(tmp_path: Path, store: Store) -> None:
    directory = undo_directory(tmp_path, empty=False)
    (directory / "notes.txt").write_text("a person's")
    await look(tmp_path, store, repaired(State.CLOSED, 8, 7))
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


async def test_the_undo_file_of_an_open_incident_stays_however_many_are_newer(
    tmp_path: Path, store: Store
) -> None:
    directory = undo_directory(tmp_path, empty=False, days_ago=99)
    newer = [
        replace(incident(), incident_id=f"{number}", opened_ns=time.time_ns())
        for number in range(1000)
    ]
    await look(tmp_path, store, repaired(State.NEEDS_OPERATOR, 99, 7), *newer)
    assert len(list(directory.iterdir())) == 2


def with_original(tmp_path: Path, name: str, closed_days_ago: float = 8) -> Incident:
    """One whose original has been kept for long enough."""
    path = tmp_path / f"{name}.damaged"
    path.write_text("damaged")
    known = ImageFile.at(str(path)).describe()
    undo = {"original": str(path), "original_file": known, "keep_s": 7 * DAY_S, "image": "/x"}
    return replace(repaired(State.CLOSED, closed_days_ago, 7), incident_id=name, undo=undo)


class Slow:
    """A deletion that takes its time; `during` happens meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, during: Callable[[], object]) -> None:
        self.deleted: list[str] = []
        self._during = during
        self._real = Images.delete
        monkeypatch.setattr(Images, "delete", lambda images: self._delete(images))

    async def _delete(self, images: Images) -> None:
        self.deleted.append(Path(images._image.path).stem)
        self._during()
        await self._real(images)


async def test_a_rollback_that_begins_during_another_deletion_keeps_its_original(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = IncidentBook(store, "hn1")
    both = {name: with_original(tmp_path, name) for name in ("one", "two")}
    for found in both.values():
        await store.save_incident(found)

    def roll_back_the_other() -> None:
        (other,) = both.keys() - set(slow.deleted)
        rolling_back = replace(both[other], state=State.ACTING, closed_ns=None)
        book.put(rolling_back)
        at_work.append(rolling_back)

    at_work: list[Incident] = []
    slow = Slow(monkeypatch, roll_back_the_other)
    await retention(tmp_path, store, book).look()
    (acting,) = at_work
    assert len(slow.deleted) == 1
    assert Path(str((acting.undo or {})["original"])).exists()
    assert await store.find_incidents(acting.incident_id) == [acting]


async def test_there_is_no_way_back_while_the_original_is_being_deleted(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = with_original(tmp_path, "one")
    await store.save_incident(found)
    asked: list[asyncio.Task[list[Incident]]] = []
    Slow(
        monkeypatch,
        lambda: asked.append(asyncio.create_task(store.find_incidents(found.incident_id))),
    )
    await retention(tmp_path, store).look()
    ((meanwhile,),) = [await one for one in asked]
    with pytest.raises(RefusedError, match="not kept any more"):
        rollback.check(meanwhile, NodeView(), discard_newer=True)
    (after,) = await store.find_incidents(found.incident_id)
    assert (after.undo or {}).keys() == {"image", "keep_s"}


async def test_a_rollback_that_has_read_the_incident_just_before_goes_first(
    tmp_path: Path, store: Store
) -> None:
    """What it has read still had the original: it wins, and nothing is deleted."""
    book, found = IncidentBook(store, "hn1"), with_original(tmp_path, "one")
    await store.save_incident(found)

    async def roll_back() -> None:
        (read,) = await store.find_incidents("one")
        book.put(replace(read, state=State.ACTING, closed_ns=None))

    await asyncio.gather(roll_back(), originals.give_up(book, "one", "", lambda _: True))
    assert (tmp_path / "one.damaged").exists()
    (after,) = await store.find_incidents("one")
    assert (after.state, "original" in (after.undo or {})) == (State.ACTING, True)


async def test_a_deletion_that_was_cut_off_is_ended(tmp_path: Path, store: Store) -> None:
    found = with_original(tmp_path, "one", closed_days_ago=0)
    undo = dict(found.undo or {})
    undo["deleting"] = {name: undo.pop(name) for name in ("original", "original_file")}
    await look(tmp_path, store, replace(found, undo=undo))
    assert not (tmp_path / "one.damaged").exists()
    (after,) = await store.find_incidents("one")
    assert "deleting" not in (after.undo or {})


async def test_what_cannot_be_deleted_can_still_be_rolled_back(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "held_by", lambda _: "somebody has it open")
    for _ in range(2):
        await look(tmp_path, store, with_original(tmp_path, "one"))
        (after,) = await store.find_incidents("one")
        assert "original" in (after.undo or {})
        assert [text for _, text in after.log if "has it open" in text] != []
    assert (tmp_path / "one.damaged").exists()


def step_the_clock(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(days * DAY_S * NS))


@pytest.mark.parametrize("of_this_boot", [True, False])
async def test_a_clock_that_is_stepped_forward_deletes_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, *, of_this_boot: bool
) -> None:
    book, found = IncidentBook(store, "hn1"), with_original(tmp_path, "one", closed_days_ago=1)
    if of_this_boot:
        book.put(found)
    else:
        await store.save_incident(found)
    directory = undo_directory(tmp_path, empty=False)
    os.rename(directory, directory.with_name("one"))
    directory = directory.with_name("one")
    looked = retention(tmp_path, store, book)
    step_the_clock(monkeypatch, 30)
    await looked.look()
    if of_this_boot:  # then a restart of the daemon does not make the clock believed
        await retention(tmp_path, store).look()
    assert (tmp_path / "one.damaged").exists()
    assert list(directory.iterdir()) != []


async def test_what_was_closed_in_this_boot_goes_when_its_time_is_over_by_every_clock(
    tmp_path: Path, store: Store
) -> None:
    book, found = IncidentBook(store, "hn1"), with_original(tmp_path, "one", closed_days_ago=8)
    book.put(found)
    await retention(tmp_path, store, book).look()
    assert not (tmp_path / "one.damaged").exists()


async def test_a_daemon_that_does_not_trust_itself_deletes_nothing(
    tmp_path: Path, store: Store
) -> None:
    await store.save_incident(with_original(tmp_path, "one"))
    undo = undo_directory(tmp_path, empty=False, days_ago=99)
    await retention(tmp_path, store, distrust="the clock of this boot has gone back").look()
    assert (tmp_path / "one.damaged").exists()
    assert len(list(undo.iterdir())) == 2


async def test_what_both_repairs_of_one_incident_have_kept_goes_in_time(
    tmp_path: Path, store: Store
) -> None:
    first, second = with_original(tmp_path, "one"), with_original(tmp_path, "two")
    undo = kept_originals.merged(first.undo, second.undo or {})
    await look(tmp_path, store, replace(second, undo=undo))
    assert not list(tmp_path.glob("*.damaged"))
    (closed,) = await store.find_incidents("two")
    assert closed.undo == {"keep_s": 7 * DAY_S, "image": "/x"}


async def test_an_original_on_what_is_not_mounted_yet_is_not_gone(tmp_path: Path) -> None:
    """A volume that is unlocked by hand after the boot: its directory is there, and empty."""
    place = tmp_path / "vz"
    place.mkdir()
    path = place / "ve101.raw.damaged-x"
    path.write_bytes(b"original")
    original = ImageFile.at(str(path))
    elsewhere = replace(original, devno=Devno(original.devno.major, original.devno.minor + 1))
    path.unlink()
    gone, story = await originals.delete_original(str(path), elsewhere.describe())
    assert not gone
    assert "not mounted" in story
    image = place / "ve101.raw"
    image.write_bytes(b"repaired")
    named = replace(elsewhere, path=str(image))  # device numbers may be others after a boot
    assert (await originals.delete_original(str(path), named.describe()))[0]
    image.unlink()
    gone, _ = await originals.delete_original(str(path), original.describe())
    assert gone  # on the filesystem that it was on it can be seen that it is
    place.rmdir()
    gone, _ = await originals.delete_original(str(path), original.describe())
    assert not gone
