"""Images that rest on other images: qcow2 backing chains, COW files of User-mode Linux, ploop
deltas, and what nbd serves.

Read in the scanning thread, so only on filesystems of this node: a file on FUSE or a network may
never answer. Which format an image has is taken from the platform that opens it, from its name
(`.qcow2`) or from the header of the one above it, never from its content (see `kernel.qcow2`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from fswatchd.devno import Devno
from fswatchd.inventory.model import Backing, BlockDevice, ImageKey
from fswatchd.inventory.places import Places
from fswatchd.kernel import block, cow, nbd, qcow2

_MAX_DEPTH = 32
_QCOW2 = (".qcow2", ".qcow2c")
Stamp = tuple[int, int, int]


@dataclass(slots=True)
class Chains:
    """`bases`: an image → the one beneath it. `paths`: where each of them is."""

    bases: dict[ImageKey, ImageKey] = field(default_factory=dict)
    paths: dict[ImageKey, str] = field(default_factory=dict)


class ImageReader:
    """Remembers headers while their files do not change."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._deltas: dict[ImageKey, tuple[ImageKey, str, str]] = {}
        self._beneath: dict[tuple[ImageKey, Stamp, str], tuple[str, str] | None] = {}

    def chains(
        self, images: Mapping[ImageKey, str], formats: Mapping[ImageKey, str] | None = None
    ) -> Chains:
        """Everything that these images (and where they are) rest on, after all `served`.

        `formats` are those that a platform has said (`Volume.format`).
        """
        found = Chains()
        for delta, (base, path, lower) in self._deltas.items():
            found.bases[delta] = base
            found.paths |= {delta: path, base: lower}
        self._deltas.clear()
        used: set[tuple[ImageKey, Stamp, str]] = set()
        for image, path in images.items():
            above, kind = path, (formats or {}).get(image) or _named(path)
            for _ in range(_MAX_DEPTH):
                look = self._look(above) if kind in _CHAINED else None
                if look is None:
                    break
                key, stamp = look
                used.add((key, stamp, kind))
                below = self._what_is_beneath(above, key, stamp, kind)
                beneath = self._look(below[0]) if below is not None else None
                if below is None or beneath is None or beneath[0] == key or key in found.bases:
                    break
                found.bases[key] = beneath[0]
                found.paths |= {key: above, beneath[0]: below[0]}
                above, kind = below
        self._beneath = {key: known for key, known in self._beneath.items() if key in used}
        return found

    def served(self, device: BlockDevice) -> Backing:
        """What an nbd device rests on, as far as its server tells, and the deltas of a ploop."""
        files = _deltas(device) if device.kind == "ploop" else _served(device)
        known = {path: look[0] for path in files if (look := self._look(path)) is not None}
        if device.kind == "ploop":
            for above, below in itertools.pairwise(files):
                if above in known and below in known:
                    self._deltas[known[above]] = (known[below], above, below)
        if not files or files[0] not in known:
            return Backing(kind=device.kind)
        devno, inode = known[files[0]]
        return Backing(kind=device.kind, image=files[0], image_devno=devno, image_inode=inode)

    def _look(self, path: str) -> tuple[ImageKey, Stamp] | None:
        if not self._places.is_local(path):
            return None
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        return (Devno.of(status.st_dev), status.st_ino), stamp

    def _what_is_beneath(
        self, path: str, key: ImageKey, stamp: Stamp, kind: str
    ) -> tuple[str, str] | None:
        if (key, stamp, kind) not in self._beneath:
            found = None
            with suppress(OSError, ValueError), open(path, "rb") as file:
                found = _CHAINED[kind](file.read(max(qcow2.HEADER_SIZE, cow.HEADER_SIZE)), path)
            self._beneath[key, stamp, kind] = found
        return self._beneath[key, stamp, kind]


def _named(path: str) -> str:
    return "qcow2" if path.endswith(_QCOW2) else "raw"


def _beneath_qcow2(data: bytes, path: str) -> tuple[str, str] | None:
    header = qcow2.parse(data[: qcow2.HEADER_SIZE])
    below = qcow2.file_of(header.backing, path) if header is not None and header.backing else None
    if header is None or below is None:
        return None
    return below, _named(below) if header.backing_format is None else header.backing_format


def _beneath_cow(data: bytes, _path: str) -> tuple[str, str] | None:
    """A COW file names what it was made of from the root on, or from where nobody knows; that is
    never a COW file itself (arch/um/drivers/ubd_kern.c)."""
    header = cow.parse(data)
    if header is None or not os.path.isabs(header.backing_file):
        return None
    return header.backing_file, "raw"


_CHAINED: dict[str, Callable[[bytes, str], tuple[str, str] | None]] = {
    "qcow2": _beneath_qcow2,
    "cow": _beneath_cow,
}


def _served(device: BlockDevice) -> list[str]:
    pid = nbd.server(device.name)
    return nbd.served(pid)[:1] if pid is not None else []


def _deltas(device: BlockDevice) -> list[str]:
    """The one that is written first."""
    return block.ploop_deltas(device.name)[::-1]
