"""Go on with a repair by clone that was cut off, from the facts in its journal.

What was only prepared is thrown away and begun anew. A VE that we stopped is not left behind: its
repair goes on from the image that stands still, or from a clone that is proven once more. What is
half-way is told by inode: the image's name leads either to the original or to the clone.
"""

from __future__ import annotations

from fswatchd.incidents import StepRecord
from fswatchd.repair import clone, swap, ve_control
from fswatchd.repair.clone import Clone
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.outage import RELEASE_TIMEOUT_S
from fswatchd.repair.scope import Target
from fswatchd.steps import ActionContext, Next, StepResult, refuse


async def resume(repair: CloneRepair, context: ActionContext) -> StepResult:
    """The rest of the repair. Raises StepEnded."""
    journal = RepairJournal.read(context.record.journal)
    if journal.image is None or journal.ve is None:
        return await repair.run()
    await context.inventory.refresh()
    ves = {str(ve_id): ve for ve_id, ve in context.inventory.view.ves.items()}
    ve = ves.get(journal.ve)
    if ve is None:
        raise refuse("cancelled", f"{journal.ve} is gone", Next.CANCELLED)
    if journal.stopping:
        ve = await context.lock_ve(ve)
    image, made = journal.image, journal.clone
    image = image.today(image.path, made.path if made else None, journal.keeping, journal.kept)
    target = Target(filesystem=context.incident.filesystem, ve=ve, superblock=None, image=image)
    if journal.kept is not None:
        return await repair.start(target)
    if journal.swapping and made and swap.is_exchanged(image, made):
        await repair.keep_original(target)
        return await repair.start(target)
    if not journal.stopping or ve_control.is_running(ve):
        # It was not stopped by us, or it runs again: what was prepared is worth nothing.
        discard_copy(journal)
        await context.journal(stopping=False)
        return await repair.run()
    repair.resume_outage(target)
    # What the earlier run had killed may still be on its way out.
    holder = await ve_control.wait_released(None, image, RELEASE_TIMEOUT_S)
    if holder is not None:
        discard_copy(journal)
        raise refuse("still in use", holder, Next.OPERATOR)
    # It may have been started, and stopped, while we were gone: then the clone lacks that.
    fresh = journal.fresh and image.is_unchanged(journal.stamp)
    if fresh and made and made.is_at(made.path):
        await repair.adopt(Clone(file=made.today(made.path), shared=False))
        return await repair.finish(target, fresh=True)
    discard_copy(journal)
    return await repair.finish(target, fresh=False)


def discard_copy(journal: RepairJournal) -> None:
    """Delete a clone; its name alone is believed only while no exchange can have been made."""
    if journal.clone is not None:
        clone.discard(journal.clone)
    elif journal.cloning is not None:
        clone.discard_unfinished(journal.cloning)


def discard_copies(incident_id: str, record: StepRecord) -> None:
    """Delete the copies that a step which was cut off has made, and that nobody uses."""
    journal = RepairJournal.read(record.journal)
    if journal.image is not None:
        clone.discard_unfinished(clone.clone_path(journal.image, incident_id, "preview"))
    discard_copy(journal)
    snapshot = record.journal.get("snapshot")
    if isinstance(snapshot, str):
        clone.discard_unfinished(snapshot)
