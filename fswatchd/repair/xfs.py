"""Run xfs_repair (xfs_repair(8)) and let the kernel replay an XFS log.

xfs_repair cannot replay a log, and refuses to work beside one (exit code 2). The kernel replays it
when it mounts the filesystem; a copy needs `nouuid` for that, because the original may be mounted.
Its `-L` throws the log away, and with it what was acknowledged: `repair_without_log` alone has it,
the last resort on a clone after a person said so (`consent.within_bounds`).
"""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import replace

from fswatchd import process
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.repair import progress, scratch
from fswatchd.repair.check import MOST_OUTPUT, CheckResult, no_answer
from fswatchd.repair.findings import XFS_ROUTINE
from fswatchd.repair.progress import OnProgress
from fswatchd.sandbox import Sandbox

NAME = "xfs_repair"

FAILED = 1  # with -n: damage was found, or the program could not go on
DIRTY_LOG = 2
FIXED = 4  # with -e

# Answers of xfs_log_mount() (fs/xfs/xfs_log.c) about the log itself; EIO may be the disk's.
_LOG_REFUSED = {errno.EBADMSG, errno.EUCLEAN, errno.EINVAL}
_HELPER = "fswatchd.helpers.replay"
_LOG_STATE = re.compile(r"^\s*log tail: \d+ head: \d+ state: <(CLEAN|DIRTY)>", re.MULTILINE)
# What `-n` prints when it has come to an end, as it does at whatever damage it is made for.
_FINISHED = re.compile(
    r"^No modify flag set, skipping (?:filesystem flush and exiting|phase 5)"
    r"|^(?:Inode allocation btrees are too corrupted, skipping phases 6 and 7)"
    r"|^Primary superblock would have been modified",
    re.MULTILINE,
)
# Of libxfs/rdwr.c; "Invalid argument" comes of a place that is none, which is damage.
_NOT_READ = re.compile(r"xfs_repair: (?:read|pwrite) failed: (?!Invalid argument)[^\n]*")
_PHASE = re.compile(rb"Phase ([1-7]) - ")
# Where each begins, in the time that a filesystem with many files takes.
_PHASES = (0.0, 0.02, 0.05, 0.45, 0.6, 0.65, 0.95)
# What one thread writes between two pieces of what another one says, and what nobody needs: which
# allocation group it is at, and what verifiers find in whatever thread happens to read a block.
_BETWEEN = re.compile(
    r"Metadata (?:corruption|CRC error) detected at 0x[0-9a-f]+, "
    r"(?:inode 0x[0-9a-f]+ dinode|\w+ block 0x[0-9a-f]+(?:/0x[0-9a-f]+)?)\n?"
    r"| {8}- agno = \d+\n?"
)
_LINKS_RESET = re.compile(r"^resetting inode \d+ nlinks from", re.MULTILINE)
_LOG_IGNORED = "valuable metadata changes in a log which is being"
_RECONNECTED = re.compile(r"disconnected (?:dir )?inode (\d+), (?:would move|moving) to ")
_CLEARED = re.compile(
    r"would have cleared inode|would clear entry|would junk entry|^cleared inode"
    r"|clearing entry|junking entry|^would rebuild directory inode"
    r"|^rebuilding directory inode",
    re.MULTILINE,
)


async def replay(path: str, timeout_s: float) -> CheckResult:
    """Replay the log of the image at `path`; a log that is clean is left alone.

    When this is `clean`, the log is. Where the kernel cannot replay it, nobody can.
    """
    started = time.monotonic()
    before = await _log_state(path, timeout_s)
    problem, refused = None, False
    if before != "CLEAN":
        problem, refused = await _mount(path, timeout_s)
        now = await _log_state(path, timeout_s)
        if before is None and now is None and problem is not None:
            problem = None  # whether it has a log is for xfs_repair to say, which refuses if so
        elif problem is None and now != "CLEAN":
            problem = "the log is not clean after the kernel has replayed it"
        elif problem is not None:
            problem = (
                f"the kernel cannot replay the log ({problem}). xfs_repair -L would throw the log "
                "away, with what was synced but is only there: that is for a person to decide"
            )
    return CheckResult(
        returncode=0 if problem is None else DIRTY_LOG,
        output="",
        duration_s=time.monotonic() - started,
        clean=problem is None,
        tool=NAME,
        what=problem or "",
        last_resort=problem is not None and refused,
    )


async def check(path: str, timeout_s: float, on_progress: OnProgress | None = None) -> CheckResult:
    """Check everything, change nothing."""
    return interpret_check(await _run(("-n",), path, timeout_s, on_progress))


async def repair(
    path: str,
    timeout_s: float,
    undo_file: str | None = None,
    on_progress: OnProgress | None = None,
) -> CheckResult:
    """Check everything and fix what can be fixed. Cannot be undone."""
    if undo_file is not None:
        raise ValueError("xfs_repair has no undo")
    return await _repair(("-e",), path, timeout_s, on_progress)


