"""Files read past the kernel are what the kernel reads, on every kind of ext filesystem."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fswatchd.kernel import extents
from fswatchd.kernel.extfile import File, Files
from tests.system.conftest import make_host

KIB, MIB = 1 << 10, 1 << 20
KINDS = {
    "ext4": ("-t", "ext4"),
    "ext4 with small blocks": ("-t", "ext4", "-b", "1024"),
    "ext4 of 32 bits": ("-t", "ext4", "-O", "^64bit,^metadata_csum"),
    "ext4 with content in inodes": ("-t", "ext4", "-O", "inline_data"),
    "ext4 in clusters": ("-t", "ext4", "-O", "bigalloc", "-C", "16384"),
    "ext3": ("-t", "ext3"),
    "ext2 with small blocks": ("-t", "ext2", "-b", "1024", "-I", "128"),
}
SIZE = 128 * MIB


@contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", ",".join(("loop", *options)), image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def make(image: Path, options: tuple[str, ...]) -> None:
    with image.open("xb") as file:
        file.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-F", *options, image], check=True, capture_output=True)


def fill(root: Path, rng: random.Random) -> None:
    """Files of each shape: in the inode, in a piece, in thousands, with holes, never written."""
    for size in (0, 1, 59, 60, 61, 150, 4095, 4096, 4097, 70_000, 3 * MIB):
        (root / f"of-{size}").write_bytes(rng.randbytes(size))
    with (root / "in-pieces").open("wb") as file:
        for number in range(900):
            file.seek(number * 12 * KIB + rng.randrange(100))
            file.write(rng.randbytes(rng.randrange(1, 5000)))
    with (root / "far").open("wb") as file:
        file.write(b"begin")
        file.seek(70 * MIB)
        file.write(rng.randbytes(10_000))
    with (root / "hole").open("wb") as file:
        file.truncate(5 * MIB)
    with (root / "reserved").open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, MIB)
        except OSError:
            file.truncate(MIB)  # ext2 and ext3 have no such thing
        file.seek(300_000)
        file.write(rng.randbytes(200_000))
    (root / "directory").mkdir()
    (root / "link").symlink_to("far")


def content(files: Files, file: File, image: int) -> bytes:
    return b"".join(file.read(image, at, 100_000) for at in range(0, file.size, 100_000))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_past_the_kernel_is_what_it_reads(work: Path, kind: str) -> None:
    image = work / "fs.img"
    make(image, KINDS[kind])
    with mounted(image) as root:
        fill(root, random.Random(kind))
    fd = os.open(image, os.O_RDONLY)
    try:
        files = Files(fd)
        with mounted(image, "ro") as root:
            seen = 0
            for path in root.iterdir():
                found = files.file(path.lstat().st_ino)
                if path.is_dir() or path.is_symlink():
                    assert found is None, path
                    continue
                assert found is not None, path
                assert found.size == path.stat().st_size, path
                assert content(files, found, fd) == path.read_bytes(), path
                assert found.read(fd, found.size, 1) == b""
                seen += 1
        assert seen == 15
        assert files.file(0) is files.file(1 << 31) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["ext4", "ext3"])
def test_a_place_is_the_one_that_the_kernel_names(work: Path, kind: str) -> None:
    """By which it is told that two lie in the same blocks, without reading them."""
    image = work / "fs.img"
    make(image, KINDS[kind])
    with mounted(image) as root:
        fill(root, random.Random(kind))
    with mounted(image, "ro") as root, image.open("rb") as opened:
        files = Files(opened.fileno())
        for path in root.glob("*-*"):
            found = files.file(path.stat().st_ino)
            assert found is not None
            with path.open("rb") as file:
                told = extents.of(file.fileno())
            assert list(extents.not_shared(told, found.extents, found.size)) == [], path


def test_what_makes_no_sense_is_no_file(work: Path) -> None:
    """Whatever stands in the inodes and in the blocks that they name, it ends, and with words."""
    image = work / "fs.img"
    make(image, KINDS["ext4 with small blocks"])
    rng = random.Random(20261123)
    with mounted(image) as root:
        fill(root, rng)
        (root / "old-style").write_bytes(b"1")
        subprocess.run(["chattr", "-e", root / "old-style"], check=False, capture_output=True)
        inodes = [path.stat().st_ino for path in root.glob("*-*")]
    with image.open("r+b", buffering=0) as file:
        files = Files(file.fileno())
        argv = ["debugfs", "-R", "imap <12>", image]
        told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        at = int(told.split("located at block ")[1].split(",")[0])
        table = os.pread(file.fileno(), 16 * KIB, at * KIB)
        refused = 0
        for _ in range(400):
            broken = bytearray(table)
            for _ in range(rng.randrange(1, 60)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            os.pwrite(file.fileno(), broken, at * KIB)
            for inode in inodes:
                try:
                    found = files.file(inode)
                except ValueError:
                    refused += 1
                    continue
                if found is not None and found.size < 64 * MIB:
                    found.read(file.fileno(), 0, found.size)
        assert refused


def test_what_is_laid_out_in_another_way_is_refused(work: Path) -> None:
    image = work / "fs.img"
    make(image, ("-t", "ext4", "-O", "meta_bg,^resize_inode"))
    with image.open("rb") as file, pytest.raises(ValueError, match="meta_bg"):
        Files(file.fileno())


def test_another_filesystem_is_none(work: Path) -> None:
    make_host(work)
    with (work / "host-xfs.img").open("rb") as file, pytest.raises(ValueError, match="no ext2"):
        Files(file.fileno())


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (0x04, "blocks"),
        (0x00, "inodes"),
        (0x28, "inodes in a group"),
        (0x58, "size of an inode"),
        (0x18, "size of a block"),
    ],
)
def test_a_superblock_that_makes_no_sense_is_refused(work: Path, at: int, what: str) -> None:
    """Instead of looking for its groups until somebody has had enough."""
    image = work / "fs.img"
    make(image, KINDS["ext4"])
    with image.open("r+b") as file:
        sizes = [b"\xff\xff\xff\xff", b"\1\0\0\0", b"\0\0\0\0"]
        refused = 0
        for size in sizes:
            os.pwrite(file.fileno(), size[: 2 if at == 0x58 else 4], 1024 + at)
            try:
                files = Files(file.fileno())
            except ValueError:
                refused += 1
                continue
            assert sum(len(group) for group in files.changed(0.0)) == 0
        assert refused, what
