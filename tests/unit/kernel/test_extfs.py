"""What is read from an ext superblock, on bytes laid out as fs/ext4/ext4.h has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.kernel import extfs


def image(path: Path, features: int, magic: bytes = b"\x53\xef") -> Path:
    block = bytearray(4096)
    block[1024 + 0x38 : 1024 + 0x3A] = magic
    block[1024 + 0x60 : 1024 + 0x64] = features.to_bytes(4, "little")
    path.write_bytes(block)
    return path


@pytest.mark.parametrize(("features", "has"), [(0x0242, False), (0x0342, True), (0x0100, True)])
def test_multiple_mount_protection(tmp_path: Path, features: int, has: bool) -> None:
    assert extfs.has_mmp(str(image(tmp_path / "a", features))) is has


def test_what_is_no_ext_filesystem(tmp_path: Path) -> None:
    assert not extfs.has_mmp(str(image(tmp_path / "a", 0x0342, b"XX")))
    (tmp_path / "short").write_bytes(b"x")
    assert not extfs.has_mmp(str(tmp_path / "short"))
