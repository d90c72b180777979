"""Filesystems that are mounted: can they be heard, and what does an error in one do."""

from __future__ import annotations

from pathlib import Path

from fswatchd.doctor.finding import Finding, critical, ok, warning
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock

_EXT = {"ext2", "ext3", "ext4"}
# Of btrfs, and of vfat, exfat, f2fs, gfs2, jfs, nilfs2 and ocfs2: there by mount options only.
_PANICS = frozenset({"fatal_errors=panic", "errors=panic"})


def examine(inventory: Inventory) -> list[Finding]:
    """What the mount tables show."""
    superblocks = inventory.view.superblocks.values()
    text = f"{len(superblocks)} disk filesystems seen in all mount namespaces, by "
    findings = [ok("FSW-DOCTOR-MOUNTS", "mounts", text + inventory.scanner.name)]
    findings += [_not_reached(device) for device in inventory.unreached()]
    by_uuid: dict[str, list[str]] = {}
    for superblock in superblocks:
        if superblock.uuid:
            by_uuid.setdefault(superblock.uuid, []).append(superblock.device)
        if superblock.fstype in _EXT:
            findings += _on_error(inventory, superblock, errors_option(superblock))
        elif panics := _PANICS.intersection(superblock.options):
            remedy = f"mount /dev/{superblock.device} without that option"
            findings.append(_panics(superblock, min(panics), remedy))
    for uuid, devices in by_uuid.items():
        if len(devices) > 1:
            text = f"{', '.join(sorted(devices))} share the UUID {uuid} (copies of one image)"
            remedy = "tune2fs -U random on each while it is unmounted; fswatchd copes meanwhile"
            findings.append(warning("FSW-DOCTOR-UUID", "uuid", text, remedy))
    return findings


def _not_reached(device: str) -> Finding:
    return warning(
        "FSW-DOCTOR-UNREACHED",
        f"filesystem {device}",
        "it cannot be reached: fanotify does not hear its errors, the kernel log does",
        "the log of fswatchd says why: a mount over it, or a sandbox that is too tight",
    )


def _panics(superblock: Superblock, option: str, remedy: str) -> Finding:
    text = f"{option}: an error in it takes the whole node down"
    return critical("FSW-DOCTOR-PANIC", f"filesystem {superblock.device}", text, remedy)


def _on_error(inventory: Inventory, superblock: Superblock, errors: str | None) -> list[Finding]:
    name = f"filesystem {superblock.device}"
    # Not those through the stack: they write to filesystems of their own.
    owners = inventory.view.users[superblock.devno].ves
    if errors == "panic":
        remedy = f"tune2fs -e remount-ro /dev/{superblock.device}, and remount it"
        return [_panics(superblock, "errors=panic", remedy)]
    if errors == "continue" and owners:
        text = f"errors=continue: {', '.join(owners)} goes on writing to a damaged filesystem"
        remedy = f"tune2fs -e remount-ro /dev/{superblock.device}; it holds from the next mount on"
        return [warning("FSW-DOCTOR-CONTINUE", name, text, remedy)]
    return []


def errors_option(superblock: Superblock, directory: Path = Path("/proc/fs/ext4")) -> str | None:
    """What the mount does on an error: `continue`, `remount-ro`, `panic`; None where unknown.

    /proc/fs/ext4/DEVICE/options has all options, the mount table those that are not the default.
    """
    try:
        options = (directory / superblock.device / "options").read_text(encoding="utf-8").split()
    except OSError:
        options = list(superblock.options)
    found = [o.partition("=")[2] for o in options if o.startswith("errors=")]
    return found[-1] if found else None
