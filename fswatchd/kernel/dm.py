"""Device-mapper devices as sysfs shows them (Documentation/ABI/testing/sysfs-block-dm).

Asked there and not below /dev: links are udev's, which may be late. Not here: what `dmsetup` prints
(`devmapper`), and what LVM has written down about its volumes (`repair.lvm`).
"""

from __future__ import annotations

import re
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.kernel import block

MAX_NAME = 127  # DM_NAME_LEN is with the zero at the end (linux/dm-ioctl.h)

_PIECE = re.compile(r"--|-|[^-]+")


def find(attribute: str, value: str, sysfs: Path = block.SYSFS) -> Devno | None:
    """The device whose `name` or `uuid` is this; None where none is active."""
    for device in sorted((sysfs / "block").glob("dm-*")):
        devno = block.devno_of(device.name, sysfs)
        if devno is not None and block.attribute(devno, f"dm/{attribute}", sysfs) == value:
            return devno
    return None


def is_suspended(devno: Devno, sysfs: Path = block.SYSFS) -> bool:
    """Whether what is written to it waits until somebody resumes it."""
    return block.attribute(devno, "dm/suspended", sysfs) == "1"


def join(*parts: str) -> str:
    """The name of an LVM device: its parts with hyphens between, their own hyphens doubled."""
    return "-".join(part.replace("-", "--") for part in parts)


def split(name: str) -> list[str]:
    """The parts again: volume group, logical volume, and a layer where it is one of LVM's own."""
    parts = [""]
    for piece in _PIECE.findall(name):
        if piece == "-":
            parts.append("")
        else:
            parts[-1] += "-" if piece == "--" else piece
    return parts
