"""`fsck`: check and repair by the strategy that the rule names.

`online` is the gentlest, and not always enough: what a scrub of the running filesystem mends. Where
it leaves damage the step fails, and a rule may go on by `clone` (`on_failure = "continue"`).
"""

from __future__ import annotations

from fswatchd.actions.scrub import ScrubAction
from fswatchd.repair import offline, tools
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.resume import resume
from fswatchd.repair.swap import SwapError
from fswatchd.rules.model import FsckStep, Step
from fswatchd.steps import ActionContext, StepEnded, StepResult, refuse


class FsckAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        return await self._go(context, step, cut_off=False)

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        return await self._go(context, step, cut_off=True)

    async def _go(self, context: ActionContext, step: Step, *, cut_off: bool) -> StepResult:
        if not isinstance(step, FsckStep):
            raise TypeError(f"not a fsck step: {step}")
        try:
            if step.strategy == tools.ONLINE:
                if no_way := tools.refusal(context.incident.filesystem.fstype, tools.ONLINE):
                    raise refuse("refused", no_way)
                scrub = ScrubAction()
                return await (scrub.recover if cut_off else scrub.run)(context, step)
            if step.strategy == tools.OFFLINE:
                way = offline.recover if cut_off else offline.run
                return await way(context, step)
            return await self._clone(context, step, cut_off=cut_off)
        except StepEnded as ended:
            return ended.result
        except (OSError, SwapError) as error:
            return refuse("failed", str(error)).result

    async def _clone(self, context: ActionContext, step: FsckStep, *, cut_off: bool) -> StepResult:
        async with CloneRepair(context, step) as repair:
            return await (resume(repair, context) if cut_off else repair.run())
