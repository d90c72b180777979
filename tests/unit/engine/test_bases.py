"""When a base counts as written, and how often it is said."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import bases
from fswatchd.engine.attribution import Attribution
from fswatchd.engine.bases import BaseWatch
from fswatchd.events import EventClass, FsEvent
from fswatchd.inventory.model import VeId
from tests.unit.inventory.test_lookup import view


class Remembered:
    """Memory of a daemon, which may be restarted."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}
        self.load = self.seen.get
        self.save = self.seen.__setitem__


class Watched:
    """A base with one child, and who looks at it."""

    def __init__(self, base: Path, memory: Remembered) -> None:
        found = base.stat()
        key, child = (Devno.of(found.st_dev), found.st_ino), (Devno(8, 1), 5)
        seen = view(
            image_bases={child: key},
            image_paths={child: "/vz/ve102.qcow2", key: str(base)},
            image_owners={child: VeId("lxc:ve102")},
        )
        self.told: list[tuple[FsEvent, Attribution]] = []
        inventory: Any = SimpleNamespace(view=seen)
        self.watch = BaseWatch(inventory, memory, lambda *both: self.told.append(both))


async def test_a_base_that_stays_as_it_is_says_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"x")
    watched = Watched(base, Remembered())
    for _ in range(3):
        await watched.watch.look()
    os.chmod(base, 0o600)
    os.utime(base, ns=(1, base.stat().st_mtime_ns))
    await watched.watch.look()
    assert watched.told == []


@pytest.mark.parametrize("again", ["the same daemon", "another daemon"])
async def test_a_base_that_was_written_is_told_with_its_children(
    tmp_path: Path, again: str
) -> None:
    base, memory = tmp_path / "base", Remembered()
    base.write_bytes(b"x")
    watched = Watched(base, memory)
    await watched.watch.look()
    os.utime(base, ns=(1, 1))
    if again == "another daemon":
        watched = Watched(base, memory)
    await watched.watch.look()
    ((event, found),) = watched.told
    assert (event.klass, event.confirms) == (EventClass.CORRUPTION, False)
    assert event.detail == f"the base {base} was written under /vz/ve102.qcow2 of lxc:ve102"
    assert (found.ves, found.superblock, found.filesystem.image) == (
        ("lxc:ve102",),
        None,
        str(base),
    )


async def test_one_that_is_written_all_the_time_is_not_told_at_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"x")
    watched = Watched(base, Remembered())
    await watched.watch.look()
    for number in range(5):
        os.utime(base, ns=(1, number))
        await watched.watch.look()
    assert len(watched.told) == 1
    now = bases.time.monotonic()
    monkeypatch.setattr(bases.time, "monotonic", lambda: now + 100)
    await watched.watch.look()
    assert len(watched.told) == 2  # also what was written in the quiet time


async def test_a_base_that_is_gone_says_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"x")
    watched = Watched(base, Remembered())
    await watched.watch.look()
    base.unlink()
    await watched.watch.look()
    assert watched.told == []
