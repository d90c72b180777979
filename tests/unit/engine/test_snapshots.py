"""A snapshot that somebody was told of outlives a power cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fswatchd.engine.snapshots import Snapshots
from fswatchd.repair.clone import Clone
from fswatchd.repair.volume import ImageFile
from fswatchd.store.store import Store, StoreError

NOTHING: Any = None


def snapshots(store: Any) -> Snapshots:
    return Snapshots(store, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)


def made(tmp_path: Path) -> Clone:
    path = tmp_path / "ve101.img.snapshot-x"
    path.write_bytes(b"snapshot")
    return Clone(file=ImageFile.at(str(path)), shared=True)


async def test_what_is_finished_is_not_taken_for_cut_off_at_the_next_start(
    tmp_path: Path,
) -> None:
    store, copy = Store(tmp_path / "fswatchd.db"), made(tmp_path)
    await store.open()
    key = "snapshotting:" + copy.file.path
    await store.set_fact(key, "root", durable=True)
    taking = snapshots(store)
    await taking._finished(copy)
    await taking.recover()
    assert copy.file.is_at(copy.file.path)
    await store.set_fact(key, "root", durable=True)  # and what is not, is
    await taking.recover()
    assert not copy.file.is_at(copy.file.path)
    await store.close()


async def test_what_cannot_be_recorded_is_not_kept(tmp_path: Path) -> None:
    asked: list[bool] = []

    class Full:
        async def set_fact(self, _key: str, _value: object, *, durable: bool) -> None:
            asked.append(durable)
            raise StoreError("the disk is full")

    copy = made(tmp_path)
    with pytest.raises(StoreError):
        await snapshots(Full())._finished(copy)
    assert asked == [True]
    assert not copy.file.is_at(copy.file.path)
