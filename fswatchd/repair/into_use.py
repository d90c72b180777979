"""After the exchange: give the VE its volume, prove it healthy, and keep what leads back.

Whatever comes now, the VE runs on what it has got.
"""

from __future__ import annotations

from dataclasses import replace

from fswatchd.repair import hot_volume, owner, scope, ve_control, verify
from fswatchd.repair.hot_volume import Attached
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.outage import Outage
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, Next, StepResult, refuse


def exchanged(
    context: ActionContext, outage: Outage, target: Target
) -> tuple[RepairJournal, Volume]:
    """The facts after the exchange, and the repaired volume. Raises StepEnded."""
    image = scope.require_volume(target)
    journal = RepairJournal.read(context.record.journal)
    if journal.clone is None:
        raise refuse("internal", "the journal does not say what was exchanged", Next.OPERATOR)
    repaired = replace(journal.clone, path=image.path).today(image.path)
    outage.begin_again(target.ve, repaired, journal)
    return journal, repaired


async def start(
    context: ActionContext, outage: Outage, target: Target, *, keep_s: float, done: str
) -> StepResult:
    """Start the VE on the repaired volume, or put that back into it, and prove it healthy.

    `done` says for people what the repair did; `keep_s` is how long the original is kept. Raises
    StepEnded.
    """
    ve, image, view = target.ve, scope.require_volume(target), context.inventory.view
    journal, repaired = exchanged(context, outage, target)
    if journal.kept is None:
        raise refuse("internal", "the journal does not say where the original is", Next.OPERATOR)
    undo: dict[str, object] = {
        "image": image.path,
        "original": journal.kept,
        "original_file": image.describe(),
        "repaired_file": repaired.describe(),
        "ve": ve.ve_id,
        # Whose it is later tells what the VE declares, if it declares it: see `rollback`.
        "ve_volumes": None if owner.declares(view, ve, image, repaired) else owner.declared(ve),
        "keep_s": keep_s,
    }
    kept = f"the damaged original is {journal.kept}"
    if journal.detached and not journal.ve_down and not ve_control.is_running(ve):
        text = (
            f"{ve.ve_id} does not run, which no command of this repair has done (a boot may have): "
            f"it is not started. The repaired volume {journal.detached} is in place; {kept}"
        )
        return _failed("does not start", text, undo, Next.OPERATOR)
    given = await _given(context, target, journal, repaired)
    found = await verify.find_mounted(context, ve, repaired, context.settings.start_timeout_s)
    context.reached("repaired")
    if isinstance(found, str):
        then = Next.FAILED if given.succeeded else Next.OPERATOR
        return _failed("does not start", f"{found} ({given.story}); {kept}", undo, then)
    _, superblock = found
    context.filesystem_is_now(superblock)
    unwell = await verify.healthy(context.inventory, context.state, superblock, may_be_full=True)
    if unwell is not None:
        text = f"{ve.ve_id} runs on the repaired image, but {unwell}; {kept}"
        return _failed("not healthy", text, undo)
    context.reached("verified")
    if not given.succeeded:
        text = f"{image.path} is mounted, but what uses it may not run: {given.story}; {kept}"
        return _failed("not healthy", text, undo, Next.OPERATOR)
    text = f"{done}; {ve.ve_id} runs on the repaired image; {kept}"
    return StepResult(next=Next.CONTINUE, result="repaired", detail=text, changed=True, undo=undo)


async def _given(
    context: ActionContext, target: Target, journal: RepairJournal, repaired: Volume
) -> Attached:
    """Start the VE where it does not run, or put back a volume that was taken out of it."""
    ve, settings = target.ve, context.settings
    if not ve_control.is_running(ve):
        context.progress(None, f"starting {ve.ve_id}")
        await context.about_to_start(ve)
        return Attached(await ve_control.start(ve, settings, repaired), succeeded=True)
    if journal.detached is None or journal.ve_down:
        return Attached("", succeeded=True)
    if journal.init != (ve.init_pid, ve.init_started):
        return Attached(f"{ve.ve_id} was started anew meanwhile", succeeded=True)
    hot = hot_volume.named(ve, journal.detached)
    if hot is None:
        text = f"nothing in ve.d says any more how {journal.detached} is put back"
        return Attached(text, succeeded=False)
    if journal.attaching:
        # It may be at it still, and nobody knows how far it came: nothing is mounted twice.
        text = f"{hot.mountpoint} was being put back when the daemon ended"
        return Attached(text, succeeded=False)
    context.progress(None, f"putting {hot.mountpoint} back into {ve.ve_id}")
    await context.about_to_start(ve)
    await context.journal(attaching=True)
    return await hot_volume.attach(hot, repaired, settings)


def _failed(
    result: str, text: str, undo: dict[str, object], then: Next = Next.FAILED
) -> StepResult:
    return StepResult(next=then, result=result, detail=text, changed=True, undo=undo)
