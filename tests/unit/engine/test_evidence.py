"""Evidence is bounded, and goes when its time is over."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine.elapsed import Elapsed
from fswatchd.engine.evidence import NS, EvidenceRoom
from fswatchd.errors import UnknownTargetError
from fswatchd.incidents import State
from fswatchd.repair import evidence
from tests.unit.builders import NOW_NS, incident


def document(name: str = "20261121-abcde", files: int = 0) -> dict[str, Any]:
    return {
        "incident": name,
        "kernel_lines": [],
        "mounts": [],
        "files": [{"path": "x" * 200} for _ in range(files)],
        "problems": [],
    }


def test_what_is_too_long_is_cut_and_says_so(tmp_path) -> None:
    path, size = evidence._write(document(files=20_000), tmp_path)
    assert size == path.stat().st_size <= evidence.MAX_BYTES
    kept = json.loads(path.read_text())
    assert kept["files"]
    assert any("files were cut" in problem for problem in kept["problems"])
    assert path.stat().st_mode & 0o077 == 0


def test_what_fits_is_whole(tmp_path) -> None:
    path, _ = evidence._write(document(files=3), tmp_path)
    assert json.loads(path.read_text()) == document(files=3)


def test_a_log_without_an_end_is_read_for_some_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """xfs_healer that finds the same damage for ever writes faster than anybody reads."""
    monkeypatch.setattr(evidence, "_LOG", os.devnull)
    monkeypatch.setattr(evidence, "_LOG_S", 0.05)
    flooded = incident()
    text = f"XFS ({flooded.filesystem.device}): Metadata corruption detected"
    monkeypatch.setattr(os, "read", lambda *_: f"3,1,1,-;{text}\n".encode())
    problems: list[str] = []
    lines = evidence._kernel_lines(flooded, problems)
    assert lines
    assert all(text in line for line in lines)
    (problem,) = problems
    assert "oldest first" in problem


def closed(name: str, ago_s: float):
    return replace(
        incident(),
        incident_id=name,
        state=State.CLOSED,
        closed_ns=time.time_ns() - int(ago_s * NS),
        evidence={"path": "", "bytes": 1, "taken_ns": 1},
    )


async def test_only_what_is_old_and_of_a_closed_incident_is_deleted(tmp_path, store) -> None:
    room = EvidenceRoom(tmp_path, 60.0)
    for name in ("old", "new", "open"):
        evidence._write(document(name), tmp_path / "evidence")
    still_open = replace(closed("open", 999), state=State.NEEDS_OPERATOR)
    for one in (closed("old", 61), closed("new", 30), still_open):
        await store.save_incident(one)
    book = IncidentBook(store, "hn1")
    await room.sweep(store, book, Elapsed(book))
    left = sorted(path.stem for path in (tmp_path / "evidence").iterdir())
    assert left == ["new", "open"]
    gone = [one.incident_id for one in await store.incidents() if one.evidence is None]
    assert gone == ["old"]
    assert room.read(cast("Any", SimpleNamespace(incident_id="new"))) == document("new")
    with pytest.raises(UnknownTargetError):
        room.read(cast("Any", SimpleNamespace(incident_id="old")))


async def test_of_an_incident_that_is_forgotten_the_files_time_counts(tmp_path, store) -> None:
    room = EvidenceRoom(tmp_path, 60.0)
    for name, ago_s in (("old", 61), ("new", 30)):
        path, _ = evidence._write(document(name), tmp_path / "evidence")
        os.utime(path, ns=(NOW_NS, time.time_ns() - ago_s * NS))
    book = IncidentBook(store, "hn1")
    await room.sweep(store, book, Elapsed(book))
    assert [path.stem for path in (tmp_path / "evidence").iterdir()] == ["new"]


async def test_a_rollback_that_begins_during_the_sweep_stays_as_it_is(
    tmp_path, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, names = IncidentBook(store, "hn1"), ("one", "two")
    for name in names:
        evidence._write(document(name), tmp_path / "evidence")
        await store.save_incident(closed(name, 61))
    unlink, acting = Path.unlink, []

    def begin(path: Path) -> None:
        """The other one begins while this file goes, as `Executor.begin_rollback` does it."""
        (other,) = set(names) - {path.stem}
        acting.append(replace(closed(other, 61), state=State.ACTING, closed_ns=None))
        loop.call_soon_threadsafe(book.put, acting[0])
        unlink(path)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Path, "unlink", begin)
    await EvidenceRoom(tmp_path, 60.0).sweep(store, book, Elapsed(book))
    (rolling_back,) = acting
    assert await store.find_incidents(rolling_back.incident_id) == [rolling_back]
    assert (tmp_path / "evidence" / f"{rolling_back.incident_id}.json").exists()


@pytest.mark.parametrize("rests_on_it", [False, True])
def test_nothing_is_written_to_the_filesystem_that_is_sick(tmp_path, rests_on_it: bool) -> None:
    """Nor to one that rests on it: the sick one is what the directory is on, or beneath that."""
    here = Devno.of(tmp_path.stat().st_dev)
    sick = Devno(here.major, here.minor + 1) if rests_on_it else here
    superblock = SimpleNamespace(devno=sick)
    view = SimpleNamespace(attached=lambda _: superblock, beneath=lambda _: (sick,))
    filesystem = replace(incident().filesystem, devno=sick, disk_sequence=7)
    context = SimpleNamespace(
        incident=replace(incident(), filesystem=filesystem), inventory=SimpleNamespace(view=view)
    )
    refused = evidence._on_the_sick_one(cast("Any", context), tmp_path / "evidence")
    assert refused is not None
    assert "sick" in refused
    elsewhere = SimpleNamespace(attached=lambda _: superblock, beneath=lambda _: ())
    context.inventory.view = elsewhere
    other = evidence._on_the_sick_one(cast("Any", context), tmp_path / "evidence")
    assert (other is None) is rests_on_it
