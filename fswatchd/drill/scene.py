"""Build the scratch host filesystem and the scratch VEs on it.

mkfs runs here and nowhere else in the project, and only on a regular file that was created a moment
ago with O_EXCL, held open, and checked again by inode.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from fswatchd.drill import inside
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.ve import VeSpec
from fswatchd.errors import FswatchError
from fswatchd.kernel import loop
from fswatchd.kernel.syscalls import mount, mount_detached

TARGET = "target"
BYSTANDER = "bystander"
VICTIM_DIRECTORY = "/victim"
COLD_FILE = "/cold/file-0000"
_VICTIM_FILES = 100
# XFS keeps a directory of more than some 120 such names in several blocks, with an index.
_VICTIM_FILES_XFS = 300
_COLD_FILES = 50
_PER_DIRECTORY = 500
_TIMEOUT_S = 3600  # mke2fs with a million files
_POLL_S = 0.01
_TOOLS = {
    "ext4": {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"},
    "xfs": {"xfs_db": "xfsprogs"},
    "btrfs": {"mkfs.btrfs": "btrfs-progs", "btrfs": "btrfs-progs"},
}


class DrillError(FswatchError):
    """The drill cannot be done here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What was put into a VE's image: path → name under which `inside.content` makes the bytes."""

    paths: list[str]
    readable: list[str]


def check_tools(fstype: str) -> None:
    """Raise DrillError naming the first tool that is missing."""
    for tool, package in {"mkfs.xfs": "xfsprogs", **_TOOLS[fstype]}.items():
        if shutil.which(tool) is None:
            raise DrillError(f"the drill needs {tool}", hint=f"install {package}")


def build_host(paths: ScenePaths, size_bytes: int, *, direct_io: bool = False) -> None:
    """An XFS that can share blocks, on a sparse file, mounted in this mount namespace.

    With `direct_io` nothing of the file beneath it is kept in memory, as of a disk.
    """
    _create(paths.host_image, size_bytes)
    _mkfs(["mkfs.xfs", "-q", "-m", "reflink=1"], paths.host_image)
    paths.host.mkdir()
    device, fd = _attach(paths.host_image, direct_io=direct_io)
    try:
        mount(device, str(paths.host), "xfs", 0, None)
    finally:
        os.close(fd)


def build_ve(
    paths: ScenePaths,
    ve: str,
    *,
    size_bytes: int,
    files: int,
    features: list[str],
    options: str,
    fstype: str = "ext4",
    direct_io: bool = False,
    per_directory: int = _PER_DIRECTORY,
) -> Content:
    """An image with a filesystem with files in it, and the specification its VE is started from."""
    tree = paths.directory / f"tree-{ve}"
    victims = _VICTIM_FILES_XFS if fstype == "xfs" else _VICTIM_FILES
    content = _populate(tree, files, victims, per_directory)
    _create(paths.image(ve), size_bytes)
    paths.root(ve).mkdir()
    try:
        if fstype == "ext4":
            argv = ["mke2fs", "-q", "-t", "ext4", *features, "-d", str(tree)]
            _mkfs(argv, paths.image(ve))
        elif fstype == "btrfs":
            argv = ["mkfs.btrfs", "-q", *features, "--rootdir", str(tree)]
            _mkfs(argv, paths.image(ve))
        else:
            _mkfs([f"mkfs.{fstype}", "-q", *features], paths.image(ve))
            _fill(paths.image(ve), tree, fstype)
    finally:
        shutil.rmtree(tree)
    VeSpec(
        name=ve,
        image=str(paths.image(ve)),
        root=str(paths.root(ve)),
        cgroup=paths.cgroup(ve),
        control=str(paths.control),
        fstype=fstype,
        direct_io=direct_io,
        mount_options=options,
        read_paths=content.readable,
    ).save(paths.spec(ve))
    return content


def _attach(image: Path, *, direct_io: bool = False) -> tuple[str, int]:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        return loop.attach(fd, autoclear=True, direct_io=direct_io)
    finally:
        os.close(fd)


def _fill(image: Path, tree: Path, fstype: str) -> None:
    """Copy the tree into a filesystem that is mounted nowhere but in our hand."""
    device, fd = _attach(image)
    try:
        held = mount_detached(fstype, {"source": device})
        try:
            shutil.copytree(tree, f"/proc/self/fd/{held}", dirs_exist_ok=True)
        finally:
            os.close(held)
    finally:
        os.close(fd)
    while os.path.exists(f"/sys/fs/{fstype}/{os.path.basename(device)}"):
        time.sleep(_POLL_S)


def _populate(tree: Path, files: int, victims: int, per_directory: int) -> Content:
    """Small files with contents of their own: a victim directory, a cold one, and many others."""
    found: list[str] = []

    def add(path: str) -> None:
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(inside.content(path))
        found.append(path)

    for number in range(victims):
        add(f"{VICTIM_DIRECTORY}/file-{number:04d}")
    for number in range(_COLD_FILES):
        add(f"/cold/file-{number:04d}")
    others = []
    for number in range(max(files - victims - _COLD_FILES, 50)):
        others.append(f"/data/{number // per_directory:04d}/file-{number:06d}")
        add(others[-1])
    (tree / inside.WORK.lstrip("/")).mkdir()
    return Content(paths=found, readable=others[:: max(len(others) // 200, 1)])


def _create(path: Path, size_bytes: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def _mkfs(argv: list[str], path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_blocks:
            raise DrillError(f"{path} is not an empty regular file: no filesystem is made on it")
        done = subprocess.run(
            [*argv, str(path)], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    finally:
        os.close(fd)
    if done.returncode:
        raise DrillError(f"{argv[0]} failed: {done.stderr.strip()}")
