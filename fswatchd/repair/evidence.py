"""What a filesystem looked like before anything was done to it, for people who ask later.

Superblock, kernel lines around the fault, counters, the VE's mount table and the processes that
held it: a document of bounded size in the state directory, never on the filesystem that is sick.
Nothing here decides anything, and what cannot be had is named in `problems`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.errors import FswatchError
from fswatchd.events import printable
from fswatchd.incidents import Incident
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, VeId
from fswatchd.kernel import kmsg, openfiles, proc
from fswatchd.sandbox import Sandbox
from fswatchd.steps import ActionContext

MAX_BYTES = 1 << 20
_TOOL_S = 5.0
_TEXT = 64 << 10
_LINES = 400
_FILES = 500
_AROUND_US = 10_000_000
_MAX_COUNTER = 4096
_LOG = "/dev/kmsg"
_LOG_S = 3.0
_TOOLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), ("dumpe2fs", "-h")),
    "xfs": ("xfs_db", "-r", "-c", "sb 0", "-c", "print"),
    "btrfs": ("btrfs", "inspect-internal", "dump-super", "-f"),
}


async def collect(context: ActionContext) -> dict[str, Any]:
    """The document, within some seconds. Raises nothing: what is missing is in it."""
    incident, inventory = context.incident, context.inventory
    found = inventory.view.attached(incident.filesystem)
    problems: list[str] = []
    superblock, read = await asyncio.gather(
        _superblock_dump(incident, found, problems),
        asyncio.to_thread(_read, incident, inventory, found, problems),
    )
    return {
        "incident": incident.incident_id,
        "node": incident.node,
        "taken_ns": time.time_ns(),
        "boot": proc.boot_id(),
        "kernel": os.uname().release,
        "class": incident.klass.value,
        "ves": list(incident.ves),
        "device": incident.filesystem.device,
        "fstype": incident.filesystem.fstype,
        "uuid": incident.filesystem.uuid,
        "image": incident.filesystem.image,
        "options": list(inventory.current_options(found) or ()) if found else None,
        "superblock": superblock,
        **read,
        "problems": problems,
    }


async def keep(context: ActionContext, directory: Path) -> tuple[Path, int]:
    """Collect, and write it to `directory`; returns where, and how many bytes. Raises OSError."""
    if refused := _on_the_sick_one(context, directory):
        raise OSError(refused)
    document = await collect(context)
    return await asyncio.to_thread(_write, document, directory)


def path_of(directory: Path, incident_id: str) -> Path:
    """Where the evidence of an incident is."""
    return directory / f"{incident_id}.json"


def _write(document: dict[str, Any], directory: Path) -> tuple[Path, int]:
    data = json.dumps(document, indent=1).encode()
    # The longest lists first: what is left still says what was cut.
    for key in ("files", "kernel_lines", "mounts"):
        while len(data) > MAX_BYTES and document[key]:
            document[key] = document[key][: len(document[key]) // 2]
            document["problems"].append(f"{key} were cut to {len(document[key])}")
            data = json.dumps(document, indent=1).encode()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = path_of(directory, document["incident"])
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    return path, len(data)


def _on_the_sick_one(context: ActionContext, directory: Path) -> str | None:
    """Whether what would be written would go to the filesystem itself, or rest on it."""
    found = context.inventory.view.attached(context.incident.filesystem)
    place = next(one for one in (directory, *directory.parents) if one.exists())
    devno = Devno.of(os.stat(place).st_dev)
    if found is not None and found.devno in {devno, *context.inventory.view.beneath(devno)}:
        return f"{directory} is on the filesystem that is sick"
    return None


async def _superblock_dump(
    incident: Incident, found: Superblock | None, problems: list[str]
) -> str | None:
    tool = _TOOLS.get(incident.filesystem.fstype or "")
    device = f"/dev/{found.device}" if found else incident.filesystem.image
    if tool is None or device is None:
        problems.append(f"no superblock: nothing dumps one of {incident.filesystem.fstype}")
        return None
    try:
        done = await process.run(
            (*tool, device),
            timeout_s=_TOOL_S,
            sandbox=Sandbox(device=device, readonly=True, cpu_s=_TOOL_S),
            max_output=_TEXT,
        )
    except (FswatchError, OSError) as error:
        problems.append(f"no superblock: {error}")
        return None
    if not done.succeeded:
        problems.append(f"superblock: {done.describe()}")
    return done.output


def _read(
    incident: Incident, inventory: Inventory, found: Superblock | None, problems: list[str]
) -> dict[str, Any]:
    """What is read from files: in a thread, some are slow."""
    files = []
    if found is not None:
        namespaces = {int(place.namespace) for place in found.mounts}
        files = list(islice(openfiles.held(found.devno, namespaces), _FILES))
    pids = dict.fromkeys(file.pid for file in files)
    return {
        "kernel_lines": _kernel_lines(incident, problems),
        "counters": _counters(found) if found else {},
        "mounts": _mounts(incident, inventory, problems),
        "processes": [_process(pid) for pid in pids],
        "files": [
            {"pid": f.pid, "inode": f.inode, "path": printable(f.path), "deleted": f.deleted}
            for f in files
        ],
    }


def _kernel_lines(incident: Incident, problems: list[str]) -> list[str]:
    """What the kernel said of the device, and all that it said around the fault.

    A log that is written faster than it can be read here has no end.
    """
    device = incident.filesystem.device
    named = re.compile(rf"(?<![\w!-]){re.escape(device)}(?!\w)") if device else None
    detected_us = (incident.reached_ns("detected") or 0) // 1000
    lines: list[str] = []
    try:
        fd = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        problems.append(f"no kernel lines: {error}")
        return []
    deadline = time.monotonic() + _LOG_S
    with os.fdopen(fd, "rb", buffering=0) as log:
        while True:
            if time.monotonic() > deadline:
                problems.append(f"kernel lines: what could be read in {_LOG_S:.0f} s, oldest first")
                break
            try:
                raw = os.read(log.fileno(), 8192)
                record = kmsg.parse(raw)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # overwritten meanwhile: the next read goes on with the oldest
            except (OSError, kmsg.KmsgFormatError) as error:
                problems.append(f"kernel lines: {error}")
                break
            near = detected_us and abs(record.time_us - detected_us) < _AROUND_US
            if record.facility == 0 and (near or (named and named.search(record.text))):
                lines.append(f"[{record.time_us / 1e6:.6f}] <{record.level}> {record.text}")
    return lines[-_LINES:]


def _counters(found: Superblock) -> dict[str, str]:
    device = found.device
    places = [
        *_files(
            Path(f"/sys/fs/{'ext4' if found.fstype in {'ext2', 'ext3'} else found.fstype}/{device}")
        ),
        Path(f"/proc/fs/ext4/{device}/options"),
        Path(f"/sys/class/block/{device}/stat"),
        Path(f"/sys/class/block/{device}/diskseq"),
    ]
    if found.fstype == "btrfs" and found.uuid:
        places += Path(f"/sys/fs/btrfs/{found.uuid}/devinfo").glob("*/error_stats")
    counters = {}
    for path in places:
        with suppress(OSError):
            counters[str(path)] = (
                path.read_bytes()[:_MAX_COUNTER].decode("utf-8", "replace").strip()
            )
    return counters


def _files(directory: Path) -> Iterable[Path]:
    """Attributes that can be read: some only take orders (`trigger_fs_error`)."""
    with suppress(OSError):
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.stat().st_mode & 0o444:
                yield path


def _mounts(incident: Incident, inventory: Inventory, problems: list[str]) -> list[str]:
    lines: list[str] = []
    for name in incident.direct_ves:
        ve = inventory.view.ves.get(VeId(name))
        if ve is None or ve.init_pid is None:
            continue
        try:
            with open(f"/proc/{ve.init_pid}/mountinfo", "rb") as file:
                text = file.read(_TEXT).decode("utf-8", "backslashreplace")
        except OSError as error:
            problems.append(f"no mount table of {name}: {error}")
        else:
            lines += text.rstrip("\n").split("\n")
    return lines


def _process(pid: int) -> dict[str, Any]:
    return {
        "pid": pid,
        "command": printable(proc.command_name(pid)),
        "user": proc.user(pid),
        "cgroups": proc.cgroups(pid),
    }
