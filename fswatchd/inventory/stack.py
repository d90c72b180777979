"""Read what lies beneath filesystems: loop devices and their images, partitions, dm, md, nbd.

From sysfs (Documentation/ABI/stable/sysfs-block) and LOOP_GET_STATUS64. No name is followed: a
device is its number and DISKSEQ, an image its device and inode, and a path is only kept where it
still leads to that inode. The graph itself is in `model`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from errno import ENXIO

from fswatchd.devno import Devno
from fswatchd.inventory.model import Backing, BlockDevice, VeId
from fswatchd.inventory.paths import Key, inode_key
from fswatchd.kernel import block, loop, pseudofile

# (device, inode) of an image file → the VE that declares it, and its path.
Images = Mapping[tuple[Devno, int], tuple[VeId, str]]

_DEVICE = Backing(kind="device")
_PATIENCE_S = 0.5
_TOGETHER = 8
# What these rest on can change while they stay the same device (a table is loaded, a disk added).
_CHANGEABLE = frozenset({"dm", "md"})


class StackReader:
    """Remembers what cannot change while a device keeps its DISKSEQ."""

    def __init__(self, key_of: Callable[[str], Key | None] = inode_key) -> None:
        self._key_of = key_of
        self._known: dict[tuple[Devno, int | None], BlockDevice] = {}
        self._forgotten: dict[tuple[Devno, int | None], BlockDevice] = {}
        self._asked: dict[tuple[Devno, int | None], loop.LoopStatus] = {}

    def forget(self) -> None:
        """Read everything anew next time."""
        self._forgotten, self._known = self._known, {}

    def read(self, devices: Iterable[Devno], images: Images) -> dict[Devno, BlockDevice]:
        """These devices and all that they rest on; numbers of no block device are left out."""
        found: dict[Devno, BlockDevice] = {}
        seen: set[Devno] = set()
        left = list(devices)
        self._asked = self._ask_together(left)
        while left:
            devno = left.pop()
            if devno in seen:
                continue
            seen.add(devno)
            device = self._device(devno)
            if device is None:
                continue
            backing = _with_path(device, images, self._key_of)
            if backing != device.backing:
                device = self._known[devno, device.disk_sequence] = replace(device, backing=backing)
            found[devno] = device
            left += device.lower
            if device.backing.image_devno is not None:
                left.append(device.backing.image_devno)
        return found

    def keep_only(self, devices: Mapping[Devno, BlockDevice]) -> None:
        """Forget devices that are not among these any more."""
        alive = {(device.devno, device.disk_sequence) for device in devices.values()}
        self._known = {key: known for key, known in self._known.items() if key in alive}

    def _ask_together(
        self, devices: Iterable[Devno]
    ) -> dict[tuple[Devno, int | None], loop.LoopStatus]:
        """The loop devices among these that are new: a thread for each would cost more than they.

        By the DISKSEQ from before the question: where that still is the device's, so is the answer.
        """
        new: dict[str, tuple[Devno, int | None]] = {}
        for devno in devices:
            if devno.major != loop.LOOP_MAJOR:
                continue
            name, sequence = block.name_of(devno), block.disk_sequence(devno)
            if name and sequence is not None and (devno, sequence) not in self._known:
                new[name] = (devno, sequence)
        if len(new) < _TOGETHER:
            return {}
        return {new[os.path.basename(one.device)]: one for one in loop.statuses(list(new))}

    def _device(self, devno: Devno) -> BlockDevice | None:
        sequence = block.disk_sequence(devno)
        known = self._known.get((devno, sequence)) if sequence is not None else None
        if known is not None and known.kind not in _CHANGEABLE:
            return known
        name, kind = block.name_of(devno), block.kind_of(devno)
        if name is None or kind is None:
            return None
        device = BlockDevice(
            devno=devno,
            name=name,
            kind=kind,
            disk_sequence=sequence,
            lower=block.lower_devices(devno),
            backing=self._loop_backing(devno, name, sequence) if kind == "loop" else _DEVICE,
            label=block.attribute(devno, "dm/name") or "" if kind == "dm" else "",
            bases=block.thin_origins(devno) if kind == "dm" else (),
            transport=block.transport(devno) if kind == "disk" else "",
        )
        if kind != "loop" or device.backing.inode_key is not None:
            self._known[devno, sequence] = device
        return device

    def _loop_backing(self, devno: Devno, name: str, sequence: int | None) -> Backing:
        try:
            status = self._asked.get((devno, sequence))
            status = status or loop.status(f"/dev/{name}", _PATIENCE_S)
        except OSError as error:
            # Its server is lost, or the filesystem of its image has stopped (EIO): what was known
            # of this attachment still holds. Without that nobody would find the one to blame.
            before = self._forgotten.get((devno, sequence))
            if before is None or error.errno == ENXIO:  # nothing is attached
                return Backing(kind="loop")
            return before.backing
        return Backing(
            kind="loop",
            image_devno=status.backing_devno,
            image_inode=status.backing_inode,
            offset=status.offset,
        )


def _with_path(device: BlockDevice, images: Images, key_of: Callable[[str], Key | None]) -> Backing:
    """Add a path of the image: one that a VE declares or the kernel remembers, if it still is."""
    backing = device.backing
    key = backing.inode_key
    if key is None:
        return backing
    if key in images:
        path = images[key][1]
        return backing if backing.image == path else replace(backing, image=path)
    if backing.image is not None and key_of(backing.image) == key:
        return backing
    remembered = f"/sys/block/{device.name}/loop/backing_file"
    with suppress(OSError):
        path = os.fsdecode(pseudofile.read(remembered)).removesuffix("\n")
        found = key_of(path)
        # The kernel follows a rename, and says when a file was deleted. What cannot be looked up
        # because its filesystem has stopped is where it was.
        if found == key or (found is None and path == backing.image):
            return replace(backing, image=path)
    return replace(backing, image=None)
