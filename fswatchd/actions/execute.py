"""`exec`: run a program of the admin's own, with an argument list and never a shell.

Whoever can write the program, or a directory on the way to it, is root: so only root may. It gets
nothing from the daemon but stdin (empty), stdout and stderr, and the environment that
fswatchd.rules(5) lists; time, memory and output are bounded.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fswatchd import process
from fswatchd.errors import FswatchError
from fswatchd.events import printable
from fswatchd.incidents import Incident
from fswatchd.rules.model import ExecStep, Step
from fswatchd.steps import ActionContext, Next, StepResult, refuse

_USUAL_TIMEOUT_S = 60.0
# The executor's own deadline is the same: this one ends first, and can say what was printed.
_EARLIER_S = 1.0
_TOLD = 2000


class ExecAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        if not isinstance(step, ExecStep):
            raise TypeError(f"not an exec step: {step}")
        program = step.run[0]
        if (why := why_not(program)) is not None:
            return refuse("refused", f"{program} is not run: {why}").result
        await context.journal(running=program)
        timeout_s = step.timeout if step.timeout is not None else _USUAL_TIMEOUT_S
        argv = ("prlimit", f"--as={step.memory}", "--core=0", "--", *step.run)
        try:
            done = await process.run(
                argv,
                timeout_s=max(timeout_s - _EARLIER_S, timeout_s / 2),
                environment=environment(context.incident),
                max_output=step.max_output,
            )
        except (FswatchError, OSError) as error:
            return refuse("failed", f"{program}: {error}").result
        said = "; ".join(printable(line) for line in done.output[-_TOLD:].split("\n") if line)
        if not done.succeeded:
            how = "took too long" if done.timed_out else f"ended with {done.returncode}"
            return refuse("failed", f"{program} {how}: {said}").result
        return StepResult(next=Next.CONTINUE, result="done", detail=said or f"{program} ended well")

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """How far it got nobody knows: it is for a person to say whether it may run again."""
        del step
        program = context.record.journal.get("running")
        text = f"{program} was cut off with the daemon, and is not run a second time"
        if program is None:
            text = "the daemon ended before the program was started"
        return StepResult(next=Next.OPERATOR, result="interrupted", detail=text)


def why_not(program: str) -> str | None:
    """Why this program is not run as root; None where only root could have changed it."""
    path = Path(program)
    if not path.is_absolute() or ".." in path.parts:
        return "the path is not absolute"
    try:
        real = Path(os.path.realpath(path, strict=True))
        status = real.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            return "it is no program"
        # Both ways: to the name that was written, and to what it leads to.
        for one in dict.fromkeys((real, *real.parents, *path.parents)):
            found = one.stat()
            if found.st_uid != 0:
                return f"{one} is owned by user {found.st_uid}, not by root"
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{one} can be written by others than root"
    except OSError as error:
        return f"{error.strerror}"
    return None


def environment(incident: Incident) -> dict[str, str]:
    """What the program is told, beside PATH, HOME and LC_ALL. Empty where it is not known."""
    filesystem = incident.filesystem
    told = {
        "INCIDENT": incident.incident_id,
        "NODE": incident.node,
        "CLASS": incident.klass.value,
        "SEVERITY": incident.severity.label,
        "RULE": incident.rule,
        "VES": " ".join(incident.ves),
        "DEVICE": f"/dev/{filesystem.device}" if filesystem.device else "",
        "FSTYPE": filesystem.fstype,
        "UUID": filesystem.uuid,
        "IMAGE": filesystem.image,
    }
    return {f"FSWATCH_{key}": value or "" for key, value in told.items()}
