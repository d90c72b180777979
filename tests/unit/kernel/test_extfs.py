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


@pytest.mark.parametrize(("features", "has"), [(0x0242, False), (0x0246, True)])
def test_a_journal_to_replay(tmp_path: Path, features: int, has: bool) -> None:
    assert extfs.needs_recovery(str(image(tmp_path / "a", features))) is has
    assert not extfs.needs_recovery(str(image(tmp_path / "b", 0x0246, b"XX")))


def test_the_size_of_a_block(tmp_path: Path) -> None:
    path = image(tmp_path / "a", 0)
    assert extfs.block_size(str(path)) == 1024
    with path.open("r+b") as file:
        file.seek(1024 + 0x18)
        file.write((2).to_bytes(4, "little"))
    assert extfs.block_size(str(path)) == 4096
    assert extfs.block_size(str(image(tmp_path / "b", 0, b"XX"))) is None
