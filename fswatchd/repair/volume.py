"""What a repair works on: the image file, or the logical volume, that a filesystem lies in.

Each says what it is by what the kernel knows it by, whatever has its name. What can be done with it
is in `storage`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any

from fswatchd.devno import Devno
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import lease, loop, syscalls
from fswatchd.repair.logical_volume import LogicalVolume, Stamp

_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A regular file that holds a filesystem, by the name it has and the inode it is.

    `birth_ns` is when it was created, None where the host filesystem does not tell. Inode and birth
    are the same after a reboot; `devno` may be another one then (btrfs, ZFS, device-mapper).
    """

    path: str
    devno: Devno
    inode: int
    birth_ns: int | None = None

    @classmethod
    def at(cls, path: str) -> ImageFile:
        """What stands at `path`, symbolic links not followed. Raises OSError."""
        found = os.lstat(path)
        return cls(
            path=path,
            devno=Devno.of(found.st_dev),
            inode=found.st_ino,
            birth_ns=syscalls.birth_ns(path),
        )

    @property
    def directory(self) -> str:
        """The directory the file is in."""
        return os.path.dirname(self.path)

    @property
    def name(self) -> str:
        """The file's name in it."""
        return os.path.basename(self.path)

    def is_at(self, path: str) -> bool:
        """Whether `path` is this file."""
        try:
            found = ImageFile.at(path)
        except OSError:
            return False
        if None in {found.birth_ns, self.birth_ns}:
            return (found.devno, found.inode) == (self.devno, self.inode)
        return (found.inode, found.birth_ns) == (self.inode, self.birth_ns)

    def today(self, *paths: str | None) -> ImageFile:
        """The file with the device number of this boot, if it is at one of these paths."""
        for path in paths:
            if path is not None and self.is_at(path):
                return replace(self, devno=ImageFile.at(path).devno)
        return self

    @property
    def identity(self) -> str:
        """What it is known by, for people."""
        if self.birth_ns is None:
            return f"inode {self.inode} on {self.devno}"
        born = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.birth_ns / 1e9))
        return f"inode {self.inode}, created {born}"

    def stamp(self) -> Stamp | None:
        """What changes with every write to it, None where something else is at its path.

        Times of modification and change in nanoseconds, size in bytes. A write through a loop
        device moves the file's times as any other does.
        """
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        if not self.is_at(self.path):
            return None
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def is_unchanged(self, since: Stamp | None) -> bool:
        """Whether nothing was written since it had that stamp; not known is no."""
        return since is not None and self.stamp() == since

    def loops(self) -> list[str]:
        """Loop devices attached to it, in whatever namespace."""
        return loop.holders(self.devno, self.inode, self.name)

    def holder(self) -> str | None:
        """Why nobody may start on it now; None where no loop device is attached to it."""
        loops = self.loops()
        return f"{', '.join(loops)} is still attached to {self.path}" if loops else None

    def held_by(self, patience_s: float = 0.0) -> str | None:
        """What uses it or writes to it, in whatever namespace; None where nothing does.

        What is on its way out is waited for. Blocks; raises OSError.
        """
        deadline = time.monotonic() + patience_s
        while loops := self.loops():
            if time.monotonic() > deadline:
                return f"{self.path} is attached to {', '.join(loops)}"
            time.sleep(_POLL_S)
        if lease.has_writer(self.path, deadline - time.monotonic()):
            return f"something has {self.path} open for writing, see fuser(1)"
        return None

    @property
    def is_displaced(self) -> bool:
        """Whether its name does not lead to it any more."""
        return not self.is_at(self.path)

    def carries(self, superblock: Superblock) -> bool:
        """Whether this filesystem is the one in it."""
        return superblock.backing.inode_key == (self.devno, self.inode)

    @property
    def node(self) -> str:
        """Where it can be read."""
        return self.path

    def describe(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "path": self.path,
            "devno": str(self.devno),
            "inode": self.inode,
            "birth_ns": self.birth_ns,
        }


Volume = ImageFile | LogicalVolume
