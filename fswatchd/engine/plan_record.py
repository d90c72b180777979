"""What the records of a plan's steps say of it, and how they are written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fswatchd.incidents import Incident, StepRecord, StepState
from fswatchd.steps import Next, StepResult

OVER = {StepState.DONE, StepState.FAILED, StepState.SKIPPED}


def goes_on(known: tuple[StepRecord, ...], wanted: tuple[StepRecord, ...]) -> bool:
    """Whether the plan goes on where it has asked, or had to wait: what is done is not repeated."""
    pending = [one.journal for one in known if one.state is StepState.PENDING]
    marks = {mark for journal in pending for mark in ("asked", "waited") if journal.get(mark)}
    if "asked" in marks:
        # What was answered is a question of these steps, as they were then.
        return len(known) == len(wanted) and all(map(_is_still, known, wanted))
    if "waited" in marks:
        plans = [[(one.do, one.options) for one in steps] for steps in (known, wanted)]
        return plans[0] == plans[1]
    return False


def _is_still(known: StepRecord, wanted: StepRecord) -> bool:
    """Whether the rule wants the step as it was recorded; an earlier version knew fewer options,
    and whom it tells is nothing that it does."""
    same = known.do == "notify" or known.options.items() <= wanted.options.items()
    return known.do == wanted.do and same


def asked_again(incident: Incident, index: int) -> Incident:
    """The step has done nothing, and is done later."""
    record = incident.steps[index]
    journal = {**record.journal, "waited": True}
    again = replace(record, state=StepState.PENDING, ended_ns=None, progress=None, journal=journal)
    return replace(incident.with_step(index, again), asks="")


def ending(record: StepRecord) -> StepResult | None:
    """How a step has ended whose plan ends with it, and an earlier run of the daemon ended before
    that; None for all others."""
    following = Next(str(record.journal.get("next", Next.CONTINUE)))
    if record.state not in OVER or following is Next.CONTINUE:
        return None
    changed = bool(record.journal.get("changed"))
    return StepResult(next=following, result=record.result, detail=record.detail, changed=changed)


def settled(incident: Incident, index: int) -> Incident:
    """What follows from the step's end is done, or done with."""
    return incident.with_step(index, unsaid(incident.steps[index]))


def unsaid(record: StepRecord) -> StepRecord:
    """The record without what followed from the step's last end."""
    journal = {key: value for key, value in record.journal.items() if key != "next"}
    return replace(record, journal=journal)


def has_begun(incident: Incident) -> bool:
    """Whether a step of the plan has begun to do what cannot just be left as it is."""
    return any(touches_the_ve(one) or one.journal.get("changed") for one in incident.steps)


def touches_the_ve(record: StepRecord) -> bool:
    """Whether the step has begun to stop the VE, or to write to its volume."""
    return any(record.journal.get(mark) for mark in ("stopping", "swapping", "writing"))


def skip_rest(incident: Incident, index: int) -> Incident:
    """Nothing after this step is done any more."""
    for later in range(index + 1, len(incident.steps)):
        record = incident.steps[later]
        if record.state is StepState.PENDING:
            incident = incident.with_step(later, replace(record, state=StepState.SKIPPED))
    return incident


def may_begin_anew(incident: Incident, index: int) -> bool:
    """Whether a step that was cut off has done nothing but make a clone: that can be left.

    A check in place takes the volume away from its name before it says so.
    """
    record = incident.steps[index]
    by_clone = record.do == "fsck" and record.options.get("strategy", "clone") == "clone"
    return by_clone and not has_begun(incident)


def over(steps: Sequence[StepRecord]) -> tuple[StepRecord, ...]:
    """The steps of a plan that something else takes the place of: none of them is done any more."""
    ended = []
    for record in steps:
        state = record.state if record.state in OVER else StepState.SKIPPED
        ended.append(replace(unsaid(record), state=state))
    return tuple(ended)
