"""ploop, the image format of OpenVZ and Virtuozzo (openvz.org/Ploop).

A disk is a directory with DiskDescriptor.xml and one or more deltas: each but the top one is
read-only and others rest on it. Up to Virtuozzo 7 a disk becomes /dev/ploopN, with its deltas in
/sys/block/ploopN/pdelta; since Virtuozzo 8 a device-mapper device called ploopN, which tells them
only by ioctl. The filesystem is on partition 1 (lib/xml.c, lib/delta_sysfs.c, lib/dm.c).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from fswatchd.devno import Devno
from fswatchd.kernel import block
from fswatchd.platforms import seen

DESCRIPTOR = "DiskDescriptor.xml"
# The top delta, where the descriptor does not name it (include/libploop.h, TOPDELTA_UUID).
_TOP = "5fbaabe3-6958-40ff-92a7-860e329aab41"
_NAME = re.compile(r"(ploop\d+)(?:p\d+)?")


class PloopError(ValueError):
    """A descriptor that libploop would refuse too, or that says more than one thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The deltas of a disk as absolute paths; `top` is the one that is written to."""

    top: str
    deltas: tuple[str, ...]


class Descriptors:
    """The descriptors of disks, each read again only when it has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Disk]] = {}

    def read(self, directory: str) -> Disk | None:
        """The disk in a directory, None where there is none. Raises OSError, PloopError."""
        path = f"{directory}/{DESCRIPTOR}"
        stamp = seen.stamp(path)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            self._known.pop(path, None)
            try:
                text = Path(path).read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, NotADirectoryError):
                return None
            disk = read_descriptor(text, os.path.realpath(directory))
            known = self._known[path] = (stamp, disk)
        return known[1]


def read_descriptor(text: str, directory: str) -> Disk:
    """The text of DiskDescriptor.xml; files in it are meant from `directory`. Raises PloopError."""
    if "<!" in text.replace("<!--", ""):
        raise PloopError("it declares entities")
    try:
        root = ET.fromstring(text)  # noqa: S314 - nothing is expanded, see above
    except ET.ParseError as error:
        raise PloopError(str(error)) from error
    if len(root.findall("StorageData/Storage")) != 1:
        raise PloopError("it has not exactly one Storage")
    deltas = {}
    for image in root.findall("StorageData/Storage/Image"):
        guid, file = image.findtext("GUID"), image.findtext("File")
        if guid is None or not file:
            raise PloopError("an Image has no GUID or no File")
        deltas[_normal(guid)] = os.path.normpath(os.path.join(directory, file))
    top = deltas.get(_normal(root.findtext("Snapshots/TopGUID") or _TOP))
    if top is None:
        raise PloopError("its top delta is not among its images")
    return Disk(top=top, deltas=tuple(deltas.values()))


def disk_name(devno: Devno, sysfs: Path = block.SYSFS) -> str | None:
    """`ploopN` where the number is that of a ploop device or of a partition on one."""
    name = os.path.basename((sysfs / "dev/block" / str(devno)).resolve())
    match = _NAME.fullmatch(name) or _NAME.fullmatch(block.attribute(devno, "dm/name", sysfs) or "")
    return match[1] if match else None


def attached_deltas(disk: str, sysfs: Path = block.SYSFS) -> tuple[str, ...] | None:
    """The deltas that /dev/ploopN consists of, the base first; None where the kernel hides it."""
    directory = sysfs / "block" / disk / "pdelta"
    try:
        levels = sorted(int(name) for name in os.listdir(directory) if name.isdecimal())
        return tuple((directory / str(n) / "image").read_text().rstrip("\n") for n in levels)
    except (OSError, UnicodeDecodeError):
        return None


def _normal(guid: str) -> str:
    return guid.strip().strip("{}").lower()
