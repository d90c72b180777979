"""Damages of btrfs: trees with two copies and with one, data. None of them is repaired here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.zoo.damage import Damage, noise, overwrite, populate, run

FSTYPE = "btrfs"
CHECK = ("btrfs", "check", "--readonly")
REPAIR = CHECK  # there is no repair that is safe

_LEAF = 16384


def base(work: Path) -> Path:
    """One device, data once and metadata twice, as `mkfs.btrfs` has it."""
    tree, image = work / "tree", work / "btrfs.img"
    populate(tree)
    with image.open("xb") as file:
        file.truncate(160 << 20)
    run("mkfs.btrfs", "-q", "-d", "single", "-m", "dup", "--rootdir", str(tree), str(image))
    shutil.rmtree(tree)
    run(*CHECK, str(image))
    return image


def extract(image: Path, target: Path) -> None:
    """Every file of the image that can still be read."""
    target.mkdir()
    run("btrfs", "restore", "-i", str(image), str(target), good=(0, 1))


def _places(image: Path, tree: str) -> list[int]:
    """Where the copies of the first leaf of a tree are."""
    listed = run("btrfs", "inspect-internal", "dump-tree", "-t", tree, str(image))
    leaf = re.search(r"^leaf (\d+) items", listed, re.MULTILINE)
    assert leaf, tree
    mapped = run("btrfs-map-logical", "-l", leaf[1], str(image))
    return [int(number) for number in re.findall(r"mirror \d+ .*physical (\d+)", mapped)]


def _leaf(tree: str, copies: int = 2) -> Callable[[Path], None]:
    def harm(image: Path) -> None:
        for place in _places(image, tree)[:copies]:
            overwrite(image, place, noise(tree, _LEAF))

    return harm


DAMAGES = [
    Damage(name="fs-tree", part="tree", harm=_leaf("fs"), quick=True),
    Damage(name="fs-tree-one-copy", part="dup", harm=_leaf("fs", 1), quick=True),
    Damage(name="extent-tree", part="tree", harm=_leaf("extent")),
    Damage(name="csum-tree", part="tree", harm=_leaf("csum")),
    Damage(name="root-tree", part="tree", harm=_leaf("root")),
    Damage(name="device-tree", part="tree", harm=_leaf("dev")),
    Damage(name="chunk-tree", part="tree", harm=_leaf("chunk")),
    Damage(
        name="superblock",
        part="superblock",
        harm=lambda image: overwrite(image, 65536, bytes(4096)),
    ),
]
