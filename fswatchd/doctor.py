"""`fswatch doctor`: is this node ready, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fswatchd import process
from fswatchd.config import Config, Switch
from fswatchd.events import SourceState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.sources import SourceStatus

# Sources that most kernels do not have, and nobody misses there.
_OPTIONAL = {"vzevent", "xfs_health"}
_TOOLS = {
    "e2fsck": ("e2fsprogs", "nothing can be repaired without it"),
    "debugfs": ("e2fsprogs", "files that never reached the disk cannot be looked for"),
    "e2undo": ("e2fsprogs", "an offline repair could not be undone"),
    "xfs_repair": ("xfsprogs", "XFS cannot be repaired without it"),
    "xfs_logprint": ("xfsprogs", "whether an XFS has a log to replay cannot be told"),
    "btrfs": ("btrfs-progs", "btrfs cannot be checked without it"),
    "cp": ("coreutils", "images on hosts that cannot share blocks cannot be cloned"),
    "bwrap": ("bubblewrap", "a VE's filesystem is checked in a sandbox or not at all"),
}
_NEEDED = {"e2fsck", "bwrap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One answer: `level` is ok, warning or critical, `code` what `fswatch explain` knows it by."""

    code: str
    name: str
    level: str
    text: str
    remedy: str = ""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "code": self.code,
            "name": self.name,
            "level": self.level,
            "text": self.text,
            "remedy": self.remedy or None,
        }


async def examine(
    config: Config, sources: list[SourceStatus], inventory: Inventory, channels: list[str]
) -> list[Finding]:
    """Every precondition of this node."""
    return [
        *_root(),
        *(_source(status, getattr(config.sources, status.name)) for status in sources),
        *_mount_table(inventory),
        *_tools(),
        *await _filesystems(inventory),
        *_ves(inventory),
        *_channels(config, channels),
    ]


def _root() -> list[Finding]:
    if os.geteuid() == 0:
        return [Finding(code="FSW-DOCTOR-ROOT", name="root", level="ok", text="runs as root")]
    text = "not root: fanotify, foreign mount namespaces and every repair cannot work"
    return [
        Finding(
            code="FSW-DOCTOR-ROOT",
            name="root",
            level="critical",
            text=text,
            remedy="run the daemon as root",
        )
    ]


def _source(status: SourceStatus, switch: Switch) -> Finding:
    name = f"source {status.name}"
    if status.state is SourceState.OK:
        return Finding(
            code="FSW-DOCTOR-SOURCE", name=name, level="ok", text=status.detail or "listens"
        )
    if status.state is SourceState.OFF:
        return Finding(
            code="FSW-DOCTOR-SOURCE-OFF",
            name=name,
            level="warning",
            text="switched off",
            remedy="see [sources] in fswatchd.toml",
        )
    level = "critical" if status.name in {"kmsg", "state"} else "warning"
    if status.name in _OPTIONAL and switch == "auto":
        level = "ok"
    return Finding(
        code="FSW-DOCTOR-SOURCE",
        name=name,
        level=level,
        text=f"{status.state.value}: {status.detail}",
    )


def _mount_table(inventory: Inventory) -> list[Finding]:
    count = len(inventory.view.superblocks)
    text = f"{count} disk filesystems seen in all mount namespaces, by {inventory.scanner.name}"
    return [Finding(code="FSW-DOCTOR-MOUNTS", name="mounts", level="ok", text=text)]


def _tools() -> list[Finding]:
    findings = []
    for tool, (package, why) in _TOOLS.items():
        if shutil.which(tool, path=process.ENVIRONMENT["PATH"]):
            findings.append(
                Finding(code="FSW-DOCTOR-TOOL", name=f"tool {tool}", level="ok", text="found")
            )
        else:
            findings.append(
                Finding(
                    code="FSW-DOCTOR-TOOL",
                    name=f"tool {tool}",
                    level="critical" if tool in _NEEDED else "warning",
                    text=f"not found: {why}",
                    remedy=f"install {package}",
                )
            )
    return findings


