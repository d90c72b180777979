"""The VE of a plan that goes on after a restart, or goes back; where its volume is if it is gone.

At the start of a node a platform may not answer yet. A VE that nobody can be asked about is not
gone, and a plan that has stopped it is not given up for that.
"""

from __future__ import annotations

import asyncio
import time

from fswatchd.inventory.model import Ve, VeId
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, Next, StepEnded, refuse

_DECLARED = "declared"
_PATIENCE_S = 300.0
_PAUSE_S = 2.0
# At its start the daemon has not heard of all yet, and some platforms say nothing at all then.
_GONE_S = 60.0


async def find(context: ActionContext, ve_id: str, *, half_way: bool, left: str) -> Ve:
    """The VE, as its platform lists it; waits for one that does not answer.

    Raises StepEnded where it is not there, with what is `left` if the plan was `half_way`.
    """
    begun = time.monotonic()
    while True:
        await context.inventory.refresh()
        ve = context.inventory.view.ves.get(VeId(ve_id))
        if ve is not None:
            return ve
        problem = _problem(context, ve_id)
        gone_s = _GONE_S if half_way else 0.0
        if time.monotonic() - begun >= (gone_s if problem is None else _PATIENCE_S):
            raise _missing(ve_id, problem, half_way=half_way, left=left)
        why = problem or "nobody lists it"
        context.progress(None, f"waiting to hear of {ve_id}: {why}")
        await asyncio.sleep(_PAUSE_S)


def where(volume: Volume, *paths: str | None) -> str:
    """Under which of these names a volume is; the last one that may be, where none can be seen."""
    names = [path for path in (volume.path, *paths) if path is not None]
    return next((name for name in names if volume.is_at(name)), names[-1])


def _problem(context: ActionContext, ve_id: str) -> str | None:
    """Why its platform cannot say whether it is there; a VE can be declared for any platform."""
    problems = context.inventory.problems
    return problems.get(ve_id.partition(":")[0]) or problems.get(_DECLARED)


def _missing(ve_id: str, problem: str | None, *, half_way: bool, left: str) -> StepEnded:
    text = f"{ve_id} is gone"
    if problem is not None:
        text = f"nobody can say whether {ve_id} is there: {problem}"
    if not half_way:
        return refuse("cancelled", text, Next.CANCELLED)
    return refuse("stopped half-way", f"{text}; {left}", Next.OPERATOR)
