"""Run btrfs check (btrfs-check(8)), which by itself only ever reads.

Its `--repair` is for those who write it ("do not use unless advised by a developer"):
`repair_by_force` alone has it, the last resort on a clone after a person has seen what came of it
and said yes (`consent.within_bounds`). A filesystem whose transactions the kernel has aborted is
whole on the disk as of the last one that was committed: when the check finds nothing it needs a
new mount, and no repair.
"""

from __future__ import annotations

import re

from fswatchd import process
from fswatchd.repair import progress
from fswatchd.repair.check import MOST_OUTPUT, CheckResult, no_answer
from fswatchd.repair.progress import OnProgress
from fswatchd.sandbox import Sandbox

NAME = "btrfs check"
NO_CURE = (
    "btrfs has no repair that is safe: copy out what can be read, restore the rest from a snapshot "
    "or a backup; btrfs check --repair only where a developer advises it"
)

_FOUND = re.compile(r"^found \d+ bytes used, (?:no error found|error\(s\) found)", re.MULTILINE)
# Of kernel-shared/disk-io.c. What was read from its second copy leaves the check clean.
_NOT_READ = re.compile(r"Error reading \d+, -\d+")
_NEVER = re.compile(r"(?!)")
_PART = re.compile(rb"\[(\d{1,2})/(\d{1,2})\] checking ")
_PROBLEM = re.compile(
    r"^(?:ERROR|ref mismatch|backref|root \d+ inode \d+ errors|checksum verify failed|bad |"
    r"incorrect|parent transid|invalid|There are no extents|Extent|Csum|mirror \d+ bytenr)",
    re.MULTILINE | re.IGNORECASE,
)


async def replay(path: str, timeout_s: float) -> CheckResult:
    """Nothing to do: the trees on the disk are whole, and the log is replayed by the VE's mount."""
    del path, timeout_s
    return CheckResult(returncode=0, output="", duration_s=0.0, clean=True, tool=NAME)


async def check(path: str, timeout_s: float, on_progress: OnProgress | None = None) -> CheckResult:
    """Check all metadata, change nothing."""
    argv = ("btrfs", "check", "--readonly", path)
    sandbox = Sandbox(device=path, readonly=True, cpu_s=timeout_s, threads=True)
    return interpret(await _run(argv, timeout_s, sandbox, on_progress))


async def repair(
    path: str,
    timeout_s: float,
    undo_file: str | None = None,
    on_progress: OnProgress | None = None,
) -> CheckResult:
    """Only check: what is damaged stays so, and is told."""
    del undo_file
    return await check(path, timeout_s, on_progress)


async def repair_by_force(
    path: str,
    timeout_s: float,
    undo_file: str | None = None,
    on_progress: OnProgress | None = None,
) -> CheckResult:
    """Let it change what it will, on a clone. What that was worth the check after it says."""
    if undo_file is not None:
        raise ValueError("btrfs check has no undo")
    # Nobody has a clone mounted; --force spares the ten seconds for a person to think again.
    argv = ("btrfs", "check", "--repair", "--force", path)
    sandbox = Sandbox(device=path, cpu_s=timeout_s, threads=True)
    return interpret_repair(await _run(argv, timeout_s, sandbox, on_progress))


async def _run(
    argv: tuple[str, ...], timeout_s: float, sandbox: Sandbox, on_progress: OnProgress | None
) -> process.Completed:
    return await process.run(
        argv,
        timeout_s=timeout_s,
        heavy=True,
        sandbox=sandbox,
        max_output=MOST_OUTPUT,
        on_output=progress.of_headings(on_progress, _PART, _share),
    )


def _share(found: re.Match[bytes]) -> float:
    return (int(found[1]) - 1) / max(int(found[2]), 1)


def interpret(ended: process.Completed) -> CheckResult:
    """The meaning of `btrfs check --readonly`: 0 clean, 1 damage, or it could not even begin.

    A filesystem that it cannot open is unreadable, which is not the same as damaged.
    """
    finished = _FOUND.search(ended.output) is not None
    nothing = no_answer(ended, _NOT_READ if ended.returncode else _NEVER)
    failed = nothing is not None or ended.returncode not in {0, 1} or not finished
    return CheckResult(
        returncode=ended.returncode,
        output=ended.output,
        duration_s=ended.duration_s,
        clean=not failed and ended.returncode == 0,
        damaged=not failed and ended.returncode == 1,
        questions=len(_PROBLEM.findall(ended.output)) if ended.returncode else 0,
        tool=NAME,
        what=(nothing or ended.describe()) if failed else "",
        last_resort=not failed and ended.returncode == 1,
    )


def interpret_repair(ended: process.Completed) -> CheckResult:
    """The meaning of `btrfs check --repair`: it came to its end, or it did not.

    Exit code 0 is no proof: it also ends so with damage left.
    """
    finished = _FOUND.search(ended.output) is not None
    nothing = no_answer(ended, _NOT_READ)
    done = finished and nothing is None and ended.returncode in {0, 1}
    return CheckResult(
        returncode=ended.returncode,
        output=ended.output,
        duration_s=ended.duration_s,
        fixed=done,
        questions=len(_PROBLEM.findall(ended.output)),
        tool=NAME,
        what="" if done else nothing or ended.describe(),
    )
