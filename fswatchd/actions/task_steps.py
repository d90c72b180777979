"""`freeze` and `thaw`: the VE's processes, by its cgroup. Its filesystems are not touched."""

from __future__ import annotations

import asyncio

from fswatchd.actions.ve_steps import only_ve, require_idle
from fswatchd.kernel import cgroup
from fswatchd.rules import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse

_TIMEOUT_S = 5.0


class FreezeAction:
    """Stop all tasks of the VE where they are, until `thaw` or the end of the plan."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            ve = await only_ve(context)
            require_idle(ve)
        except StepEnded as ended:
            return ended.result
        if ve.cgroup is None:
            return refuse("refused", f"no cgroup of {ve.ve_id} is known").result
        await context.journal(frozen_cgroup=ve.cgroup)
        if not await asyncio.to_thread(cgroup.freeze, ve.cgroup, _TIMEOUT_S):
            text = f"{ve.ve_id} did not freeze within {_TIMEOUT_S:.0f} s and runs again"
            return StepResult(next=Next.FAILED, result="not frozen", detail=text)
        context.reached("contained")
        text = f"the tasks of {ve.ve_id} are frozen"
        return StepResult(next=Next.CONTINUE, result="frozen", detail=text, changed=True)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """A freeze that was cut off is undone; freezing again is for the next decision."""
        del step
        group = context.record.journal.get("frozen_cgroup")
        if isinstance(group, str):
            await asyncio.to_thread(cgroup.thaw, group, _TIMEOUT_S)
        return refuse("interrupted", "the freeze was undone when the daemon started").result


class ThawAction:
    """Let the VE's tasks run again."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            ve = await only_ve(context)
        except StepEnded as ended:
            return ended.result
        if ve.cgroup is None or not await asyncio.to_thread(cgroup.thaw, ve.cgroup, _TIMEOUT_S):
            text = f"{ve.ve_id} does not thaw"
            return StepResult(next=Next.OPERATOR, result="not thawed", detail=text)
        return StepResult(
            next=Next.CONTINUE, result="thawed", detail=f"{ve.ve_id} runs", changed=True
        )

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Thawing again is harmless."""
        return await self.run(context, step)
