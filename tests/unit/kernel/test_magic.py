"""Filesystems by their magic numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.kernel import magic


@pytest.mark.parametrize(
    ("offset", "number", "fstype"),
    [
        (1080, b"\x53\xef", "ext4"),
        (0, b"XFSB", "xfs"),
        (65600, b"_BHRfS_M", "btrfs"),
        (1, b"XFSB", None),
        (65600, b"_BHRfS_X", None),
    ],
)
def test_what_begins_there(tmp_path: Path, offset: int, number: bytes, fstype: str | None) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(offset)
        file.write(number)
    assert magic.fstype_of(str(path)) == fstype


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert magic.fstype_of(str(tmp_path / "empty")) is None
