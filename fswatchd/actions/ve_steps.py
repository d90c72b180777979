"""`stop` and `start`: the VE as a whole, in its platform's way."""

from __future__ import annotations

from fswatchd.inventory.model import Ve, VeId
from fswatchd.repair import ve_control
from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse


async def only_ve(context: ActionContext) -> Ve:
    """The one VE of the incident as it is now. Raises StepEnded."""
    await context.inventory.refresh()
    ves = context.incident.ves
    if len(ves) != 1:
        raise refuse("refused", f"exactly one VE must be concerned, not {', '.join(ves) or 'none'}")
    ve = context.inventory.view.ves.get(VeId(ves[0]))
    if ve is None:
        raise refuse("cancelled", f"{ves[0]} is gone", Next.CANCELLED)
    return ve


def require_idle(ve: Ve) -> None:
    """Nothing is begun on a VE that its platform works on. Raises StepEnded."""
    if ve.busy:
        raise refuse("cancelled", f"{ve.ve_id} is busy: {ve.busy}", Next.CANCELLED)


class StopAction:
    """Stop the VE; kill it when its stop command takes too long."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            ve = await only_ve(context)
            require_idle(ve)
            if ve_control.is_running(ve):
                ve = await context.lock_ve(ve)
                await context.about_to_stop(ve.ve_id)
        except StepEnded as ended:
            return ended.result
        told = await ve_control.stop(ve, context.settings)
        if ve_control.is_running(ve):
            text = f"{ve.ve_id} does not stop: {told}"
            return StepResult(next=Next.OPERATOR, result="does not stop", detail=text, changed=True)
        return StepResult(next=Next.CONTINUE, result="stopped", detail=told, changed=True)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Stopping again is harmless."""
        return await self.run(context, step)


class StartAction:
    """Start the VE."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            ve = await only_ve(context)
        except StepEnded as ended:
            return ended.result
        if ve_control.is_running(ve):
            return StepResult(next=Next.CONTINUE, result="runs", detail=f"{ve.ve_id} runs already")
        if not ve.commands.start:
            return refuse("refused", f"{ve.ve_id} has no start command").result
        if any(record.journal.get("writing") for record in context.incident.steps):
            text = f"the repair of {ve.ve_id} was cut off while it wrote to its volume"
            return refuse("refused", f"{text}: it is not proven clean", Next.OPERATOR).result
        await context.about_to_start(ve)
        story = await ve_control.start(ve, context.settings)
        running = await ve_control.wait_running(context, ve, context.settings.start_timeout_s)
        if running is None:
            text = f"{ve.ve_id} does not start: {story}"
            return StepResult(next=Next.FAILED, result="does not start", detail=text, changed=True)
        text = f"{ve.ve_id} runs"
        return StepResult(next=Next.CONTINUE, result="started", detail=text, changed=True)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Starting again is harmless."""
        return await self.run(context, step)
