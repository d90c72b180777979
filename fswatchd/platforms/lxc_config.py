"""What LXC keeps of its containers on the disk (lxc.container.conf(5))."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from fswatchd.situation import WISH, joined_labels

# Of the kinds of storage (src/lxc/storage/storage.c) those whose source is one path; what follows
# overlay:, overlayfs:, zfs:, rbd: and nbd: is something else.
_ROOTFS = re.compile(r"\s*lxc\.rootfs\.path\s*=\s*(?:(loop|lvm|dir|btrfs):)?(/\S.*?)\s*$")
_CGROUP = re.compile(r"\s*lxc\.cgroup\.(dir|dir\.container)\s*=\s*(\S+)\s*$")
_WISH = re.compile(rf"\s*#\s*{WISH}\s*[:=]\s*(.*?)\s*$")

Key = tuple[str, str]
"""lxcpath and name"""


@dataclass(frozen=True, slots=True)
class Root:
    """What `lxc.rootfs.path` says; `is_loop` where it calls it an image."""

    path: str
    is_loop: bool

    @property
    def is_asked(self) -> bool:
        """Whether the path alone does not say what it is."""
        return not self.path.startswith("/dev/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of one container.

    `labels` has what its owner wishes: `# fswatch: observe`, the most careful where there are
    several; None where it cannot be read. `cgroups` are `lxc.cgroup.dir` (True) and
    `lxc.cgroup.dir.container` (False) with their values.
    """

    root: Root | None = None
    labels: dict[str, str] | None = None
    cgroups: tuple[tuple[bool, str], ...] = ()

    @classmethod
    def of(cls, lines: Iterable[str]) -> Config:
        """What its lines say."""
        kept = list(lines)
        root = next((m for line in kept if (m := _ROOTFS.match(line))), None)
        return cls(
            root=Root(root[2], is_loop=root[1] == "loop") if root is not None else None,
            labels=joined_labels({}, *({WISH: m[1]} for line in kept if (m := _WISH.match(line)))),
            cgroups=tuple((m[1] == "dir", m[2]) for line in kept if (m := _CGROUP.match(line))),
        )


def read_all(default_path: str, running: Collection[Key]) -> dict[Key, Config]:
    """Those of all containers below the default path, and below those on which something runs, as
    far as root alone writes there. Blocks where a disk or a server does not answer."""
    names: dict[str, set[str]] = {default_path: set()}
    for path, name in running:
        if path == default_path or only_root_writes(path):
            names.setdefault(path, set()).add(name)
    found = {}
    for path in sorted(names):
        for name in sorted({*_entries(path), *names[path]}):
            file = os.path.join(path, name, "config")
            if os.path.exists(file):
                found[path, name] = _read(file)
    return found


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read(path: str) -> Config:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return Config.of(file)
    except OSError:
        return Config()


def only_root_writes(path: str) -> bool:
    """Whether root alone decides what is found at the directory `path`, and it is no view of /proc.

    A parent that everybody may write, as /tmp, is no harm where the sticky bit keeps others from
    renaming what is root's in it.
    """
    if path != os.path.normpath(path) or not path.startswith("/"):
        return False
    real = os.path.realpath(path)
    process_filesystem = os.stat("/proc").st_dev
    for place in {real, path, *map(str, Path(real).parents), *map(str, Path(path).parents)}:
        try:
            found = os.lstat(place)
        except (OSError, ValueError):
            return False
        if found.st_uid != 0 or found.st_dev == process_filesystem:
            return False
        if stat.S_ISLNK(found.st_mode):
            continue
        others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid)
        if others and (place == real or not found.st_mode & stat.S_ISVTX):
            return False
    return True
