"""Run e2fsck (e2fsck(8)) and read what it answers.

The exit code is a sum of bits; a bit that is not known is a failure, and so is the end by a signal
or by the deadline. Always on something nobody else uses: that is for the caller to prove.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import replace

from fswatchd import process
from fswatchd.kernel import extfs
from fswatchd.repair import progress
from fswatchd.repair.check import MOST_OUTPUT, CheckResult, no_answer
from fswatchd.repair.progress import OnProgress
from fswatchd.sandbox import Sandbox

FIXED = 1
REBOOT = 2
UNCORRECTED = 4
OPERATIONAL = 8
USAGE = 16
CANCELLED = 32
LIBRARY = 128
_KNOWN = FIXED | REBOOT | UNCORRECTED | OPERATIONAL | USAGE | CANCELLED | LIBRARY

# By itself it asks for 4 MiB at once: whoever syncs on the same disk waits behind that, and the
# check is no sooner done.
_READS_AHEAD = "readahead_kb=256"

# Of e2fsck's handlers of errors (e2fsck/ehandler.c), and of com_err(3) outside of them. Beyond the
# end of the volume, or at a place that is none, nothing is unreadable: that number is damaged. And
# with -n it tries to write all the same, by a descriptor that does not permit it.
_NOT_READ = re.compile(
    r"Error (?:reading|writing) block \d+ "
    r"\((?!Invalid argument|Bad file descriptor|Attempt to )[^)\n]*\)"
    r"|e2fsck: (?:Input/output error|No data available|Remote I/O error) while [^\n]*"
)
# The last line of a run that came to its end.
_SUMMARY = re.compile(r": \d+/\d+ files \(")
_FROM_BACKUP = re.compile(r"trying backup blocks|Superblock invalid")
_RECONNECTED = re.compile(r"^Connect to /lost\+found\? yes", re.MULTILINE)
_CLEARED = re.compile(
    r"\b(?:Clear|Clear inode|Delete file|Salvage)\? yes|\bCLEARED\.$", re.MULTILINE
)
# An answer, or what -p has done without a question.
_ANSWERED = re.compile(r"\? (?:yes|no)\b|(?: |^)[A-Z][A-Z+/ ]{3,}\.$", re.MULTILINE)


async def replay(path: str, timeout_s: float) -> CheckResult:
    """Replay the journal, and nothing else; nothing where there is none to replay.

    Not where the group descriptors are damaged either: e2fsck 1.47 with these options then deletes
    the journal, writes bad descriptors over the good copies, and every file is lost afterwards.
    `repair` gets those back, and replays the journal on its way. The same where the superblock is
    damaged, at which it gives up (8). What else it cannot do has spoilt the copy (4).
    """
    if not await asyncio.to_thread(extfs.needs_recovery, path):
        return CheckResult(returncode=0, output="", duration_s=0.0, clean=True)
    first = await _run(("-E", "journal_only", "-n"), path, timeout_s)
    if _NOT_READ.search(first.output):
        return first
    if _FROM_BACKUP.search(first.output):
        return replace(first, clean=False, damaged=True, what="")
    result = await _run(("-E", "journal_only", "-p"), path, timeout_s)
    if _NOT_READ.search(result.output):
        return result
    if result.returncode in {OPERATIONAL, OPERATIONAL | FIXED} and not result.usable:
        return replace(result, damaged=True, what="")
    if result.damaged:
        what = "e2fsck changed more than the journal, and the copy is of no use any more"
        return replace(result, damaged=False, what=what)
    return result


async def check(path: str, timeout_s: float, on_progress: OnProgress | None = None) -> CheckResult:
    """Check everything, change nothing."""
    options = ("-fn", "-E", _READS_AHEAD)
    return proven(await _run(options, path, timeout_s, on_progress=on_progress))


def proven(result: CheckResult) -> CheckResult:
    """The result of a check; that it ended with 0 alone does not say that it has checked."""
    if result.clean and not _SUMMARY.search(result.output):
        return replace(result, clean=False, what="it ended with 0, and without its summary")
    return result


async def repair(
    path: str,
    timeout_s: float,
    undo_file: str | None = None,
    on_progress: OnProgress | None = None,
) -> CheckResult:
    """Check everything and fix what can be fixed; with `undo_file`, so that e2undo can undo it.

    With one it is done in place: `-p` first, which changes only what is safe to. Not where
    the copies of superblock or group descriptors are needed: of 53 damages that were tried it is
    there that `-p` made things worse (all descriptors gone: `-fy` alone keeps every file, after
    `-p` it loses them all).
    """
    if undo_file is None:
        options = ("-fy", "-E", f"fixes_only,{_READS_AHEAD}")
        return await _run(options, path, timeout_s, None, on_progress)
    fixes = ("-E", f"fixes_only,{_READS_AHEAD}", "-z", undo_file)
    look = await _run(("-E", "journal_only", "-n"), path, timeout_s)
    if _NOT_READ.search(look.output):
        return look
    if not look.usable or _FROM_BACKUP.search(look.output):
        return await _run(("-fy", *fixes), path, timeout_s, undo_file, on_progress)
    gentle = await _run(("-fp", *fixes), path, timeout_s, undo_file, on_progress)
    if not gentle.damaged:
        return gentle
    rest = await _run(("-fy", *fixes), path, timeout_s, undo_file, on_progress)
    return gentle.plus(rest) if rest.usable else rest


async def _run(
    options: Sequence[str],
    path: str,
    timeout_s: float,
    undo_file: str | None = None,
    on_progress: OnProgress | None = None,
) -> CheckResult:
    sandbox = Sandbox(
        device=path, directory=os.path.dirname(undo_file) if undo_file else None, cpu_s=timeout_s
    )
    if on_progress is None:
        argv = ("e2fsck", *options, path)
        ended = await process.run(
            argv, timeout_s=timeout_s, heavy=True, sandbox=sandbox, max_output=MOST_OUTPUT
        )
        return interpret(ended)
    async with progress.of_e2fsck(on_progress) as fd:
        ended = await process.run(
            ("e2fsck", *options, "-C", str(fd), path),
            timeout_s=timeout_s,
            heavy=True,
            sandbox=sandbox,
            pass_fds=(fd,),
            max_output=MOST_OUTPUT,
            on_start=lambda _: os.close(fd),
        )
    return interpret(ended)


def interpret(ended: process.Completed) -> CheckResult:
    """The meaning of an exit code and output of e2fsck."""
    code = ended.returncode
    left = code > 0 and bool(code & UNCORRECTED)
    nothing = no_answer(ended, _NOT_READ)
    failed = (
        nothing is not None
        or bool(code & ~_KNOWN)
        or bool(code & (USAGE | CANCELLED | LIBRARY))
        or code == REBOOT  # for something that it does not name
        # With -n it gives up (8) at damage that it may not repair, and says so (4) as well.
        or (bool(code & OPERATIONAL) and not left)
    )
    return CheckResult(
        returncode=code,
        output=ended.output,
        duration_s=ended.duration_s,
        clean=not failed and code == 0,
        fixed=not failed and bool(code & FIXED) and not left,
        damaged=not failed and left,
        questions=len(_ANSWERED.findall(ended.output)),
        reconnected=len(_RECONNECTED.findall(ended.output)),
        cleared=len(_CLEARED.findall(ended.output)),
        what=(nothing or ended.describe()) if failed else "",
    )
