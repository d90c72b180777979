"""What a step does by itself, and what it asks somebody about first.

An approval is for what was shown: a yes to one question is none to another, nor to a longer pause,
and a repair that turns out to lose more is asked about again.
"""

from __future__ import annotations

import re
from contextlib import suppress

from fswatchd.repair.cure import Cure, beyond
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.scope import Target
from fswatchd.rules.model import FsckStep
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult
from fswatchd.units import parse_duration, show_duration

_BY_REQUEST_S = 600.0
_PAUSE = "pause"
_BOUNDS = "bounds"
# What was shown is "about" so long: an estimate from one look, and the next one is never the same.
_LONGER = 1.5
_LONGER_S = 30.0
_OLD_PAUSE = re.compile(r"could not write for about (.+), more than max_write_pause")
_OLD_BOUNDS = ". A repair would do: "


def _answered(context: ActionContext) -> frozenset[str]:
    """The questions of this step that somebody has said yes to."""
    journal = RepairJournal.read(context.record.journal)
    if not journal.asked or context.incident.approved_by is None:
        return journal.granted
    question = journal.question or _asked_by_earlier_version(context)
    return journal.granted | ({question} if question else set())


def _asked_by_earlier_version(context: ActionContext) -> str | None:
    """It wrote down that it had asked, not what: only the text tells."""
    if _OLD_PAUSE.search(context.incident.asks):
        return _PAUSE
    return _BOUNDS if _OLD_BOUNDS in context.incident.asks else None


async def _ask(context: ActionContext, question: str, **shown: object) -> None:
    """Write down what is asked, and what was answered before: that yes is taken back with this.

    `asked` is false until it really was: a daemon that is killed in between asks again.
    """
    granted = sorted(_answered(context) - {question})
    await context.journal(asked=False, question=question, granted=granted, **shown)


def may_hold_writers(context: ActionContext, pause_s: float) -> bool:
    """Whether writers may wait longer than the rule lets them: somebody said so to the question, or
    root has asked for the repair itself. Of an outage of many minutes nobody thinks then."""
    asked_for = context.incident.requested_by is not None and pause_s <= _BY_REQUEST_S
    return asked_for or pause_s <= _approved_pause_s(context)


def _approved_pause_s(context: ActionContext) -> float:
    """How long a pause may be for the yes to the one that was shown, 0 without a yes."""
    if _PAUSE not in _answered(context):
        return 0.0
    shown_s = RepairJournal.read(context.record.journal).asked_pause_s
    if shown_s is None and (old := _OLD_PAUSE.search(context.incident.asks)):
        with suppress(ValueError):
            shown_s = parse_duration(old[1].replace("min", "m"))
    return max(shown_s * _LONGER, shown_s + _LONGER_S) if shown_s is not None else 0.0


async def long_pause(
    context: ActionContext, step: FsckStep, target: Target, pause_s: float
) -> StepEnded:
    """The question whether writers may wait so long."""
    await _ask(context, _PAUSE, asked_pause_s=pause_s)
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
    known = seen if _BOUNDS in _answered(context) and isinstance(seen, dict) else None
    over = beyond(step, done, known)
    if done.by is not None and (known is None or known.get("last_resort") != done.by.command):
        over = f"nothing but {done.by.command} would repair it: {done.by.price}"
    if over is not None:
        await _ask(context, _BOUNDS, asked_about=done.document())
        text = f"{over}. A repair would do: {done.summary()}"
        raise StepEnded(StepResult(next=Next.ASK, result="beyond bounds", detail=text))
