"""Run other programs: the only place that starts them.

Always an argument list, never a shell; a clean environment; a session of its own, so that the
whole group can be ended; a deadline; bounded output. Nothing inherits the daemon's protection from
the OOM killer: what is started may be a VE, which lives on. The program itself dies with the
daemon, also by SIGKILL (PR_SET_PDEATHSIG): a kill command or an e2fsck that goes on after its
daemon would work against the next one. What a program printed is returned, what it means is the
caller's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fswatchd import transient
from fswatchd.errors import FswatchError
from fswatchd.sandbox import Sandbox, SandboxError, flush
from fswatchd.sandbox.bubblewrap import Bubblewrap
from fswatchd.sandbox.entry import Entry
from fswatchd.sandbox.unit import Unit
from fswatchd.shielded import to_the_end

MAX_OUTPUT = 1 << 20
_GRACE_S = 2.0
_CHUNK = 65536
# setpriv(1) of util-linux; a preexec_fn would be unsafe beside threads.
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
_HEAVY_OOM_SCORE = 500
# The lowest of the best-effort class: the VE's writers may wait for what runs so, and on a busy
# disk idle work can wait for ever. What nobody waits for is idle.
_LAST_IN_LINE = ("ionice", "-c", "2", "-n", "7")
_IDLE = ("ionice", "-c", "3")
# The same in the words of systemd.exec(5).
_LAST_IN_LINE_UNIT = ("IOSchedulingClass=best-effort", "IOSchedulingPriority=7")
_IDLE_UNIT = ("IOSchedulingClass=idle",)

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/root",
}


class ProcessError(FswatchError):
    """A program cannot be started at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a program ended. `returncode` is -N after signal N, as subprocess has it.

    `timed_out` is true when the deadline passed and the group was killed; `stuck` when even that
    did not end it (a task in uninterruptible sleep) and it was left behind. `cut` says that it may
    have printed more than there is in `output`.
    """

    argv: tuple[str, ...]
    returncode: int
    output: str
    duration_s: float
    timed_out: bool = False
    stuck: bool = False
    cut: bool = False

    @property
    def succeeded(self) -> bool:
        """Exit code 0, within the deadline."""
        return self.returncode == 0 and not self.timed_out

    @property
    def command(self) -> str:
        """The command as one could type it."""
        return shlex.join(self.argv)

    def describe(self) -> str:
        """One line: what ran, how it ended, the last thing it said."""
        if self.stuck:
            ending = f"did not end within {self.duration_s:.1f} s and cannot be killed"
        elif self.timed_out:
            ending = f"did not end within {self.duration_s:.1f} s and was killed"
        elif self.returncode < 0:
            ending = f"was ended by signal {-self.returncode}"
        else:
            ending = f"exit code {self.returncode}"
        last = self.output.strip().rpartition("\n")[2]
        return f"{self.command}: {ending}" + (f" ({last})" if last else "")


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    heavy: bool = False,
    idle: bool = False,
    sandbox: Sandbox | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    environment: dict[str, str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_output: Callable[[bytes], None] | None = None,
    max_output: int = MAX_OUTPUT,
    unit: str = "",
) -> Completed:
    """Run `argv` to its end or to the deadline; output and errors come back in one text.

    `heavy` is for what reads a whole volume: it comes last at the disk, with `idle` when nobody
    else wants it, and is the first to go when memory runs out. `sandbox` is for what reads a
    tenant's bytes: only one descriptor may go into one, as `stdin` or by `pass_fds`. `on_output` is
    called with what is printed, as it comes; what is printed beyond `max_output` bytes is thrown
    away. `unit` is for what leaves processes that live on, or must not
    end with us: where this daemon is a service of systemd, PID 1 runs the program in a unit of its
    own of that kind (`transient.new_name`), so that nothing of it has the daemon's cgroup or
    sandbox.

    Raises ProcessError when the program does not exist or cannot be executed, SandboxError where
    the sandbox cannot be built. When the caller is cancelled, the program's group is killed before
    the cancellation goes on.
    """
    started = time.monotonic()
    if shutil.which(argv[0], path=ENVIRONMENT["PATH"]) is None:
        hint = "is the program installed, and executable?"
        raise ProcessError(f"cannot run {argv[0]}: there is no such program", hint=hint)
    entry: Entry | None = None
    if sandbox is not None:
        place = _IDLE_UNIT if idle else _LAST_IN_LINE_UNIT if heavy else ()
        score = f"OOMScoreAdjust={_HEAVY_OOM_SCORE if heavy else 0}"
        entry = _into(sandbox, pass_fds, stdin, timeout_s, (*place, score))
        command = entry.command(flush.answered(argv) if sandbox.flushes else argv)
    elif unit and transient.is_service():
        command = _in_unit(argv, timeout_s, unit)
    else:
        command = tuple(argv)
    try:
        process = await asyncio.create_subprocess_exec(
            *_DIE_WITH_US,
            *oom_score_prefix(_HEAVY_OOM_SCORE if heavy else 0, own=_oom_score()),
            *(_IDLE if idle else _LAST_IN_LINE if heavy else ()),
            *command,
            stdin=stdin if entry is None else entry.stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if entry is None else entry.stderr,
            start_new_session=True,
            pass_fds=pass_fds if entry is None else entry.inherited,
            env=ENVIRONMENT | (environment or {}),
            cwd="/",
        )
    except (OSError, asyncio.CancelledError) as error:
        if entry is not None:
            entry.close()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise ProcessError(f"cannot run {argv[0]}: {error.strerror}") from error
    if entry is not None:
        entry.started()
    if on_start:
        on_start(process.pid)
    output = bytearray()
    reader = asyncio.create_task(_collect(process, output, max_output, on_output))
    timed_out = stuck = False
    try:
        # The pipe may outlive the program in a daemon it left behind: wait for the program.
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        timed_out = True
        stuck = not await to_the_end(_end(process, entry))
    except asyncio.CancelledError:
        await to_the_end(_end(process, entry))
        raise
    finally:
        inside, gone = await to_the_end(_wind_up(process, reader, entry))
        stuck = stuck or not gone
    returncode = process.returncode if process.returncode is not None else -signal.SIGKILL
    if entry is not None and not timed_out and returncode >= 0:
        if inside is None:
            last = output.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
            raise SandboxError(f"{argv[0]} did not run, its sandbox failed: {last}")
        returncode = inside
    return Completed(
        argv=tuple(argv),
        returncode=returncode,
        output=output.decode("utf-8", "backslashreplace"),
        duration_s=time.monotonic() - started,
        timed_out=timed_out,
        stuck=stuck,
        cut=len(output) >= max_output,
    )


def _into(
    sandbox: Sandbox,
    pass_fds: Sequence[int],
    stdin: int,
    timeout_s: float,
    place: Sequence[str],
) -> Entry:
    if transient.is_service():
        # The deadline is ours; the unit's holds where we are gone.
        last_s = timeout_s + _GRACE_S
        return Unit(
            sandbox, pass_fds, stdin, timeout_s=last_s, place=place, environment=ENVIRONMENT
        )
    if shutil.which("bwrap", path=ENVIRONMENT["PATH"]) is None:
        what = f"{sandbox.device} is not read without a sandbox, and there is no bwrap"
        raise SandboxError(what, hint="install bubblewrap")
    return Bubblewrap(sandbox, pass_fds, stdin)


def _in_unit(argv: Sequence[str], timeout_s: float, kind: str) -> tuple[str, ...]:
    properties = (
        "Type=oneshot",
        "KillMode=process",
        f"TimeoutStartSec={timeout_s:g}",
        f"TimeoutStopSec={_GRACE_S:g}",
    )
    return transient.command(transient.new_name(kind), properties, ENVIRONMENT, argv)


def oom_score_prefix(wanted: int, *, own: int) -> tuple[str, ...]:
    """What gives a program the score (choom(1)); only ever raised, which needs no privilege."""
    return ("choom", "-n", str(wanted), "--") if own < wanted else ()


def _oom_score() -> int:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return int(file.read())


async def _collect(
    process: asyncio.subprocess.Process,
    output: bytearray,
    most: int,
    on_output: Callable[[bytes], None] | None,
) -> None:
    if process.stdout is None:
        return
    while chunk := await process.stdout.read(_CHUNK):
        room = most - len(output)
        output += chunk[: max(room, 0)]
        if on_output is not None:
            on_output(chunk)


async def _wind_up(
    process: asyncio.subprocess.Process, reader: asyncio.Task[None], entry: Entry | None
) -> tuple[int | None, bool]:
    """Close what led to the program; the exit code from inside its sandbox, and whether all that
    was in there is gone."""
    if not reader.done():
        await asyncio.wait([reader], timeout=0.2)
        reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    _close_pipe(process)
    if entry is None:
        return None, True
    return await asyncio.to_thread(entry.finish, _GRACE_S)


async def _end(process: asyncio.subprocess.Process, entry: Entry | None) -> bool:
    ended = await _end_group(process)
    if entry is not None and (command := entry.end_command()):
        # What was asked for before the asking program died is ended after it was begun.
        await run(command, timeout_s=2 * _GRACE_S)
    return ended


async def _end_group(process: asyncio.subprocess.Process) -> bool:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:
            continue
        # The leader is gone; what it left in its group goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return True
    return False


def _close_pipe(process: asyncio.subprocess.Process) -> None:
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
