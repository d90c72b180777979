"""`freeze` and `thaw`: the VE's processes, in its platform's way or by its cgroup.

Its filesystems are not touched.
"""

from __future__ import annotations

from fswatchd.actions.ve_steps import only_ve, require_idle
from fswatchd.repair import ve_freeze
from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse


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
        if not ve_freeze.can_freeze(ve):
            text = f"{ve.ve_id} has neither a freeze command nor a cgroup that is known"
            return refuse("refused", text).result
        await context.journal(**ve_freeze.describe_tasks(ve))
        problem = await ve_freeze.freeze_tasks(ve)
        if problem is not None:
            await ve_freeze.thaw_journaled(context.record.journal)
            return StepResult(next=Next.FAILED, result="not frozen", detail=problem)
        context.reached("contained")
        text = f"the tasks of {ve.ve_id} are frozen"
        return StepResult(next=Next.CONTINUE, result="frozen", detail=text, changed=True)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """A freeze that was cut off is undone; freezing again is for the next decision."""
        del step
        await ve_freeze.thaw_journaled(context.record.journal)
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
        if not await ve_freeze.thaw_journaled(ve_freeze.describe_tasks(ve)):
            text = f"{ve.ve_id} does not thaw"
            return StepResult(next=Next.OPERATOR, result="not thawed", detail=text)
        return StepResult(
            next=Next.CONTINUE, result="thawed", detail=f"{ve.ve_id} runs", changed=True
        )

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Thawing again is harmless."""
        return await self.run(context, step)
