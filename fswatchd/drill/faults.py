"""Do the damage: to the target's own device, proven to be the drill's before every write."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.drill.control import ControlServer
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import COLD_FILE, TARGET, VICTIM_DIRECTORY, DrillError
from fswatchd.kernel import block, loop

_TIMEOUT_S = 60
_DAMAGED_GROUPS = 16
_ATTEMPTS = 10
_PAUSE_S = 0.02
_CHECKSUM_LOW = 0x7C  # ext4_inode.osd2.linux2.l_i_checksum_lo, fs/ext4/ext4.h


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

    `inject` returns when the kernel has been led to the damage. `features` and `options` are
    for mke2fs and mount.
    """

    name: str
    inject: Callable[[Scene], None]
    features: tuple[str, ...] = ()
    options: str = "errors=continue"
    expected_lost: int = 0


def _none(_scene: Scene) -> None:
    return


def _dir_block(scene: Scene) -> None:
    """Random bytes over the first block of a directory."""
    device = scene.device()
    inode = scene.control.ask(TARGET, "stat", path=VICTIM_DIRECTORY)[0]["inode"]
    number = int(_debugfs(device, f"blocks <{inode}>").split()[0])
    size = _block_size(device)
    _overwrite(scene, device, number * size, os.urandom(size))
    scene.control.ask(TARGET, "list", path=VICTIM_DIRECTORY)


def _inode(scene: Scene) -> None:
    """A wrong checksum in an inode that nobody has looked at since the mount."""
    device = scene.device()
    inode = re.search(r"Inode: (\d+)", _debugfs(device, f'stat "{COLD_FILE}"'))
    if inode is None:
        raise DrillError(f"{COLD_FILE} is not in the image")
    place = re.search(
        r"located at block (\d+), offset 0x([0-9a-f]+)", _debugfs(device, f"imap <{inode[1]}>")
    )
    if place is None:
        raise DrillError("debugfs does not say where the inode is")
    offset = int(place[1]) * _block_size(device) + int(place[2], 16) + _CHECKSUM_LOW
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        checksum = os.pread(fd, 2, offset)
    finally:
        os.close(fd)
    _overwrite(scene, device, offset, bytes(byte ^ 0xFF for byte in checksum))
    scene.control.ask(TARGET, "read", path=COLD_FILE)


def _bitmap(scene: Scene) -> None:
    """Bits in a block bitmap that its group descriptor knows nothing of."""
    device = scene.device()
    output = _run(["dumpe2fs", device])
    bitmaps = re.findall(r"Block bitmap at (\d+)", output)
    if not bitmaps:
        raise DrillError("dumpe2fs names no block bitmap")
    per_group = re.search(r"Blocks per group:\s+(\d+)", output)
    if per_group is None:
        raise DrillError(f"dumpe2fs does not know {device}")
    # The bits in the middle of an empty group are free blocks. Several groups are damaged, because
    # the kernel never looks again at the bitmap of one that it has read before.
    middle = int(per_group[1]) // 8 // 2
    size = _block_size(device)
    for number in bitmaps[-_DAMAGED_GROUPS:]:
        _overwrite(scene, device, int(number) * size + middle, b"\xff" * 8)
    # Reading this file loads the bitmaps of all groups (fs/ext4/mballoc.c).
    Path(f"/proc/fs/ext4/{os.path.basename(device)}/mb_groups").read_text(encoding="ascii")


def _abort(scene: Scene) -> None:
    scene.device()
    scene.control.ask(TARGET, "abort")


def _shutdown(scene: Scene) -> None:
    scene.device()
    scene.control.ask(TARGET, "shutdown")


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault(name="none", inject=_none),
        Fault(name="dir-block", inject=_dir_block),
        Fault(name="inode", inject=_inode),
        Fault(
            name="bitmap",
            inject=_bitmap,
            # Without checksums the kernel compares bitmap and descriptor, and without prefetching
            # it has not read the bitmap before the damage is done.
            # Many small groups: the last one is far from everything that is written.
            features=("-O", "^metadata_csum,^uninit_bg,^resize_inode", "-g", "256"),
            options="errors=continue,no_prefetch_block_bitmaps",
        ),
        Fault(name="abort", inject=_abort),
        Fault(name="shutdown", inject=_shutdown),
    )
}


def _overwrite(scene: Scene, device: str, offset: int, data: bytes) -> None:
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


def _block_size(device: str) -> int:
    found = re.search(r"Block size:\s+(\d+)", _run(["dumpe2fs", "-h", device]))
    if found is None:
        raise DrillError(f"dumpe2fs does not know {device}")
    return int(found[1])


def _debugfs(device: str, request: str) -> str:
    return _run(["debugfs", "-R", request, device])


def _run(argv: list[str]) -> str:
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
