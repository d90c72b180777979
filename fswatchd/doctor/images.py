"""Images that VEs have, mounted or not: room for a clone, and what their superblocks say."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable

from fswatchd.config import RepairTable
from fswatchd.doctor.finding import Finding, critical, warning
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import extfs
from fswatchd.kernel.patience import Patience
from fswatchd.units import show_size

_patience = Patience()
_PATIENCE_S = 5.0
_REFLINK = {"xfs", "btrfs", "bcachefs", "ocfs2"}


async def examine(inventory: Inventory, repair: RepairTable) -> list[Finding]:
    """Reads the first blocks of each image; a disk that does not answer is not waited for long."""
    images = {
        volume.image: str(ve.ve_id)
        for ve in inventory.view.ves.values()
        if not ve.unrepairable
        for volume in ve.volumes
        if volume.image and volume.format == "raw"
    }
    hosts = {str(found.devno): found.fstype for found in inventory.view.superblocks.values()}

    def ask() -> list[Finding]:
        return _patience.ask("images", lambda: look(images, repair, hosts), _PATIENCE_S)

    try:
        return await asyncio.to_thread(ask)
    except TimeoutError:
        text = f"the VEs' images could not be looked at within {_PATIENCE_S:.0f} s"
        remedy = "a disk or a server beneath them does not answer"
        return [warning("FSW-DOCTOR-IMAGES", "images", text, remedy)]


def look(images: dict[str, str], repair: RepairTable, hosts: dict[str, str]) -> list[Finding]:
    """See `examine`; `images` are paths and the VEs they belong to, `hosts` types by device."""
    findings = []
    by_uuid: dict[str, list[str]] = {}
    for path, ve_id in images.items():
        try:
            status, room = os.stat(path), os.statvfs(os.path.dirname(path))
            uuid, errors = extfs.uuid_and_errors(path)
        except OSError as error:
            text = f"{ve_id}: {path} cannot be read: {error.strerror}"
            findings.append(warning("FSW-DOCTOR-IMAGE", "image", text))
            continue
        if uuid:
            by_uuid.setdefault(uuid, []).append(path)
        if errors == "panic":
            text = f"{ve_id}: {path} has errors=panic: mounted, an error takes the whole node down"
            remedy = f"tune2fs -e remount-ro {path} while the VE is stopped"
            findings.append(critical("FSW-DOCTOR-IMAGE", "image", text, remedy))
        total = room.f_blocks * room.f_frsize
        free = room.f_bavail * room.f_frsize
        reserve = max(int(total * repair.reserve_percent / 100), repair.reserve)
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        shared = hosts.get(device) in _REFLINK
        needed = reserve if shared else reserve + status.st_blocks * 512
        if free < needed:
            text = (
                f"{ve_id}: no room for a clone of {path}: {show_size(free)} of {show_size(needed)}"
            )
            remedy = "free some, or [repair] reserve in fswatchd.toml; offline repair needs none"
            findings.append(warning("FSW-DOCTOR-CLONE-SPACE", "clone space", text, remedy))
    findings += _copies(by_uuid.items())
    return findings


def _copies(by_uuid: Iterable[tuple[str, list[str]]]) -> list[Finding]:
    return [
        warning(
            "FSW-DOCTOR-UUID",
            "uuid",
            f"{', '.join(sorted(paths))} share the UUID {uuid} (copies of one image)",
            "tune2fs -U random on each while its VE is stopped; fswatchd copes meanwhile",
        )
        for uuid, paths in by_uuid
        if len(paths) > 1
    ]