async def _repair(
    options: tuple[str, ...], path: str, timeout_s: float, on_progress: OnProgress | None
) -> CheckResult:
    done = interpret_repair(await _run(options, path, timeout_s, on_progress))
    if not done.fixed or not _LINKS_RESET.search(done.output):
        return done
    # Beside directories that it has made anew it counts links wrongly (6.13 and 7.2, with parent
    # pointers), and finds that itself the next time.
    again = interpret_repair(await _run(("-e",), path, timeout_s, None))
    return done if again.usable else again


async def repair_without_log(
    path: str,
    timeout_s: float,
    undo_file: str | None = None,
    on_progress: OnProgress | None = None,
) -> CheckResult:
    """The same, for a log that nobody can replay: what is only there is lost. See the module."""
    if undo_file is not None:
        raise ValueError("xfs_repair has no undo")
    return await _repair(("-L", "-e"), path, timeout_s, on_progress)


async def _run(
    options: tuple[str, ...], path: str, timeout_s: float, on_progress: OnProgress | None
) -> process.Completed:
    sandbox = Sandbox(device=path, cpu_s=timeout_s, threads=True)
    ended = await process.run(
        (NAME, *options, path),
        timeout_s=timeout_s,
        heavy=True,
        sandbox=replace(sandbox, flushes=sandbox.is_device),
        max_output=MOST_OUTPUT,
        on_output=progress.of_headings(
            on_progress, _PHASE, lambda found: _PHASES[int(found[1]) - 1]
        ),
    )
    return replace(ended, output=untangled(ended.output))


def untangled(output: str) -> str:
    """What xfs_repair prints, without what its threads write into one another's lines.

    With it one run in ten seems to find something else than the one before.
    """
    return _BETWEEN.sub("", output)


async def _log_state(path: str, timeout_s: float) -> str | None:
    """`CLEAN` or `DIRTY`, None where xfs_logprint(8) cannot tell."""
    sandbox = Sandbox(device=path, cpu_s=timeout_s)  # it opens for writing, and writes nothing
    argv = ("xfs_logprint", "-t", path)
    ended = await process.run(argv, timeout_s=timeout_s, heavy=True, sandbox=sandbox)
    found = _LOG_STATE.search(ended.output)
    return found[1] if found and not ended.timed_out else None


async def _mount(path: str, timeout_s: float) -> tuple[str | None, bool]:
    """Mount it where nobody sees it, and unmount it; None, or what went wrong.

    And whether that is the kernel's word about the filesystem, not about the attempt.
    """
    helper = Helper(_HELPER)
    try:
        async with scratch.attached(path) as device:
            try:
                await helper.request(
                    {"fstype": "xfs", "device": device, "flags": ["nouuid"]}, timeout_s=timeout_s
                )
            finally:
                await helper.close(kill=True)
    except TimeoutError:
        return "its device does not go away", False
    except HelperError as error:
        return str(error), False
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        text = f"mount: {os.strerror(error.errno or 5)} {name}".rstrip()
        return text, error.errno in _LOG_REFUSED
    return None, False


def interpret_check(ended: process.Completed) -> CheckResult:
    """The meaning of `xfs_repair -n`.

    Exit code 1 is damage, and also a failure of the program: what it prints at its end tells them
    apart. Beside a dirty log it proves nothing, whatever it says.
    """
    code, output = ended.returncode, ended.output
    dirty = _LOG_IGNORED in output
    finished = _FINISHED.search(output) is not None
    nothing = no_answer(ended, _NOT_READ)
    failed = nothing is not None or code not in {0, FAILED} or not finished or dirty
    what = nothing or ("its log was not replayed" if dirty else ended.describe())
    return _result(
        ended, clean=not failed and code == 0, damaged=not failed and code == FAILED, what=what
    )


def interpret_repair(ended: process.Completed) -> CheckResult:
    """The meaning of `xfs_repair -e`: 0 nothing found, 4 all of it fixed; all else is a failure."""
    code = ended.returncode
    nothing = no_answer(ended, _NOT_READ)
    failed = nothing is not None or code not in {0, FIXED}
    what = nothing or ended.describe()
    if code == DIRTY_LOG and nothing is None:
        what = "its log was not replayed, and xfs_repair -L is for a person to decide"
    return _result(
        ended, clean=not failed and code == 0, fixed=not failed and code == FIXED, what=what
    )


def _result(
    ended: process.Completed,
    *,
    clean: bool = False,
    fixed: bool = False,
    damaged: bool = False,
    what: str,
) -> CheckResult:
    output = ended.output
    questions = len({line for line in output.splitlines() if not XFS_ROUTINE.match(line)})
    usable = clean or fixed or damaged
    return CheckResult(
        returncode=ended.returncode,
        output=output,
        duration_s=ended.duration_s,
        clean=clean,
        fixed=fixed,
        damaged=damaged,
        questions=0 if clean else questions,
        reconnected=len(set(_RECONNECTED.findall(output))),
        cleared=len(_CLEARED.findall(output)),
        tool=NAME,
        what="" if usable else what,
    )
