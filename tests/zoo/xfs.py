"""Damages of XFS: headers of allocation groups, trees, inodes, directories, attributes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fswatchd.kernel import loop
from fswatchd.kernel.syscalls import mount_detached
from tests.zoo.damage import Damage, overwrite, populate, run

FSTYPE = "xfs"
CHECK = ("xfs_repair", "-n")
REPAIR = ("xfs_repair",)

_SECTOR = 512
Harm = Callable[[Path], None]


def build(work: Path) -> Path:
    """The base: small blocks, so that trees and directories have several levels."""
    tree, image = work / "tree", work / "xfs.img"
    populate(tree)
    with image.open("xb") as file:
        file.truncate(320 << 20)
    run("mkfs.xfs", "-q", "-b", "size=1024", "-d", "agcount=4", "-m", "rmapbt=1", str(image))
    with _Mounted(image) as place:
        run("cp", "-a", f"{tree}/.", place)
    run(*CHECK, str(image))
    return image


def base(work: Path) -> Path:
    """`build`, and without the tree it was made of."""
    image = build(work)
    shutil.rmtree(work / "tree")
    return image


def extract(image: Path, target: Path) -> None:
    """Every file of the image, by a mount that is in our hand only and writes nothing."""
    target.mkdir()
    with _Mounted(image, readonly=True) as place:
        run("cp", "-a", f"{place}/.", str(target), good=(0, 1))


def replay(image: Path) -> None:
    """Let the kernel replay the log, as the next mount would."""
    with _Mounted(image):
        pass


class _Mounted:
    """A mount that no namespace shows; its place is a path for child processes."""

    def __init__(self, image: Path, *, readonly: bool = False) -> None:
        self._image, self._readonly = image, readonly

    def __enter__(self) -> str:
        fd = os.open(self._image, os.O_RDWR)
        try:
            device, self._loop = loop.attach(fd, autoclear=True)
        finally:
            os.close(fd)
        options: dict[str, str | None] = {"source": device, "nouuid": None}
        if self._readonly:
            options |= {"ro": None, "norecovery": None}
        try:
            self._mount = mount_detached("xfs", options)
        except OSError:
            os.close(self._loop)
            raise
        self._sysfs = f"/sys/fs/xfs/{os.path.basename(device)}"
        return f"/proc/{os.getpid()}/fd/{self._mount}"

    def __exit__(self, *_: object) -> None:
        os.close(self._mount)
        os.close(self._loop)


def _db(*commands: str) -> Harm:
    def harm(image: Path) -> None:
        words = [word for command in commands for word in ("-c", command)]
        run("xfs_db", "-x", *words, str(image))

    return harm


def _ask(image: Path, wanted: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    found = re.search(wanted, run("xfs_db", "-r", *words, str(image)))
    assert found, (commands, wanted)
    return found[1]


def _at(path: str, *commands: str) -> Harm:
    """xfs_db's commands with the inode of a path as the place they begin at."""

    def harm(image: Path) -> None:
        _db(f"path {path}", *commands)(image)

    return harm


def _trash(*place: str, bits: int = 64) -> Harm:
    """Random bits, the same in every run, over the place that the commands lead to."""
    return _db(*place, f"blocktrash -z -3 -s 7 -n {bits} -x {bits} -y {bits}")


def _trash_at(path: str, *place: str) -> Harm:
    return _trash(f"path {path}", *place)


def _set(place: str, field: str, value: str) -> Harm:
    """Another value, under a checksum that is right."""
    return _db(place, f"write -d {field} {value}")


def _wrong_checksum(place: str, field: str, value: str) -> Harm:
    return _db(place, f"write -c {field} {value}")


def _zero(sector: int) -> Harm:
    """Zeros over a sector of the second allocation group."""

    def harm(image: Path) -> None:
        blocks = int(_ask(image, r"agblocks = (\d+)", "sb 0", "p agblocks"))
        overwrite(image, blocks * 1024 + sector * _SECTOR, bytes(_SECTOR))

    return harm


def _field(path: str, field: str, value: str) -> Harm:
    return _at(path, f"write -d {field} {value}")


