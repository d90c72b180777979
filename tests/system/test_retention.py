"""What a repair has put aside is deleted when it is due, and nothing else is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.originals import delete_original
from fswatchd.engine.retention import Retention, is_due
from fswatchd.incidents import Outcome, State
from fswatchd.kernel import loop
from fswatchd.repair.volume import ImageFile
from fswatchd.store.store import Store
from tests.unit.builders import NOW_NS, incident

NS = 1_000_000_000


@pytest.fixture
def original(work: Path) -> ImageFile:
    path = work / "ve101.raw.damaged-20261121-abcde"
    with path.open("xb") as file:
        file.truncate(1 << 20)
    status = path.stat()
    return ImageFile(path=str(path), devno=Devno.of(status.st_dev), inode=status.st_ino)


def repaired(original: ImageFile, keep_s: float = 60.0):
    undo = {
        "image": "/vz/ve101.raw",
        "original": original.path,
        "original_file": original.describe(),
        "ve": "lxc:ve101",
        "keep_s": keep_s,
    }
    return replace(
        incident(), state=State.CLOSED, outcome=Outcome.REPAIRED, closed_ns=NOW_NS, undo=undo
    )


def test_due_is_exactly_after_the_time_to_keep(original) -> None:
    found = repaired(original)
    assert not is_due(found, 60 * NS)
    assert is_due(found, 60 * NS + 1)
    assert not is_due(replace(found, state=State.NEEDS_OPERATOR), 999 * NS)
    assert not is_due(replace(found, undo=None), 999 * NS)


async def test_it_is_deleted_and_cannot_be_rolled_back_any_more(work, original) -> None:
    store = Store(work / "state" / "fswatchd.db")
    await store.open()
    try:
        await store.save_incident(repaired(original))
        book, state = IncidentBook(store, "hn1"), work / "state"
        await Retention(store, book, EvidenceRoom(state, 60.0), state, lambda: "").look()
        (after,) = await store.incidents()
    finally:
        await store.close()
    assert not os.path.exists(original.path)
    assert "original" not in (after.undo or {})
    assert "deleted" in after.log[-1][1]


async def test_another_file_of_that_name_is_not_deleted(original) -> None:
    os.rename(original.path, f"{original.path}.moved")
    Path(original.path).write_text("somebody else's")
    await delete_original(original.path, original.describe())
    assert Path(original.path).read_text() == "somebody else's"


async def test_what_is_attached_is_not_deleted(original) -> None:
    fd = os.open(original.path, os.O_RDWR)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    try:
        assert device in (await delete_original(original.path, original.describe()))[1]
    finally:
        os.close(loop_fd)
    assert os.path.exists(original.path)


async def test_without_a_record_nothing_is_deleted(original) -> None:
    await delete_original(original.path, None)
    assert os.path.exists(original.path)
