"""`contain`: stop the damage from growing while the VE keeps what it can keep.

It is synced and then aborted: writers get EROFS, readers go on, and only a repair brings writes
back. `remount,ro` would not do: it answers EBUSY while any file is open for writing.

The VE's tasks are held meanwhile. An fsync(2) that waits for the journal in the moment in which
that is aborted may be acknowledged by the kernel and never reach the disk; of tasks that are frozen
none is in the middle of one.
"""

from __future__ import annotations

import asyncio
import os

from fswatchd.helpers.client import HelperError
from fswatchd.kernel import fs
from fswatchd.kernel.syscalls import syncfs
from fswatchd.repair import condition, scope, ve_freeze
from fswatchd.repair.condition import Condition
from fswatchd.repair.ve_freeze import HoldError
from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse

_SYNC_TIMEOUT_S = 30.0
_HOLD_S = _SYNC_TIMEOUT_S + 15.0


class ContainAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            return await self._contain(context)
        except StepEnded as ended:
            return ended.result
        except HoldError as error:
            text = f"nothing was aborted: the VE's tasks cannot be held meanwhile ({error})"
            return refuse("not contained", text).result
        except (OSError, HelperError, TimeoutError) as error:
            return refuse("failed", f"cannot contain: {error or type(error).__name__}").result

    async def _contain(self, context: ActionContext) -> StepResult:
        target = await scope.resolve(context)
        if target.superblock is None:
            return StepResult(next=Next.CONTINUE, result="stopped", detail="it is not mounted")
        state = await condition.of(context.inventory, target.superblock)
        if state in {Condition.ABORTED, Condition.SHUTDOWN}:
            context.reached("contained")
            text = "the kernel has already stopped writes"
            return StepResult(next=Next.CONTINUE, result="contained", detail=text)
        if not target.superblock.fstype.startswith("ext"):
            text = f"{target.superblock.fstype} has no way to stop writers and let readers go on"
            raise refuse("refused", f"{text}; fswatch freeze holds writers for a while")
        await context.journal(aborting=str(target.superblock.devno))
        async with (
            ve_freeze.tasks_held(context, target.ve, _HOLD_S),
            context.inventory.opened(target.superblock) as mount,
        ):
            async with asyncio.timeout(_SYNC_TIMEOUT_S):
                await asyncio.to_thread(_sync, mount)
            await asyncio.to_thread(fs.abort, mount)
        context.reached("contained")
        text = "synced, then aborted: it can be read, and written again only after a repair"
        return StepResult(next=Next.CONTINUE, result="contained", detail=text, changed=True)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Containing again finds it contained, or contains it."""
        return await self.run(context, step)


def _sync(mount: int) -> None:
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        syncfs(directory)
    finally:
        os.close(directory)
