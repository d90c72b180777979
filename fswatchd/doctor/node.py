"""The node itself: privileges, sources, kernel switches, tools, and others that repair here too."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from fswatchd import process
from fswatchd.config import Switch
from fswatchd.doctor.finding import Finding, critical, ok, warning
from fswatchd.events import SourceState
from fswatchd.kernel import memlock, proc
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
    "bwrap": ("bubblewrap", "a VE's filesystem is checked in a sandbox or not at all"),
    "cp": ("coreutils", "images on hosts that cannot share blocks cannot be cloned"),
}
_NEEDED = {"e2fsck", "bwrap"}
_TOOL_S = 10.0
# The first that knows orphan_file, which mke2fs of 1.47 gives to new filesystems.
_E2FSCK = (1, 47)
# Documentation/admin-guide/sysctl/kernel.rst and Documentation/admin-guide/xfs.rst
_SWITCHES = {
    "fs/xfs/panic_mask": ("critical", "an error in any XFS takes the whole node down"),
    "kernel/hung_task_panic": ("warning", "a disk that hangs for long takes the whole node down"),
    "kernel/panic_on_warn": ("warning", "any warning of the kernel takes the whole node down"),
}
_HIGH_AVAILABILITY = {
    "pacemakerd": "Pacemaker",
    "pve-ha-lrm": "the HA manager of Proxmox VE",
    "shamand": "the HA cluster of Virtuozzo",
    "keepalived": "keepalived",
}


def root() -> list[Finding]:
    """Whether the daemon may do what it is for."""
    if os.geteuid() == 0:
        return [ok("FSW-DOCTOR-ROOT", "root", "runs as root")]
    text = "not root: fanotify, foreign mount namespaces and every repair cannot work"
    return [critical("FSW-DOCTOR-ROOT", "root", text, "run the daemon as root")]


def source(status: SourceStatus, switch: Switch) -> Finding:
    """Whether a source listens, and whether that matters here."""
    name = f"source {status.name}"
    if status.state is SourceState.OK:
        return ok("FSW-DOCTOR-SOURCE", name, status.detail or "listens")
    if status.state is SourceState.OFF:
        return warning(
            "FSW-DOCTOR-SOURCE-OFF", name, "switched off", "see [sources] in fswatchd.toml"
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


def memory(*, wanted: bool) -> Finding:
    """Whether the daemon stays in memory when the disk that its program lies on hangs."""
    code, name = "FSW-DOCTOR-MEMORY", "memory"
    if memlock.locked_bytes():
        return ok(code, name, "locked: nothing that is heard, decided or told needs the root disk")
    if not wanted:
        return ok(code, name, "not locked; see lock_memory in fswatchd.toml(5)")
    return warning(
        code,
        name,
        "not locked: a part of the daemon may be missing when the root disk hangs",
        "it needs CAP_IPC_LOCK, or RLIMIT_MEMLOCK without a limit; the daemon's log has the reason",
    )


def switches(directory: Path = Path("/proc/sys")) -> list[Finding]:
    """Switches of the kernel that make one VE's fault the end of all."""
    findings = []
    for name, (level, text) in _SWITCHES.items():
        try:
            value = (directory / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value != "0":
            sysctl = name.replace("/", ".")
            findings.append(
                Finding(
                    code="FSW-DOCTOR-SYSCTL",
                    name=f"sysctl {sysctl}",
                    level=level,
                    text=f"{value}: {text}",
                    remedy=f"sysctl -w {sysctl}=0, and in /etc/sysctl.d",
                )
            )
    return findings


async def tools() -> list[Finding]:
    """The programs that repairs need."""
    findings = []
    for tool, (package, why) in _TOOLS.items():
        if not shutil.which(tool, path=process.ENVIRONMENT["PATH"]):
            findings.append(
                Finding(
                    code="FSW-DOCTOR-TOOL",
                    name=f"tool {tool}",
                    level="critical" if tool in _NEEDED else "warning",
                    text=f"not found: {why}",
                    remedy=f"install {package}",
                )
            )
        elif tool == "e2fsck":
            findings.append(e2fsck((await process.run((tool, "-V"), timeout_s=_TOOL_S)).output))
        else:
            findings.append(ok("FSW-DOCTOR-TOOL", f"tool {tool}", "found"))
    return findings


def e2fsck(said: str) -> Finding:
    """Whether it is new enough, from what `e2fsck -V` has printed."""
    found = re.match(r"e2fsck (\d+)\.(\d+)\S*", said)
    if found is None or (int(found[1]), int(found[2])) >= _E2FSCK:
        version = found[0].partition(" ")[2] if found else "of unknown version"
        return ok("FSW-DOCTOR-TOOL", "tool e2fsck", version)
    return warning(
        "FSW-DOCTOR-TOOL",
        "tool e2fsck",
        f"{found[0]}: it cannot check filesystems with orphan_file (newer mke2fs)",
        "a VE with a newer Debian may have one: install e2fsprogs 1.47 or later",
    )


def rivals() -> list[Finding]:
    """Programs that repair, stop or start what fswatchd does, at the same time."""
    running = {proc.command_name(pid) for pid in proc.pids()}
    findings = [
        warning(
            "FSW-DOCTOR-RIVAL",
            "rival",
            f"{what} runs: it may start a VE that a repair has stopped",
            "VEs that it manages: set them to maintenance before you permit repairs",
        )
        for program, what in _HIGH_AVAILABILITY.items()
        # The kernel keeps the first 15 bytes of a name.
        if program[:15] in running
    ]
    if "xfs_healer" in running:
        text = "xfs_healer repairs XFS here: fswatchd leaves that to it, and tells what it says"
        findings.append(ok("FSW-DOCTOR-RIVAL", "rival", text))
    if "vzeventd" in running:
        text = "vzeventd runs: its scripts act when containers start and stop"
        remedy = "look whether one in /etc/vz/vzevent.d starts or stops containers after errors"
        findings.append(warning("FSW-DOCTOR-RIVAL", "rival", text, remedy))
    return findings


def channels(names: list[str], failing: Mapping[str, str]) -> list[Finding]:
    """Whether anybody is told, and whom nothing reaches now."""
    if not names:
        return [
            warning(
                "FSW-DOCTOR-CHANNELS",
                "channels",
                "nobody would be told: there is no notification channel",
                "add a [channel.NAME] table to fswatchd.toml",
            )
        ]
    return [
        ok("FSW-DOCTOR-CHANNELS", "channels", ", ".join(names)),
        *(
            warning(
                "FSW-DOCTOR-CHANNEL",
                f"channel {name}",
                f"the last try has failed: {failing[name]}",
                f"fswatch notify test {name}; what waits for it is tried again by itself",
            )
            for name in names
            if name in failing
        ),
    ]
