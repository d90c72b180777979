"""What a step does by itself, and what it asks somebody about first.

An approval is for what was shown: a repair that turns out to lose more is asked about again.
"""

from __future__ import annotations

from fswatchd.repair.cure import Cure, beyond
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.scope import Target
from fswatchd.rules.model import FsckStep
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult
from fswatchd.units import show_duration

_BY_REQUEST_S = 600.0


def approved(context: ActionContext) -> bool:
    """Whether this step has asked, and somebody has said yes."""
    journal = RepairJournal.read(context.record.journal)
    return journal.asked and context.incident.approved_by is not None


def may_hold_writers(context: ActionContext, pause_s: float) -> bool:
    """Whether writers may wait longer than the rule lets them: somebody said so to the question, or
    root has asked for the repair itself. Of an outage of many minutes nobody thinks then."""
    asked_for = context.incident.requested_by is not None and pause_s <= _BY_REQUEST_S
    return approved(context) or asked_for


def long_pause(step: FsckStep, target: Target, pause_s: float) -> StepEnded:
    """The question whether writers may wait so long."""
    text = (
        f"{target.ve.ve_id} could not write for about {show_duration(pause_s)}, more than "
        "max_write_pause "
        f"({show_duration(step.max_write_pause)}) allows"
    )
    return StepEnded(StepResult(next=Next.ASK, result="long pause", detail=text))


async def within_bounds(context: ActionContext, step: FsckStep, done: Cure, took_s: float) -> None:
    """Keep the preview with the step. Raises StepEnded with the question where it is too much.

    The last resort is always too much: nothing permits it but the answer to that very question.
    """
    await context.journal(preview={**done.document(), "seconds": round(took_s, 3)})
    seen = context.record.journal.get("asked_about")
    known = seen if approved(context) and isinstance(seen, dict) else None
    over = beyond(step, done, known)
    if done.by is not None and (known is None or known.get("last_resort") != done.by.command):
        over = f"nothing but {done.by.command} would repair it: {done.by.price}"
    if over is not None:
        await context.journal(asked_about=done.document())
        text = f"{over}. A repair would do: {done.summary()}"
        raise StepEnded(StepResult(next=Next.ASK, result="beyond bounds", detail=text))
