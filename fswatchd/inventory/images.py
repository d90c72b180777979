"""Images that rest on other images: qcow2 backing chains, ploop deltas, and what nbd serves.

Read in the scanning thread, so only on filesystems of this node: a file on FUSE or a network may
never answer. Which format an image has is taken from its name (`.qcow2`) or from the header of the
one above it, never from its content (see `kernel.qcow2`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from fswatchd.devno import Devno
from fswatchd.inventory.model import Backing, BlockDevice, ImageKey
from fswatchd.inventory.places import Places
from fswatchd.kernel import block, nbd, qcow2

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
        self._headers: dict[tuple[ImageKey, Stamp], qcow2.Header | None] = {}

    def chains(self, images: Mapping[ImageKey, str]) -> Chains:
        """Everything that these images (and where they are) rest on, after all `served`."""
        found = Chains()
        for delta, (base, path, lower) in self._deltas.items():
            found.bases[delta] = base
            found.paths |= {delta: path, base: lower}
        self._deltas.clear()
        used: set[tuple[ImageKey, Stamp]] = set()
        for path in images.values():
            above, is_qcow2 = path, path.endswith(_QCOW2)
            for _ in range(_MAX_DEPTH):
                look = self._look(above) if is_qcow2 else None
                if look is None:
                    break
                key, stamp = look
                used.add((key, stamp))
                header = self._header(above, key, stamp)
                if header is None or header.backing is None or key in found.bases:
                    break
                below = qcow2.file_of(header.backing, above)
                beneath = self._look(below) if below is not None else None
                if below is None or beneath is None or beneath[0] == key:
                    break
                found.bases[key] = beneath[0]
                found.paths |= {key: above, beneath[0]: below}
                is_qcow2 = header.backing_format in {"qcow2", None} and (
                    header.backing_format is not None or below.endswith(_QCOW2)
                )
                above = below
        self._headers = {key: known for key, known in self._headers.items() if key in used}
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

    def _header(self, path: str, key: ImageKey, stamp: Stamp) -> qcow2.Header | None:
        if (key, stamp) not in self._headers:
            header = None
            with suppress(OSError, qcow2.Qcow2Error), open(path, "rb") as file:
                header = qcow2.parse(file.read(qcow2.HEADER_SIZE))
            self._headers[key, stamp] = header
        return self._headers[key, stamp]


def _served(device: BlockDevice) -> list[str]:
    pid = nbd.server(device.name)
    return nbd.served(pid)[:1] if pid is not None else []


def _deltas(device: BlockDevice) -> list[str]:
    """The one that is written first."""
    return block.ploop_deltas(device.name)[::-1]
