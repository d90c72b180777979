"""`quarantine`: hand the incident to a person; nothing automatic happens to the VE until then."""

from __future__ import annotations

from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepResult


class QuarantineAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del context, step
        return StepResult(next=Next.OPERATOR, result="quarantined", detail="the rule says so")

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        return await self.run(context, step)
