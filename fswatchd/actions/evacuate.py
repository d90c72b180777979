"""`evacuate`: let the platform move the VE to another node, off a device that fails.

The VE's own `migrate` command, or its platform's; `{to}` in it is the step's `to`. That it ended
well is no proof: the VE must not run here any more.
"""

from __future__ import annotations

from fswatchd import process
from fswatchd.actions.ve_steps import only_ve, require_idle
from fswatchd.errors import FswatchError
from fswatchd.inventory.model import Ve, VeId
from fswatchd.repair import ve_control
from fswatchd.rules.model import EvacuateStep, Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse

_USUAL_TIMEOUT_S = 6 * 3600.0
_EARLIER_S = 1.0
_TO = "{to}"


class EvacuateAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        if not isinstance(step, EvacuateStep):
            raise TypeError(f"not an evacuate step: {step}")
        try:
            ve = await only_ve(context)
            require_idle(ve)
            argv = command(ve, step.to)
            await context.about_to_stop(ve.ve_id)
        except StepEnded as ended:
            return ended.result
        context.progress(None, f"{ve.ve_id} is being moved away")
        timeout_s = step.timeout if step.timeout is not None else _USUAL_TIMEOUT_S
        try:
            done = await process.run(argv, timeout_s=max(timeout_s - _EARLIER_S, timeout_s / 2))
        except (FswatchError, OSError) as error:
            return refuse("failed", f"{ve.ve_id} was not moved: {error}").result
        if not done.succeeded:
            text = f"{ve.ve_id} may be half-way: {done.describe()}"
            return StepResult(next=Next.OPERATOR, result="not moved", detail=text, changed=True)
        return await _proven(context, ve)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """The migration ended with the daemon, nobody knows where."""
        del step
        if not context.record.journal.get("stopping"):
            return refuse("interrupted", "the daemon ended before anything was moved").result
        text = "the migration was cut off with the daemon: look where the VE is"
        return StepResult(next=Next.OPERATOR, result="interrupted", detail=text, changed=True)


def command(ve: Ve, to: str) -> tuple[str, ...]:
    """What moves the VE to the node `to`. Raises StepEnded."""
    if not ve.commands.migrate:
        text = f"{ve.ve_id} has no migrate command: declare one in ve.d"
        raise refuse("refused", text)
    if not to and any(_TO in word for word in ve.commands.migrate):
        raise refuse("refused", f"{ve.ve_id} can be moved, but the step does not say to where (to)")
    return tuple(word.replace(_TO, to) for word in ve.commands.migrate)


async def _proven(context: ActionContext, ve: Ve) -> StepResult:
    await context.inventory.refresh()
    now = context.inventory.view.ves.get(VeId(ve.ve_id))
    if now is not None and ve_control.is_running(now):
        text = f"the migration ended without an error, and {ve.ve_id} still runs here"
        return StepResult(next=Next.OPERATOR, result="not moved", detail=text, changed=True)
    text = f"{ve.ve_id} does not run here any more"
    return StepResult(next=Next.CONTINUE, result="moved", detail=text, changed=True)
