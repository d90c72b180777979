"""What came of it: files by content, acknowledged writes, gaps, and whether that is a pass."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fswatchd.devno import Devno
from fswatchd.drill import inside
from fswatchd.drill.control import NS, ControlServer, Record, longest_gap_s
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import TARGET
from fswatchd.kernel import block, loop

MILESTONES = (
    "detected",
    "attributed",
    "decided",
    "contained",
    "repaired",
    "verified",
    "notified",
)


@dataclass(slots=True)
class Files:
    """Files that were in the image before, looked for by content afterwards."""

    before: int = 0
    same_path: int = 0
    renamed: int = 0
    lost: int = 0
    expected_lost: int = 0


@dataclass(slots=True)
class Acked:
    """Files that a writer inside the VE had synced: in it now, saved beside its image, nowhere.

    A journal abort can make the kernel acknowledge an fsync whose transaction it then drops
    (jbd2_complete_transaction, fs/jbd2/journal.c, waits for no transaction that has ended). Such a
    file is only in memory, from where a repair salvages it.
    """

    written: int = 0
    present: int = 0
    salvaged: int = 0
    lost: int = 0


@dataclass(slots=True)
class Verdict:
    """Collects reasons; without any the drill has passed."""

    why_failed: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
        """Note `otherwise` unless it holds."""
        if not holds:
            self.why_failed.append(otherwise)

    @property
    def passed(self) -> bool:
        """Nothing was noted."""
        return not self.why_failed


def digest(path: str) -> str:
    """The digest of the content that belongs to a path."""
    return hashlib.sha256(inside.content(path)).hexdigest()


def drop_caches(paths: ScenePaths) -> None:
    """Make what is read next come from the image: only caches of the drill's own devices go."""
    image = paths.image(TARGET)
    status = os.stat(image)
    for device in loop.holders(Devno.of(status.st_dev), status.st_ino):
        block.drop_buffers(device)
    for path in (image, paths.host_image):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def salvaged(image: Path) -> set[str]:
    """The digests of what a repair has saved beside the image."""
    found = image.parent.glob(f"{image.name}.salvaged-*/*")
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def compare(
    control: ControlServer,
    paths: list[str],
    acked: list[str],
    saved: set[str],
    expected_lost: int,
) -> tuple[Files, Acked]:
    """Look for every content in the restarted VE, and among what was saved (digests)."""
    answers = control.ask(TARGET, "manifest")
    by_path = {a["path"]: a["digest"] for a in answers if "digest" in a}
    contents = set(by_path.values())
    files = Files(before=len(paths), expected_lost=expected_lost)
    for path in paths:
        wanted = digest(path)
        if by_path.get(path) == wanted:
            files.same_path += 1
        elif wanted in contents:
            files.renamed += 1
        else:
            files.lost += 1
    found = Acked(written=len(acked))
    found.present = sum(digest(path) in contents for path in acked)
    found.salvaged = sum(digest(path) in saved - contents for path in acked)
    found.lost = found.written - found.present - found.salvaged
    return files, found


def timeline(incident: dict[str, Any] | None, injected_ns: int) -> dict[str, float | None]:
    """Seconds from the injection to each milestone."""
    known = incident["timeline_mono_ns"] if incident else {}
    times: dict[str, float | None] = {"injected": 0.0}
    for name in MILESTONES:
        moment = known.get(name)
        times[name] = None if moment is None else round((moment - injected_ns) / NS, 6)
    return times


def not_reached(watched_s: float) -> dict[str, float | None]:
    """The timeline of a drill without a fault: how long each milestone was watched for, in vain."""
    return {"injected": 0.0, **dict.fromkeys(MILESTONES, round(watched_s, 6))}


def outage_s(record: Record, injected_ns: int, until_ns: int) -> float:
    """The longest time in which the VE could not read its files."""
    return round(longest_gap_s(record.reads, injected_ns, until_ns), 4)


def write_pause_s(record: Record, injected_ns: int, until_ns: int) -> float:
    """The longest time between two acknowledged writes."""
    return round(longest_gap_s(record.acks, injected_ns, until_ns), 4)


def bystander(record: Record, baseline_ns: int, injected_ns: int, until_ns: int) -> dict[str, Any]:
    """How another VE on the same host filesystem fared, beside how it fared before."""
    during = [moment for moment in record.acks if injected_ns <= moment <= until_ns]
    return {
        "writes": len(during),
        "errors": len([m for m in record.write_errors if injected_ns <= m <= until_ns]),
        "max_gap_s": round(longest_gap_s(record.acks, injected_ns, until_ns), 4),
        "baseline_gap_s": round(longest_gap_s(record.acks, baseline_ns, injected_ns), 4),
    }