async def _filesystems(inventory: Inventory) -> list[Finding]:
    findings = []
    by_uuid: dict[str, list[str]] = {}
    for superblock in inventory.view.superblocks.values():
        if superblock.uuid:
            by_uuid.setdefault(superblock.uuid, []).append(superblock.device)
        if await _panics(superblock):
            findings.append(
                Finding(
                    code="FSW-DOCTOR-PANIC",
                    name=f"filesystem {superblock.device}",
                    level="critical",
                    text="errors=panic: an error in it takes the whole node down",
                    remedy=f"tune2fs -e remount-ro /dev/{superblock.device}, and remount it",
                )
            )
    for uuid, devices in by_uuid.items():
        if len(devices) > 1:
            text = f"{', '.join(sorted(devices))} share the UUID {uuid} (copies of one image)"
            remedy = "tune2fs -U random on each while it is unmounted; fswatchd copes meanwhile"
            findings.append(
                Finding(
                    code="FSW-DOCTOR-UUID", name="uuid", level="warning", text=text, remedy=remedy
                )
            )
    return findings


async def _panics(superblock: Superblock) -> bool:
    if superblock.fstype not in {"ext2", "ext3", "ext4"}:
        return False
    try:
        text = Path(f"/proc/fs/ext4/{superblock.device}/options").read_text(encoding="utf-8")
    except OSError:
        text = ""
    return "errors=panic" in text.split("\n") or "errors=panic" in superblock.options


def _ves(inventory: Inventory) -> list[Finding]:
    findings = []
    platforms: dict[str, int] = {}
    known = inventory.view.ves.values()
    for ve in known:
        platforms[ve.platform] = platforms.get(ve.platform, 0) + 1
        if _could_be_repaired(ve) and not ve.commands.start:
            text = "it has a volume and no start command: it could not be started after a repair"
            remedy = "give start, stop and kill in its ve.d file"
            findings.append(
                Finding(
                    code="FSW-DOCTOR-NO-START",
                    name=ve.ve_id,
                    level="warning",
                    text=text,
                    remedy=remedy,
                )
            )
    for what, count in Counter(filter(None, (ve.unrepairable for ve in known))).items():
        text = f"{count} reported, never repaired: each is {what}"
        findings.append(Finding(code="FSW-DOCTOR-VES", name="ves", level="ok", text=text))
    for kind, count in Counter(_formats(known)).items():
        text = f"{count} in the format {kind}: errors are reported, and never repaired here"
        findings.append(Finding(code="FSW-DOCTOR-FORMAT", name="volumes", level="ok", text=text))
    for program in _missing_programs(inventory):
        text = f"{program} is not found: VEs that need it cannot be started or stopped"
        findings.append(
            Finding(code="FSW-DOCTOR-TOOL", name=f"tool {program}", level="warning", text=text)
        )
    for name, problem in inventory.problems.items():
        findings.append(
            Finding(
                code="FSW-DOCTOR-PLATFORM", name=f"platform {name}", level="warning", text=problem
            )
        )
    counts = ", ".join(f"{count} {name}" for name, count in sorted(platforms.items()))
    if counts:
        findings.append(Finding(code="FSW-DOCTOR-VES", name="ves", level="ok", text=counts))
    else:
        findings.append(
            Finding(
                code="FSW-DOCTOR-NO-VE",
                name="ves",
                level="warning",
                text="no VE is known: faults would be reported, never repaired",
                remedy="declare VEs of platforms without a driver in /etc/fswatchd/ve.d",
            )
        )
    return findings


def _could_be_repaired(ve: Ve) -> bool:
    return not ve.unrepairable and any(volume.format == "raw" for volume in ve.volumes)


def _formats(ves: Iterable[Ve]) -> Iterator[str]:
    """Of volumes that only their platform can open, of VEs that else could be repaired."""
    for ve in ves:
        if not ve.unrepairable:
            yield from (f"{v.format} of {ve.platform}" for v in ve.volumes if v.format != "raw")


def _missing_programs(inventory: Inventory) -> list[str]:
    """Programs that the VEs' commands are of, and that are not there."""
    wanted: set[str] = set()
    for ve in inventory.view.ves.values():
        commands = ve.commands
        for argv in (
            commands.start,
            commands.stop,
            commands.kill,
            commands.freeze,
            commands.thaw,
        ):
            wanted.update(argv[:1])
    path = process.ENVIRONMENT["PATH"]
    return sorted(program for program in wanted if shutil.which(program, path=path) is None)


def _channels(config: Config, channels: list[str]) -> list[Finding]:
    if channels:
        return [
            Finding(
                code="FSW-DOCTOR-CHANNELS", name="channels", level="ok", text=", ".join(channels)
            )
        ]
    del config
    return [
        Finding(
            code="FSW-DOCTOR-CHANNELS",
            name="channels",
            level="warning",
            text="nobody would be told: there is no notification channel",
            remedy="add a [channel.NAME] table to fswatchd.toml",
        )
    ]
