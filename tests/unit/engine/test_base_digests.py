"""What the digests of a base tell, and what they do not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import base_digests
from fswatchd.engine.attribution import Attribution
from fswatchd.engine.base_digests import BaseDigests
from fswatchd.events import EventClass, FsEvent
from fswatchd.helpers import digest
from fswatchd.inventory.model import VeId
from tests.unit.inventory.test_lookup import view

PIECE = 1 << 20
SIZE = 2 * PIECE + 4096


class Facts:
    """The store of a daemon, which may be restarted."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    async def facts(self, prefix: str) -> dict[str, Any]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    def set_fact(self, key: str, value: object | None) -> None:
        self.kept[key] = value


async def _read(*piece: Any) -> dict[str, Any]:
    """The helper's answer, without a process of its own."""
    return digest.piece(*piece)


class Verified:
    """A base with one child, and who reads it."""

    def __init__(self, base: Path, facts: Facts, every_s: float = 0.0) -> None:
        found = base.stat()
        key, child = (Devno.of(found.st_dev), found.st_ino), (Devno(8, 1), 5)
        seen = view(
            image_bases={child: key},
            image_paths={child: "/vz/ve102.qcow2", key: str(base)},
            image_owners={child: VeId("lxc:ve102")},
        )
        self.told: list[tuple[FsEvent, Attribution]] = []
        inventory: Any = SimpleNamespace(view=seen)
        self.digests = BaseDigests(
            inventory, facts, lambda *both: self.told.append(both), every_s, PIECE, _read
        )

    async def passes(self, count: int = 1) -> None:
        for _ in range(3 * count):
            assert await self.digests.step()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(os.urandom(SIZE))
    return path


def rot(base: Path, offset: int) -> None:
    """Another content, and nobody has written it."""
    before = base.stat()
    with base.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(512))
    os.utime(base, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_base_that_stays_as_it_is_says_nothing(base: Path) -> None:
    verified = Verified(base, Facts())
    await verified.passes(3)
    assert verified.told == []


@pytest.mark.parametrize("offset", [4096, PIECE + 512, SIZE - 512])
async def test_one_that_reads_differently_although_nobody_has_written_is_told(
    base: Path, offset: int
) -> None:
    verified = Verified(base, Facts())
    await verified.passes()
    rot(base, offset)
    await verified.passes()
    ((event, found),) = verified.told
    assert (event.klass, event.confirms) == (EventClass.CORRUPTION, True)
    first = offset // PIECE
    assert f"the base {base} does not read as it did" in event.detail
    assert f"between MiB {first} and {first + 1}, under /vz/ve102.qcow2" in event.detail
    assert found.ves == ("lxc:ve102",)


async def test_one_that_was_written_is_recorded_anew_and_not_told_here(base: Path) -> None:
    verified = Verified(base, Facts())
    await verified.passes()
    base.write_bytes(os.urandom(SIZE))
    await verified.passes(2)
    assert verified.told == []
    rot(base, 0)
    await verified.passes()
    assert len(verified.told) == 1


async def test_a_pass_goes_on_after_a_restart_where_it_was(base: Path) -> None:
    facts = Facts()
    first = Verified(base, facts, every_s=1000.0)
    await first.passes()
    assert not await first.digests.step()
    again = Verified(base, facts)
    await again.digests.load_stored()
    await again.digests.step()
    rot(base, 0)
    rot(base, SIZE - 512)
    last = Verified(base, facts, every_s=1000.0)
    await last.digests.load_stored()
    await last.digests.step()
    await last.digests.step()
    assert not await last.digests.step()
    # The first piece had been read before.
    ((event, _),) = last.told
    assert "between MiB 2 and 3" in event.detail


async def test_one_that_cannot_be_read_is_told_as_that(tmp_path: Path, base: Path) -> None:
    verified = Verified(base, Facts(), every_s=1000.0)
    base.unlink()
    base.symlink_to(tmp_path / "elsewhere")
    await verified.digests.step()
    ((event, _),) = verified.told
    assert event.klass is EventClass.IO_ERROR
    assert "cannot be read" in event.detail
    assert not await verified.digests.step()


async def test_what_was_a_base_is_forgotten_when_it_is_gone(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = Facts()
    verified = Verified(base, facts)
    await verified.passes()
    base.unlink()
    verified.digests._inventory.view = view()
    assert not await verified.digests.step()
    assert None not in facts.kept.values()  # a server may only be lost for a while
    later = time.time() + 91 * 86400
    monkeypatch.setattr(base_digests.time, "time", lambda: later)
    assert not await verified.digests.step()
    assert list(facts.kept.values()) == [None]
