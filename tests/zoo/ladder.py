"""One damage through the code that repairs a VE's volume, and through the tool alone."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fswatchd.repair import tools
from tests.zoo.damage import manifest, signature

_TIMEOUT_S = 120.0
_RUNS_ALONE = 2


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended: `clean` (nothing was wrong), `cured`, or `refused`; and what can be read."""

    ending: str
    found: str
    did: str
    problems: frozenset[str]
    files: dict[str, str]


async def through_ladder(zoo: ModuleType, image: Path, work: Path) -> Result:
    """Clone, replay, check, repair, prove: on the clone; the image is as it was."""
    before = digest(image)
    copy = clone(image, work / "clone.img")
    try:
        result = await _ladder(zoo, copy, work)
    finally:
        copy.unlink()
    assert digest(image) == before, "the original was touched"
    return result


async def _ladder(zoo: ModuleType, copy: Path, work: Path) -> Result:
    known = tools.of(zoo.FSTYPE)
    assert known is not None
    replayed = await known.replay(str(copy), _TIMEOUT_S)
    check = await known.check(str(copy), _TIMEOUT_S)
    if not replayed.usable or not check.usable:
        return Result("refused", check.what or replayed.what, "", frozenset(), {})
    if check.clean:
        return Result("clean", "", "", frozenset(), files(zoo, copy, work))
    repair = await known.repair(str(copy), _TIMEOUT_S)
    proof = await known.check(str(copy), _TIMEOUT_S)
    problems = signature(check.output) | signature(repair.output)
    if not proof.clean:
        return Result("refused", check.summary(), repair.summary(), problems, {})
    return Result("cured", check.summary(), repair.summary(), problems, files(zoo, copy, work))


def alone(zoo: ModuleType, image: Path, work: Path) -> Result:
    """What an admin gets who runs the tool on the image, and runs it again where it asks for it."""
    copy = clone(image, work / "alone.img")
    try:
        for _ in range(_RUNS_ALONE):
            subprocess.run([*zoo.REPAIR, str(copy)], capture_output=True, check=False)
            proof = subprocess.run([*zoo.CHECK, str(copy)], capture_output=True, check=False)
            if proof.returncode == 0:
                return Result("cured", "", "", frozenset(), files(zoo, copy, work))
        return Result("refused", "", "", frozenset(), {})
    finally:
        copy.unlink()


def clone(image: Path, path: Path) -> Path:
    """A copy that shares blocks where it can."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(image), str(path)], check=True)
    return path


def digest(image: Path) -> str:
    """Of all bytes."""
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(zoo: ModuleType, image: Path, work: Path) -> dict[str, str]:
    """What can be read from it."""
    target = work / "read"
    try:
        zoo.extract(image, target)
        return manifest(target)
    finally:
        subprocess.run(["rm", "-rf", str(target)], check=True)
