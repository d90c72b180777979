"""What the live mount still shows and the clone lacks: copy it out before the VE is stopped.

After a journal abort the page cache still serves files that were written and never reached the
disk. Files whose inode changed shortly before the fault are compared with the clone (through
debugfs, the clone is never mounted); what differs is copied beside the image.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fswatchd import process
from fswatchd.events import printable
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory.model import Superblock
from fswatchd.repair import clone
from fswatchd.repair.volume import ImageFile
from fswatchd.sandbox import Sandbox
from fswatchd.steps import ActionContext

# Longer than the kernel keeps dirty data (vm.dirty_expire_centisecs) and its journal (commit=).
_BEFORE_FAULT_S = 60
_MAX_FILES = 10_000
_TIMEOUT_S = 120.0
_NAMES_TOLD = 20
_INODES_AT_ONCE = 200  # what debugfs prints of them stays far below process.MAX_OUTPUT
_DUMP_LINE = re.compile(r"^([0-7]{4}) +((?:[0-9a-f]{4} ){8})", re.MULTILINE)


@dataclass(slots=True)
class Salvaged:
    """What was found: paths in the VE, and what could not be looked at."""

    copied: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreadable: int = 0
    cut: bool = False

    def sentence(self, target: Path) -> str:
        """For the incident's story."""
        parts = []
        if self.copied:
            parts.append(
                f"{len(self.copied)} files never reached the disk and were copied to {target}: "
                f"{_names(self.copied)}"
            )
        if self.lost:
            parts.append(f"{len(self.lost)} files could not be saved: {_names(self.lost)}")
        if self.cut:
            parts.append(f"more than {_MAX_FILES} files had changed; not all were looked at")
        if self.unreadable:
            parts.append(f"{self.unreadable} directories could not be read")
        return "; ".join(parts) or "nothing was written that had not reached the disk"


async def run(
    context: ActionContext,
    superblock: Superblock,
    copy: ImageFile,
    image: ImageFile,
    max_bytes: int,
) -> str:
    """Salvage; returns a sentence for the incident. Never raises for what cannot be salvaged."""
    target = Path(f"{image.path}.salvaged-{context.incident.incident_id}")
    since = context.incident.opened_ns / 1e9 - _BEFORE_FAULT_S
    # Every file is written twice: the clone's content to compare with, and the copy.
    room = max(clone.room(image.directory, context.settings), 0) // 2
    helper = Helper("fswatchd.helpers.salvage")
    try:
        async with context.inventory.opened(superblock) as mount:
            with tempfile.TemporaryDirectory(
                prefix=".fswatchd-salvage-", dir=image.directory
            ) as scratch:
                found = await _salvage(
                    helper, mount, copy, Path(scratch), target, since, max_bytes, room
                )
    except (OSError, HelperError, process.ProcessError) as error:
        return f"files that never reached the disk could not be looked for: {error}"
    finally:
        await helper.close(kill=True)
    return found.sentence(target)


async def _salvage(
    helper: Helper,
    mount: int,
    copy: ImageFile,
    scratch: Path,
    target: Path,
    since: float,
    max_bytes: int,
    room: int,
) -> Salvaged:
    listed, answer = await _ask(
        helper, mount, scratch / "list", [], {"op": "list", "since": since, "limit": _MAX_FILES}
    )
    chosen, left_out = _within(listed, min(max_bytes, room))
    found = Salvaged(lost=left_out, unreadable=answer["unreadable"], cut=answer["cut"])
    if not chosen:
        return found
    known = scratch / "known"
    known.mkdir()
    await _dump(copy, {inode: size for _, inode, size in chosen}, scratch / "commands", known)
    wanted = [
        [path, inode, size, f"{number:05d}-{_safe(path)}"]
        for number, (path, inode, size) in enumerate(chosen)
    ]
    request = {"op": "copy", "known": str(known), "target": str(target)}
    outcomes, _ = await _ask(helper, mount, scratch / "wanted", wanted, request)
    for path, outcome in outcomes:
        (found.copied if outcome == "copied" else found.lost).append(path)
    return found


