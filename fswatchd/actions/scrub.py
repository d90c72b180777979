"""`scrub`: let the kernel read and check a mounted btrfs or XFS, and mend what it safely can.

btrfs mends from a second copy; XFS rebuilds metadata where the kernel has online repair. Both are
asked through their own tool, at a mount of the superblock that only the tool sees. It is the whole
disk's work: the idle I/O class, and nothing where the filesystem no longer takes writes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from fswatchd import process
from fswatchd.errors import FswatchError
from fswatchd.helpers.client import HelperError, argv_of
from fswatchd.helpers.in_mount import PLACE
from fswatchd.repair import condition, scope
from fswatchd.repair.condition import Condition
from fswatchd.rules.model import Step
from fswatchd.steps import DAMAGED, MENDED, ActionContext, Next, StepEnded, StepResult, refuse

_USUAL_TIMEOUT_S = 24 * 3600.0
_EARLIER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a scrub has found: `left` is what it could not mend; None where it gave no answer."""

    left: bool | None
    mended: bool
    text: str


class ScrubAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        timeout_s = getattr(step, "timeout", None) or _USUAL_TIMEOUT_S
        try:
            return await self._scrub(context, max(timeout_s - _EARLIER_S, timeout_s / 2))
        except StepEnded as ended:
            return ended.result
        except (FswatchError, HelperError, OSError) as error:
            return refuse("failed", f"cannot scrub: {error}").result

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """A scrub that was cut off has left nothing half-done: begin again."""
        return await self.run(context, step)

    async def _scrub(self, context: ActionContext, timeout_s: float) -> StepResult:
        target = await scope.resolve(context, any_type=True)
        superblock = target.superblock
        if superblock is None:
            raise refuse("refused", "it is not mounted")
        tool = _TOOLS.get(superblock.fstype)
        if tool is None:
            raise refuse("refused", f"{superblock.fstype} cannot be scrubbed while it is mounted")
        options = context.inventory.current_options(superblock) or ()
        state = await condition.of(context.inventory, superblock)
        if state is not Condition.WRITABLE or "ro" in options:
            text = f"{superblock.device} takes no writes: a scrub could mend nothing"
            raise refuse("refused", text)
        argv, interpret = tool
        context.progress(None, f"scrubbing {superblock.device}")
        async with context.inventory.opened(superblock) as mount:
            done = await process.run(
                (sys.executable, *argv_of("fswatchd.helpers.in_mount", mount), *argv, PLACE),
                timeout_s=timeout_s,
                heavy=True,
                idle=True,
                pass_fds=(mount,),
            )
        verdict = interpret(done)
        if verdict.left is None:
            raise refuse("failed", f"no answer: {verdict.text}")
        if verdict.left:
            text = f"damage that a scrub cannot mend: {verdict.text}"
            return StepResult(next=Next.FAILED, result=DAMAGED, detail=text, changed=verdict.mended)
        if verdict.mended:
            # What it has met is in the counters: that is heard now, and is no relapse.
            context.state.check(superblock.devno)
            context.reached("repaired")
        return StepResult(
            next=Next.CONTINUE,
            result=MENDED if verdict.mended else "clean",
            detail=verdict.text,
            changed=verdict.mended,
        )


def interpret_btrfs(done: process.Completed) -> Verdict:
    """btrfs-scrub(8): 0 done, 3 uncorrectable errors; `-R` prints counters by name."""
    counters = {
        key: int(value) for key, value in re.findall(r"(\w+): (\d+)\s*$", done.output, re.M)
    }
    wrong = {key: counters.get(key, 0) for key in ("corrected_errors", "uncorrectable_errors")}
    if done.timed_out or done.returncode not in {0, 3} or not wrong.keys() <= counters.keys():
        return Verdict(left=None, mended=False, text=done.describe())
    text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in wrong.items())
    left = done.returncode == 3 or wrong["uncorrectable_errors"] > 0
    return Verdict(left=left, mended=wrong["corrected_errors"] > 0, text=text)


def interpret_xfs(done: process.Completed) -> Verdict:
    """xfs_scrub(8): a sum of 1 (errors left), 2 (could be optimized), 4 (failed), 8 (usage)."""
    code = done.returncode
    if done.timed_out or code < 0 or code & ~3:
        return Verdict(left=None, mended=False, text=done.describe())
    mended = re.search(r"repairs made: [1-9]", done.output) is not None
    last = done.output.strip().rpartition("\n")[2]
    return Verdict(left=bool(code & 1), mended=mended, text=last or "nothing found")


_TOOLS: dict[str, tuple[tuple[str, ...], Callable[[process.Completed], Verdict]]] = {
    "btrfs": (("btrfs", "scrub", "start", "-B", "-R"), interpret_btrfs),
    "xfs": (("xfs_scrub",), interpret_xfs),
}
