"""What memory keeps while the disk is slow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel import syscalls
from fswatchd.store import spool
from fswatchd.store.spool import Spool


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fswatchd-test-") as directory:
        yield Path(directory) / "events.spool"


def left(path: Path) -> list[list[object]]:
    again = Spool(path)
    try:
        return again.open()
    finally:
        again.close()


def test_records_come_back_in_order(path: Path) -> None:
    first = Spool(path)
    assert first.open() == []
    assert first.append([1, "é\udc80", None])
    assert first.append([2])
    first.close()
    assert left(path) == [[1, "é\udc80", None], [2]]


def test_what_a_kill_has_cut_off_is_left_out(path: Path) -> None:
    first = Spool(path)
    first.open()
    first.append(["whole"])
    first.append(["cut off"])
    first.close()
    path.write_bytes(path.read_bytes()[:-1])
    assert left(path) == [["whole"]]


@given(st.binary(max_size=200))
def test_no_content_makes_it_fail(data: bytes) -> None:
    assert isinstance(list(spool._records(data)), list)


def test_it_does_not_grow_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LIMIT_BYTES", 100)
    full = Spool(path)
    full.open()
    assert [full.append(["x" * 60]) for _ in range(3)] == [True, False, False]
    full.clear()
    assert full.append(["x" * 60])
    full.close()


def test_nothing_is_kept_on_a_disk(tmp_path: Path) -> None:
    if syscalls.filesystem_magic(str(tmp_path)) == spool.TMPFS_MAGIC:
        pytest.skip("the directory for temporary files is on tmpfs")
    on_disk = Spool(tmp_path / "events.spool")
    assert on_disk.open() == []
    assert not on_disk.append(["x"])
    assert not (tmp_path / "events.spool").exists()
