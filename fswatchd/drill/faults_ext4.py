"""The faults of ext4."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from fswatchd.drill.damage import (
    Fault,
    Scene,
    empty_host,
    fill_host,
    nothing,
    overwrite,
    read_tool,
    shutdown,
)
from fswatchd.drill.scene import COLD_FILE, TARGET, VICTIM_DIRECTORY, DrillError

_DAMAGED_GROUPS = 16
_CHECKSUM_LOW = 0x7C  # ext4_inode.osd2.linux2.l_i_checksum_lo, fs/ext4/ext4.h
_OPTIONS = "errors=continue"


def _dir_block(scene: Scene) -> None:
    """Random bytes over the first block of a directory."""
    device = scene.device()
    inode = scene.control.ask(TARGET, "stat", path=VICTIM_DIRECTORY)[0]["inode"]
    number = int(_debugfs(device, f"blocks <{inode}>").split()[0])
    size = _block_size(device)
    overwrite(scene, device, number * size, os.urandom(size))
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
    overwrite(scene, device, offset, bytes(byte ^ 0xFF for byte in checksum))
    scene.control.ask(TARGET, "read", path=COLD_FILE)


def _bitmap(scene: Scene) -> None:
    """Bits in a block bitmap that its group descriptor knows nothing of."""
    device = scene.device()
    output = read_tool(["dumpe2fs", device])
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
        overwrite(scene, device, int(number) * size + middle, b"\xff" * 8)
    # Reading this file loads the bitmaps of all groups (fs/ext4/mballoc.c).
    Path(f"/proc/fs/ext4/{os.path.basename(device)}/mb_groups").read_text(encoding="ascii")


def _abort(scene: Scene) -> None:
    scene.device()
    scene.control.ask(TARGET, "abort")


def _put_at_the_end(image: Path) -> None:
    """Move the file's only block to the last one of the filesystem."""
    number = re.search(r"Inode: (\d+)", _debugfs(str(image), f'stat "{COLD_FILE}"'))
    count = re.search(r"Block count:\s+(\d+)", read_tool(["dumpe2fs", "-h", str(image)]))
    if number is None or count is None:
        raise DrillError(f"{COLD_FILE} is not in the image")
    inode, last = f"<{number[1]}>", int(count[1]) - 1
    before = int(_debugfs(str(image), f"blocks {inode}").split()[0])
    size = _block_size(str(image))
    with image.open("r+b") as file:
        file.seek(before * size)
        content = file.read(size)
        file.seek(last * size)
        file.write(content)
    extent = (f"extent_open {inode}", "root", f"replace_node 0 1 {last}", "extent_close")
    commands = "\n".join((*extent, f"setb {last} 1", f"freeb {before} 1", ""))
    for argv, given, good in (
        (["debugfs", "-w", "-f", "-", str(image)], commands, {0}),
        (["e2fsck", "-fy", str(image)], None, {0, 1}),  # the counters of both groups
        (["e2fsck", "-fn", str(image)], None, {0}),
    ):
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
        if done.returncode not in good:
            raise DrillError(f"{' '.join(argv)} failed: {done.stdout.strip()[-200:]}")


def _io(scene: Scene) -> None:
    """Let the device end before the last block, which is a file's: reading that is an error."""
    image = scene.paths.image(TARGET)
    device = scene.device()
    size = os.stat(image).st_size
    os.truncate(image, size - _block_size(device))
    scene.control.ask(TARGET, "read", path=COLD_FILE)


FAULTS = (
    Fault(name="none", inject=nothing, options=_OPTIONS),
    Fault(name="dir-block", inject=_dir_block, options=_OPTIONS),
    Fault(name="inode", inject=_inode, options=_OPTIONS),
    Fault(
        name="bitmap",
        inject=_bitmap,
        # Without checksums the kernel compares bitmap and descriptor, and without prefetching it
        # has not read the bitmap before the damage is done.
        # Many small groups: the last one is far from everything that is written.
        features=("-O", "^metadata_csum,^uninit_bg,^resize_inode", "-g", "256"),
        options=f"{_OPTIONS},no_prefetch_block_bitmaps",
    ),
    Fault(name="abort", inject=_abort, options=_OPTIONS),
    Fault(name="shutdown", inject=shutdown, options=_OPTIONS),
    Fault(
        name="host-full",
        inject=fill_host,
        relieve=empty_host,
        # A small journal is soon at a block that the host has not allocated yet.
        features=("-J", "size=4"),
        options=_OPTIONS,
    ),
    Fault(
        name="io",
        inject=_io,
        prepare=_put_at_the_end,
        direct_io=True,  # reading through the page cache, loop answers with zeros
        features=("-b", "4096"),
        options=_OPTIONS,
        expected_lost=1,
        lost_file=COLD_FILE,
        # Nothing is repaired on a device that fails.
        ends_as="waiting",
    ),
)


def _block_size(device: str) -> int:
    found = re.search(r"Block size:\s+(\d+)", read_tool(["dumpe2fs", "-h", device]))
    if found is None:
        raise DrillError(f"dumpe2fs does not know {device}")
    return int(found[1])


def _debugfs(device: str, request: str) -> str:
    return read_tool(["debugfs", "-R", request, device])
