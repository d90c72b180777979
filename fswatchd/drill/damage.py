"""What all faults share: the scene, the fault, and writes to a device proven to be the drill's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from fswatchd.devno import Devno
from fswatchd.drill.control import ControlServer
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import TARGET, DrillError
from fswatchd.kernel import block, loop

_TIMEOUT_S = 60
_ATTEMPTS = 10
_PAUSE_S = 0.02


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
    person. `relieve` takes the cause away as soon as the incident waits for that.
    """

    name: str
    inject: Callable[[Scene], None]
    features: tuple[str, ...] = ()
    options: str = ""
    expected_lost: int = 0
    ends_as: str = "repaired"
    relieve: Callable[[Scene], None] | None = None


def nothing(_scene: Scene) -> None:
    """No fault at all."""


def shutdown(scene: Scene) -> None:
    """Stop all I/O of the filesystem, as a device that goes away does."""
    scene.device()
    scene.control.ask(TARGET, "shutdown")


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
