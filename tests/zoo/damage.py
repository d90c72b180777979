"""What a damage is, and how files are put into a base image and found again."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One damage: `harm` does it to an image; `part` is what of the filesystem it is about.

    `quick` ones are in the fast selection: one for each part.
    """

    name: str
    part: str
    harm: Callable[[Path], None]
    quick: bool = False


def run(*argv: str, good: tuple[int, ...] = (0,), given: str | None = None) -> str:
    """What a tool prints."""
    done = subprocess.run(
        argv, input=given, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode in good, (argv, done.returncode, done.stdout[-800:], done.stderr[-800:])
    return done.stdout


def overwrite(image: Path, offset: int, data: bytes) -> None:
    """Put other bytes into the image."""
    fd = os.open(image, os.O_RDWR)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def read(image: Path, offset: int, size: int) -> bytes:
    """Bytes of the image."""
    fd = os.open(image, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def noise(name: str, size: int) -> bytes:
    """Random bytes, the same in every run."""
    return random.Random(name).randbytes(size)


_QUOTED = re.compile(
    r"'[^']*'|\"[^\"]*\"|\(\.\.\.\)|/[\w./+#-]+|[-+]?\(?\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b\)?"
)


def signature(output: str) -> frozenset[str]:
    """What a checking tool complains about, without what it complains of: a set of problem kinds.

    Two damages with the same set are one kind of damage, at two places.
    """
    kinds = set()
    for line in output.splitlines():
        text = _QUOTED.sub("", line).strip(" .,:-+*")
        if len(text) > 8 and not text.startswith(("Pass", "Phase", "agno", "e2fsck")):
            kinds.add(re.sub(r"[\s()#,:;+-]+", " ", text)[:70])
    return frozenset(kinds)


def populate(tree: Path) -> None:
    """Files of every kind; no two have the same content."""
    many = tree / "many"
    many.mkdir(parents=True)
    for number in range(300):
        (many / f"a-file-with-a-long-name-{number:04d}").write_bytes(_content(f"many{number}", 700))
    for number in range(6):
        directory = tree / f"dir{number}"
        (directory / "deep" / "deeper").mkdir(parents=True)
        for index in range(10):
            (directory / f"file{index}").write_bytes(_content(f"{number}.{index}", 9000))
            (directory / "deep" / f"file{index}").write_bytes(_content(f"{number}/{index}", 3000))
    big = tree / "big"
    big.write_bytes(_content("big", 600_000))
    with (tree / "holes").open("wb") as file:
        for number in range(700):  # one extent each: too many for the inode
            file.seek(number * 16384)
            file.write(_content(f"holes{number}", 4096))
    os.symlink("dir0/file0", tree / "short-link")
    os.symlink("dir0/" + "x" * 200, tree / "long-link")
    os.link(tree / "dir0/file0", tree / "second-name")
    os.mkfifo(tree / "fifo")
    for name in ("with-attribute", "with-attribute-2"):
        (tree / name).write_bytes(_content(name, 2000))
        os.setxattr(tree / name, "user.large", b"v" * 600)


def _content(name: str, size: int) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def manifest(tree: Path) -> dict[str, str]:
    """Digest of every regular file, by path."""
    found = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                try:
                    content = Path(path).read_bytes()
                except OSError:
                    continue
                relative = os.path.relpath(path, tree)
                found[relative] = hashlib.sha256(content).hexdigest()
    return found
