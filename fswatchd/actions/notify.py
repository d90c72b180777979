"""`notify`: tell these channels of the incident as it is at this point of the plan."""

from __future__ import annotations

from fswatchd.notify.notices import Notices
from fswatchd.rules.model import NotifyStep, Step
from fswatchd.steps import ActionContext, Next, StepResult


class NotifyAction:
    """See the module. It hands over to the outbox; whether it arrived is seen there."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        if not isinstance(step, NotifyStep):
            raise TypeError(f"not a notify step: {step}")
        if (mute := context.incident.mute) is not None:
            return StepResult(next=Next.CONTINUE, result="muted", detail=f"muted by {mute.by}")
        told = self._notices.send(context.incident, "updated", tuple(step.to))
        detail = f"handed over for {', '.join(told)}" if told else "no channel is configured"
        return StepResult(next=Next.CONTINUE, result="told" if told else "nobody", detail=detail)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """What was handed over is in the outbox; what was not is told now."""
        return await self.run(context, step)
