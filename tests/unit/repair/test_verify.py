"""What proves that a repaired filesystem is well: a full one is."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.kernel import fs
from fswatchd.repair import verify
from tests.unit.inventory.test_lookup import superblock


@pytest.mark.parametrize(
    ("code", "may_be_full", "well"),
    [
        (errno.ENOSPC, True, True),
        (errno.EDQUOT, True, True),
        (errno.ENOSPC, False, False),
        (errno.EROFS, True, False),
        (errno.EIO, True, False),
    ],
)
async def test_no_room_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, may_be_full: bool, well: bool
) -> None:
    def fails(_: int) -> None:
        raise OSError(code, "as the kernel says")

    monkeypatch.setattr(fs, "write_probe", fails)
    inventory = SimpleNamespace(opened=lambda _: opened(tmp_path))
    found = await verify.writable(cast("Any", inventory), superblock(3), may_be_full=may_be_full)
    assert (found is None) is well


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