DAMAGES = [
    Damage(name="sb-magic", part="superblock", harm=_set("sb 0", "magicnum", "0")),
    Damage(name="sb-icount", part="superblock", harm=_set("sb 0", "icount", "64")),
    Damage(name="sb-root", part="superblock", harm=_set("sb 0", "rootino", "70")),
    Damage(name="sb-secondary", part="superblock", harm=_zero(0)),
    Damage(name="sb-agblocks", part="superblock", harm=_set("sb 0", "agblocks", "77777")),
    Damage(name="agf-zeroed", part="agf", harm=_zero(1), quick=True),
    Damage(name="agf-length", part="agf", harm=_set("agf 1", "length", "5")),
    Damage(name="agf-free", part="agf", harm=_set("agf 1", "freeblks", "5")),
    Damage(name="agf-longest", part="agf", harm=_set("agf 1", "longest", "5")),
    Damage(name="agf-root", part="agf", harm=_set("agf 1", "bnoroot", "70000000")),
    Damage(name="agf-level", part="agf", harm=_set("agf 1", "cntlevel", "8")),
    Damage(name="agf-checksum", part="agf", harm=_wrong_checksum("agf 1", "flcount", "3")),
    Damage(name="agi-zeroed", part="agi", harm=_zero(2)),
    Damage(name="agi-count", part="agi", harm=_set("agi 0", "count", "3")),
    Damage(name="agi-root", part="agi", harm=_set("agi 0", "root", "70000000")),
    Damage(name="agi-free-root", part="agi", harm=_set("agi 0", "free_root", "70000000")),
    Damage(name="agi-unlinked", part="agi", harm=_set("agi 0", "unlinked[3]", "131")),
    Damage(name="agfl-zeroed", part="agfl", harm=_zero(3)),
    Damage(name="bnobt", part="btree", harm=_trash("agf 1", "addr bnoroot")),
    Damage(name="cntbt", part="btree", harm=_trash("agf 1", "addr cntroot")),
    Damage(name="rmapbt", part="btree", harm=_trash("agf 0", "addr rmaproot")),
    Damage(name="refcountbt", part="btree", harm=_trash("agf 0", "addr refcntroot")),
    Damage(name="inobt", part="btree", harm=_trash("agi 0", "addr root"), quick=True),
    Damage(name="finobt", part="btree", harm=_trash("agi 0", "addr free_root")),
    Damage(
        name="bnobt-record",
        part="btree",
        harm=_db("agf 1", "addr bnoroot", "write -d recs[1].startblock 3"),
    ),
    Damage(
        name="inobt-record",
        part="btree",
        harm=_db("agi 0", "addr root", "write -d recs[1].freecount 60"),
    ),
    Damage(name="inode-magic", part="inode", harm=_field("/big", "core.magic", "0")),
    Damage(name="inode-mode", part="inode", harm=_field("/big", "core.mode", "0"), quick=True),
    Damage(name="inode-blocks", part="inode", harm=_field("/big", "core.nblocks", "1")),
    Damage(name="inode-extents", part="inode", harm=_field("/holes", "core.nextents", "3")),
    Damage(name="inode-links", part="links", harm=_field("/big", "core.nlinkv2", "9")),
    Damage(name="inode-format", part="inode", harm=_field("/big", "core.format", "9")),
    Damage(name="inode-version", part="inode", harm=_field("/big", "core.version", "1")),
    Damage(name="inode-project", part="inode", harm=_field("/big", "core.forkoff", "99")),
    Damage(name="inode-flags", part="inode", harm=_field("/big", "core.realtime", "1")),
    Damage(name="inode-noise", part="inode", harm=_trash_at("/dir1/file1")),
    Damage(name="root-inode", part="inode", harm=_trash("sb 0", "addr rootino"), quick=True),
    Damage(name="rbm-inode", part="inode", harm=_trash("sb 0", "addr rbmino")),
    Damage(
        name="extent-out",
        part="extents",
        harm=_field("/dir2/file1", "u3.bmx[0].startblock", "77777777"),
    ),
    Damage(
        name="extent-length",
        part="extents",
        harm=_field("/dir2/file3", "u3.bmx[0].blockcount", "2000"),
    ),
    Damage(
        name="bmbt-node",
        part="extents",
        harm=_trash_at("/holes", "addr u3.bmbt.ptrs[1]"),
        quick=True,
    ),
    Damage(name="bmbt-level", part="extents", harm=_field("/holes", "u3.bmbt.level", "7")),
    Damage(name="dir-data", part="directory", harm=_trash_at("/many", "dblock 0"), quick=True),
    Damage(name="dir-data-last", part="directory", harm=_trash_at("/many", "dblock 8")),
    Damage(name="dir-leaf", part="directory", harm=_trash_at("/many", "dblock 33554432")),
    Damage(name="dir-block", part="directory", harm=_trash_at("/dir3", "dblock 0")),
    Damage(
        name="dir-entry",
        part="directory",
        harm=_at("/many", "dblock 0", "write -d du[3].inumber 99999"),
    ),
    Damage(
        name="dir-parent",
        part="directory",
        harm=_field("/dir4/deep", "u3.sfdir3.hdr.parent.i4", "135"),
    ),
    Damage(name="short-dir", part="directory", harm=_field("/dir4/deep/deeper", "core.size", "99")),
    Damage(
        name="short-entry",
        part="directory",
        harm=_field("/dir5", "u3.sfdir3.list[0].inumber.i4", "99999"),
    ),
    Damage(
        name="attribute",
        part="attributes",
        harm=_field("/with-attribute", "core.aformat", "9"),
    ),
    Damage(name="long-link", part="symlink", harm=_field("/long-link", "core.size", "5000")),
    Damage(name="short-link", part="symlink", harm=_field("/short-link", "core.size", "300")),
    Damage(name="fifo", part="inode", harm=_field("/fifo", "core.size", "4096")),
]
