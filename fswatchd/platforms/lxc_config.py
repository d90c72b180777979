"""What LXC keeps of its containers on the disk (lxc.container.conf(5)).

It may lie on a disk, or on a server, that does not answer. So a thread of its own reads it, and
where that is late what was read before is taken, until it comes back.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fswatchd.events import printable
from fswatchd.kernel.patience import Patience
from fswatchd.situation import WISH, joined_labels

# Of the kinds of storage (src/lxc/storage/storage.c) those whose source is one path; what follows
# overlay:, overlayfs:, zfs:, rbd: and nbd: is something else.
_ROOTFS = re.compile(r"\s*lxc\.rootfs\.path\s*=\s*(?:(loop|lvm|dir|btrfs):)?(/\S.*?)\s*$")
_CGROUP = re.compile(r"\s*lxc\.cgroup\.(dir|dir\.container)\s*=\s*(\S+)\s*$")
_WISH = re.compile(rf"\s*#\s*{WISH}\s*[:=]\s*(.*?)\s*$")
_ANSWER_S = 2.0


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


@dataclass(frozen=True, slots=True)
class Configs:
    """(lxcpath, name) → configuration, of all containers on paths that root alone writes.

    `problems` is what to tell an admin.
    """

    found: Mapping[tuple[str, str], Config] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class ConfigReader:
    """See the module."""

    def __init__(self) -> None:
        self._patience = Patience()
        self._before = Configs()

    async def read(self, default_path: str, running: Collection[tuple[str, str]]) -> Configs:
        """What is below the default path, and below those on which something runs."""
        try:
            self._before = await asyncio.to_thread(
                self._patience.ask,
                "configurations",
                lambda: read_all(default_path, running),
                _ANSWER_S,
            )
        except TimeoutError:
            paths = sorted({default_path, *(path for path, _ in running)})
            text = f"{', '.join(map(printable, paths))}: what is there does not answer"
            return Configs(self._before.found, (text,))
        return self._before


def read_all(default_path: str, running: Collection[tuple[str, str]]) -> Configs:
    """The same now, however long it takes."""
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
    return Configs(found)


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
