"""Go on with a repair by clone that was cut off, from the facts in its journal.

What was only prepared is thrown away and begun anew. A VE that we stopped is not left behind: its
repair goes on from the volume that stands still, or from a clone that is proven once more. What is
half-way is told by what the names lead to: the volume's to the original or to the clone, or
nowhere, between the two renames of a logical volume; then the original gets its name back first.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from fswatchd.incidents import StepRecord
from fswatchd.inventory.model import Ve
from fswatchd.repair import clone, hot_volume, owner, storage, ve_control
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.outage import RELEASE_TIMEOUT_S
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, ActionSettings, Next, StepEnded, StepResult, refuse

_DETACHING_S = 2.0  # a command that was running when the daemon ended may do its work yet


async def resume(repair: CloneRepair, context: ActionContext) -> StepResult:
    """The rest of the repair. Raises StepEnded."""
    journal = RepairJournal.read(context.record.journal)
    if journal.image is None or journal.ve is None:
        return await repair.run()
    image, made = journal.image, journal.clone
    await discard_preview(context.incident.incident_id, context.record, context.settings)
    names = (made.path if made else None, journal.keeping, journal.kept)
    half_way = journal.stopping or journal.swapping
    left = f"the volume from before the repair is {owner.where(image, *names)}"
    ve = await owner.find(context, journal.ve, half_way=half_way, left=left)
    if half_way:
        await owner.wait_seen(context, image, *names)
    if journal.stopping:
        ve = await context.lock_ve(ve)
    lies_in = storage.of(image, context.settings)
    await lies_in.wake(*names)
    if journal.swapping:
        await lies_in.mend(journal.keeping)
    image = image.today(image.path, *names)
    target = Target.stopped(context.incident.filesystem, ve, image)
    if journal.kept is not None:
        return await repair.start(target)
    if journal.swapping and made and made.is_at(image.path):
        await repair.keep_original(target)
        return await repair.start(target)
    if journal.stopping:
        # What we have killed does not run any more, although it may not be gone yet.
        await ve_control.dead_are_gone(ve, RELEASE_TIMEOUT_S)
    out = await _is_taken_out(ve, image, journal)
    if not out and (not journal.stopping or ve_control.is_running(ve)):
        # It was not stopped by us, or it runs again: what was prepared is worth nothing.
        await discard_copy(journal, context.settings)
        await context.journal(stopping=False, stop_asked=journal.stopping)
        try:
            return await repair.run()
        except StepEnded as ended:
            if journal.detached and context.record.journal.get("stopping"):
                raise  # it has come to the stop itself, and gives back what it took
            gone = ended.result.next is Next.CANCELLED and not ve_control.is_running(ve)
            out = await _is_taken_out(ve, image, journal)
            if not journal.stopping or not (gone or out):
                raise _with_volume(ended, journal) from ended
            # The stop that we had asked for has come to its end only now.
            await context.journal(stopping=True, clone=None)
            journal = replace(journal, fresh=False, clone=None, cloning=None)
    repair.resume_outage(target, journal)
    # What the earlier run had killed may still be on its way out.
    holder = await ve_control.wait_released(None, image, RELEASE_TIMEOUT_S)
    if holder is not None:
        await discard_copy(journal, context.settings)
        raise refuse("still in use", holder, Next.OPERATOR)
    # It may have been started, and stopped, while we were gone: then the clone lacks that.
    fresh = journal.fresh and image.is_unchanged(journal.stamp)
    if fresh and made and made.is_at(made.path):
        await repair.adopt(made.today(made.path))
        return await repair.finish(target, fresh=True)
    await discard_copy(journal, context.settings)
    return await repair.finish(target, fresh=False)


def _with_volume(ended: StepEnded, journal: RepairJournal) -> StepEnded:
    """What was begun with a volume of a VE that runs is not forgotten with the repair."""
    if journal.detached is None or ended.result.next is Next.OPERATOR:
        return ended
    text = (
        f"{ended}; {journal.detached} was being taken out of {journal.ve} before: see whether it "
        "can be read and written there, and what uses it runs"
    )
    return refuse(ended.result.result, text, Next.OPERATOR)


async def _is_taken_out(ve: Ve, image: Volume, journal: RepairJournal) -> bool:
    """Whether an earlier run has taken the volume out of the VE, which runs.

    Raises StepEnded where nobody can put it back.
    """
    if journal.detached is None or not ve_control.is_running(ve):
        return False
    if await ve_control.wait_released(None, image, _DETACHING_S) is not None:
        return False  # it had not come to that, or it is back
    if hot_volume.named(ve, journal.detached) is None:
        text = f"{journal.detached} was taken out of {ve.ve_id}, and nothing in ve.d puts it back"
        raise refuse("stopped half-way", text, Next.OPERATOR)
    return True


async def discard_preview(incident_id: str, record: StepRecord, settings: ActionSettings) -> None:
    """Delete the clone of a step's preview, which is there until the other one is made of it."""
    image = RepairJournal.read(record.journal).image
    with suppress(OSError):  # what cannot be deleted now stays, under a name that says what it is
        if image is not None:
            path = clone.clone_path(image, incident_id, "preview")
            await storage.of(image, settings).discard_unfinished(path)


async def discard_copy(journal: RepairJournal, settings: ActionSettings) -> None:
    """Delete a clone; its name alone is believed only while no exchange can have been made."""
    if journal.image is None:
        return
    lies_in = storage.of(journal.image, settings)
    if journal.clone is not None:
        await lies_in.discard(journal.clone)
    elif journal.cloning is not None:
        await lies_in.discard_unfinished(journal.cloning)


async def discard_copies(incident_id: str, record: StepRecord, settings: ActionSettings) -> None:
    """Delete the copies that a step which was cut off has made, and that nobody uses."""
    await discard_preview(incident_id, record, settings)
    with suppress(OSError):
        await discard_copy(RepairJournal.read(record.journal), settings)
    snapshot = record.journal.get("snapshot")
    if isinstance(snapshot, str):
        clone.discard_unfinished(snapshot)
