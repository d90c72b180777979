"""`remount`: make a filesystem writable again that is read-only and undamaged.

A kernel that stopped writing after an error answers 0 to "remount,rw" and goes on refusing writes.
So this refuses wherever an error is recorded, and believes only a write.
"""

from __future__ import annotations

import asyncio

from fswatchd.helpers.client import HelperError
from fswatchd.kernel.syscalls import reconfigure_superblock
from fswatchd.repair import scope, verify
from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse


class RemountAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            return await self._remount(context)
        except StepEnded as ended:
            return ended.result
        except (OSError, HelperError) as error:
            return refuse("failed", f"cannot remount: {error}").result

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Remounting again is harmless."""
        return await self.run(context, step)

    async def _remount(self, context: ActionContext) -> StepResult:
        target = await scope.resolve(context)
        superblock = target.superblock
        if superblock is None:
            raise refuse("refused", "it is not mounted")
        options = set(context.inventory.current_options(superblock) or ())
        if stopped := options & {"emergency_ro", "shutdown"}:
            text = f"the kernel has stopped it ({', '.join(stopped)}): no remount brings it back"
            raise refuse("refused", f"{text}, only a repair does")
        context.state.check(superblock.devno)
        if errors := context.state.errors(superblock.devno):
            raise refuse(
                "refused", f"{errors} errors are recorded: it needs a check, not a remount"
            )
        if "ro" in options:
            async with context.inventory.opened(superblock) as mount:
                await asyncio.to_thread(reconfigure_superblock, mount, "rw")
        unwell = await verify.healthy(context.inventory, context.state, superblock)
        if unwell is not None:
            raise refuse("failed", f"it was remounted, but {unwell}")
        context.reached("repaired")
        context.reached("verified")
        return StepResult(
            next=Next.CONTINUE, result="remounted", detail="it takes writes again", changed=True
        )