async def _dump(copy: ImageFile, sizes: dict[int, int], commands: Path, known: Path) -> None:
    """Write the clone's content of these inodes to `known`, of those that have the same size there.

    debugfs writes as much as the clone's inode says, holes as zeros. Another size is a difference
    already, and what is damaged may say any.
    """
    same: list[int] = []
    inodes = list(sizes)
    for begin in range(0, len(inodes), _INODES_AT_ONCE):
        batch = inodes[begin : begin + _INODES_AT_ONCE]
        output = await _debugfs(copy, commands, [f"inode_dump <{inode}>" for inode in batch])
        found = sizes_of(output)
        same += [inode for inode in batch if found.get(inode) == sizes[inode]]
    if same:
        largest = max(sizes[inode] for inode in same)
        dumps = [f"dump <{inode}> {known}/{inode}" for inode in same]
        await _debugfs(copy, commands, dumps, file_size=largest)


async def _debugfs(copy: ImageFile, commands: Path, lines: list[str], *, file_size: int = 0) -> str:
    commands.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    limited = ("prlimit", f"--fsize={file_size}", "--") if file_size else ()
    argv = (*limited, "debugfs", "-f", str(commands), copy.path)
    sandbox = Sandbox(device=copy.path, readonly=True, directory=str(commands.parent))
    return (await process.run(argv, timeout_s=_TIMEOUT_S, heavy=True, sandbox=sandbox)).output


def sizes_of(output: str) -> dict[int, int]:
    """The sizes of regular files in what debugfs prints for `inode_dump` commands.

    It repeats each command, then shows the inode (struct ext2_inode, fs/ext4/ext4.h) in hex from
    its first byte on: i_mode, two bytes; i_size_lo at 4; i_size_high at 108. Lines that repeat the
    one before are left out and stand as `*`; offsets are octal.
    """
    sizes = {}
    for block in output.split("inode_dump <")[1:]:
        number, _, text = block.partition(">")
        raw = _bytes_of(text)
        if number.isdecimal() and len(raw) >= 112 and int.from_bytes(raw[0:2], "little") >> 12 == 8:
            low = int.from_bytes(raw[4:8], "little")
            sizes[int(number)] = low | int.from_bytes(raw[108:112], "little") << 32
    return sizes


def _bytes_of(dump: str) -> bytes:
    raw = bytearray()
    for offset, line in _DUMP_LINE.findall(dump):
        start = int(offset, 8)
        while raw and len(raw) < start:
            raw += raw[-16:]
        if len(raw) != start:
            return b""
        raw += bytes.fromhex(line)
    return bytes(raw)


async def _ask(
    helper: Helper, mount: int, path: Path, lines: Iterable[Any], request: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Send `lines` in a file, and read the answer's lines from it."""
    with open(path, "w+", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        file.seek(0)
        answer, _ = await helper.request(request, (mount, file.fileno()), timeout_s=_TIMEOUT_S)
        file.seek(0)
        return [json.loads(line) for line in file], answer


def _within(files: list[list[Any]], max_bytes: int) -> tuple[list[list[Any]], list[str]]:
    """The smallest files that fit into `max_bytes` together, and the paths of the others."""
    chosen, left_out, total = [], [], 0
    for file in sorted(files, key=lambda entry: int(entry[2])):
        total += file[2]
        if total <= max_bytes:
            chosen.append(file)
        else:
            left_out.append(str(file[0]))
    return chosen, left_out


def _safe(path: str) -> str:
    return printable(os.path.basename(path), 80).replace("/", "_").replace("\\", "_")


def _names(paths: list[str]) -> str:
    shown = ", ".join(printable(path, 120) for path in paths[:_NAMES_TOLD])
    return shown if len(paths) <= _NAMES_TOLD else f"{shown} and {len(paths) - _NAMES_TOLD} more"
