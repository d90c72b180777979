"""What all faults share: the scene, the fault, and writes to a device proven to be the drill's."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.drill.control import ControlServer
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import BYSTANDER, TARGET, DrillError
from fswatchd.kernel import block, loop

_TIMEOUT_S = 60
_ATTEMPTS = 10
_PAUSE_S = 0.02
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a fault needs."""

    paths: ScenePaths
    control: ControlServer

    def device(self) -> str:
        """The target's loop device; raises DrillError unless it is on the drill's own image."""
        status = os.stat(self.paths.image(TARGET))
        found = loop.holders(Devno.of(status.st_dev), status.st_ino)
        if len(found) != 1:
            raise DrillError(f"the target's image is attached to {found or 'nothing'}")
        return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How the image is made, and how it is damaged.

    `inject` returns when the kernel has been led to the damage. `features` and `options` are for
    mkfs and mount. `ends_as` is how the incident has to end: what no repair brings back is for a
    person. `relieve` takes the cause away as soon as the incident waits for that. `lost_file` is
    the file that the fault destroys: the incident has to name it. `prepare` works on the image
    before the VE is started, and with `direct_io` its device reads past the page cache.
    """

    name: str
    inject: Callable[[Scene], None]
    features: tuple[str, ...] = ()
    options: str = ""
    expected_lost: int = 0
    ends_as: str = "repaired"
    relieve: Callable[[Scene], None] | None = None
    lost_file: str | None = None
    prepare: Callable[[Path], None] | None = None
    direct_io: bool = False


def nothing(_scene: Scene) -> None:
    """No fault at all."""


def fill_host(scene: Scene) -> None:
    """Fill the host filesystem; the bystander's image has all its blocks before that.

    Returns when the kernel has stopped writes to the target, for want of a block on the host.
    """
    image = os.open(scene.paths.image(BYSTANDER), os.O_RDWR | os.O_CLOEXEC)
    filler = os.open(scene.paths.filler, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(image, 0, os.fstat(image).st_size)
        room, filled = os.statvfs(scene.paths.host), 0
        length = room.f_bavail * room.f_frsize
        while length >= room.f_frsize:
            try:
                os.posix_fallocate(filler, filled, length)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                length //= 2
            else:
                filled += length
    finally:
        os.close(filler)
        os.close(image)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while scene.control.ask(TARGET, "write", path="/probe", size="65536")[-1].get("errno") != (
        errno.EROFS
    ):
        if time.monotonic() > deadline:
            raise DrillError("the host filesystem is full, and the kernel goes on writing")
        time.sleep(_POLL_S)


def empty_host(scene: Scene) -> None:
    """Give the host filesystem its room back."""
    scene.paths.filler.unlink()


def shutdown(scene: Scene) -> None:
    """Stop all I/O of the filesystem, as a device that goes away does."""
    scene.device()
    scene.control.ask(TARGET, "shutdown")


def shutdown_at_once(scene: Scene) -> None:
    """The same with the log as it is, so that the next mount has something to replay."""
    scene.device()
    scene.control.ask(TARGET, "shutdown", at_once="1")


def overwrite(scene: Scene, device: str, offset: int, data: bytes) -> None:
    """Write to the device, and make the kernel forget what it has read of it."""
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = os.stat(scene.paths.image(TARGET))
        now = loop.status_of(fd, device)
        if (now.backing_devno, now.backing_inode) != (Devno.of(status.st_dev), status.st_ino):
            raise DrillError(f"{device} is not the target's: nothing was written")
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    block.drop_buffers(device)


def read_tool(argv: list[str]) -> str:
    """What the tool prints of a mounted device.

    A superblock that is being written at that moment does not match its checksum; then the tool
    says nothing, and is asked again.
    """
    for _ in range(_ATTEMPTS):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout
        time.sleep(_PAUSE_S)
    raise DrillError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
