"""The faults of XFS."""

from __future__ import annotations

import os
import re

from fswatchd.drill.damage import Fault, Scene, nothing, overwrite, read_tool, shutdown_at_once
from fswatchd.drill.scene import TARGET, VICTIM_DIRECTORY, DrillError

_SECTOR = 512


def _dir_block(scene: Scene) -> None:
    """Random bytes over a block of a directory with several, the one that new names go into."""
    device = scene.device()
    inode = scene.control.ask(TARGET, "stat", path=VICTIM_DIRECTORY)[0]["inode"]
    size = int(_ask(device, "sb 0", "p blocksize", wanted=r"blocksize = (\d+)"))
    place = int(_ask(device, f"inode {inode}", "dblock 1", "daddr", wanted=r"daddr is (\d+)"))
    # XFS has not read the block since the mount, and does not read through the device's buffers.
    overwrite(scene, device, place * _SECTOR, os.urandom(size))
    scene.control.ask(TARGET, "list", path=VICTIM_DIRECTORY)
    # A name that is not found in the index is put into the block, within a transaction that is
    # under way: XFS shuts itself down.
    scene.control.ask(TARGET, "write", path=f"{VICTIM_DIRECTORY}/one-more", size="1")


def _ask(device: str, *commands: str, wanted: str) -> str:
    """What xfs_db(8) answers to the last of the commands, without writing anything."""
    argv = ["xfs_db", "-r", *(word for command in commands for word in ("-c", command)), device]
    found = re.search(wanted, read_tool(argv))
    if found is None:
        raise DrillError(f"xfs_db does not say where {commands[0]} is")
    return found[1]


FAULTS = (
    Fault(name="none", inject=nothing),
    Fault(name="dir-block", inject=_dir_block),
    Fault(name="shutdown", inject=shutdown_at_once),
)
