"""The look before a repair by clone touches anything.

Is there something to repair, does it come out clean, and does somebody have to be asked?
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from fswatchd import views
from fswatchd.events import DEVICE_CLASSES
from fswatchd.inventory.model import Superblock
from fswatchd.repair import clone, consent, healer, preview, restore, storage, verify
from fswatchd.repair.cure import Cure
from fswatchd.repair.preview import Preview
from fswatchd.repair.scope import Target, tools_for
from fswatchd.repair.tools import Tools
from fswatchd.repair.volume import Volume
from fswatchd.rules.model import FsckStep
from fswatchd.steps import DAMAGED, RECOVERED, ActionContext, Next, StepEnded, StepResult, refuse
from fswatchd.units import show_duration, show_size

_COPY_BYTES_PER_S = 100e6  # a careful guess for a copy that nobody has measured yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`pause_s` is about how long writers would wait; `cure` what a repair would do, if it is seen.

    `clone` is what that was seen on, for the caller to use or delete.
    """

    pause_s: float
    cure: Cure | None = None
    clone: Volume | None = None


async def running(context: ActionContext, step: FsckStep, target: Target, image: Volume) -> Outlook:
    """What a repair of a filesystem that is written to would mean.

    Raises StepEnded where there is nothing to repair, nothing that a repair would cure, or more to
    change than the step permits.
    """
    lies_in, incident = storage.of(image, context.settings), context.incident
    # What a sick device has misread once would be seen again by the repair, and by its proof.
    sick = incident.device_errors > 0 or not incident.classes.isdisjoint(DEVICE_CLASSES)
    try:
        seen = await preview.look(context, target, image, keep=lies_in.renews and not sick)
    except clone.NotShareableError as error:
        await lies_in.check_room(shared=False)
        if (left_to_it := healer.stand_back(context, target.superblock)) is not None:
            raise left_to_it from None
        size = lies_in.bytes_to_copy()
        text = f"{lies_in.place} cannot share blocks: {show_size(size)} to copy"
        context.note(f"no preview, {text}" if size else f"no preview: {error}")
        return Outlook(pause_s=size / _COPY_BYTES_PER_S)
    except OSError as error:
        raise refuse("cannot clone", f"no clone can be made: {error}") from None
    try:
        cure = await _worth_it(context, step, target, seen)
    except BaseException:
        if seen.clone is not None:
            with suppress(OSError):  # why it ends is of more interest; its name says what it is
                await lies_in.discard(seen.clone)
        raise
    return Outlook(pause_s=seen.seconds * 1.3 + 0.2, cure=cure, clone=seen.clone)


async def _worth_it(context: ActionContext, step: FsckStep, target: Target, seen: Preview) -> Cure:
    """What a repair would do, as the preview has shown. Raises StepEnded, see `running`."""
    lost = context.incident.lost and _left_by_scrub(context) is None
    if seen.clean and lost and target.superblock is not None:
        raise await _only_data_lost(context, target.superblock)
    if seen.clean:
        raise _whole(context, "a clone of the running filesystem is clean")
    if (left_to_it := healer.stand_back(context, target.superblock)) is not None:
        raise left_to_it
    if not seen.check.usable:
        # What is still written to has a log that is only half on the disk: try again.
        raise refuse("cannot check", f"no verdict: {seen.check.what}")
    if not seen.curable or seen.cure is None:
        left = seen.cure.proof.summary() if seen.cure else seen.check.summary()
        raise await not_curable(context, tools_for(target.filesystem), left)
    context.note(f"preview: {seen.would_do}; it took {show_duration(seen.seconds)}")
    await consent.within_bounds(context, step, seen.cure, seen.seconds)
    return seen.cure


async def standing(context: ActionContext, step: FsckStep, target: Target, image: Volume) -> None:
    """The same for an image that nobody writes to, for a step that asks only.

    Its clone is made once the VE is down: what is asked is asked before that.
    """
    try:
        seen = await preview.look(context, target, image)
    except clone.NotShareableError:
        return
    except OSError as error:
        raise refuse("cannot clone", f"no clone can be made: {error}") from None
    if seen.cure is not None:
        await consent.within_bounds(context, step, seen.cure, seen.seconds)


def whole_as_it_stands(context: ActionContext) -> StepEnded:
    """The ending where a VE that somebody else has stopped has nothing to be repaired."""
    return _whole(context, "its VE is stopped, and a clone of the volume is clean")


def whole_again(context: ActionContext, seen: Cure | None) -> StepEnded:
    """The ending where nothing is left for which the VE would have to be stopped.

    What a preview has `seen` damaged on the disk may be whole in the kernel's memory, and a freeze
    writes that down.
    """
    anew = "what was damaged on the disk was written anew: " if seen is not None else ""
    return _whole(context, f"{anew}once the filesystem stood still a clone of it is clean")


def _whole(context: ActionContext, text: str) -> StepEnded:
    """The ending where nothing is damaged on the disk, as `text` says."""
    if left := _left_by_scrub(context):
        text = f"its metadata is whole, but a scrub has found damage that nothing mends: {left}"
        return refuse("data lost", text, Next.OPERATOR)
    text += " after its journal was replayed"
    if healer.has_healed(context):
        text = f"{healer.NAME} has repaired it: {text}"
        return StepEnded(StepResult(next=Next.FINISHED, result=RECOVERED, detail=text))
    text += ": nothing on the disk is damaged; its own error record stays until the next fsck"
    return StepEnded(StepResult(next=Next.FINISHED, result="false-alarm", detail=text))


async def not_curable(context: ActionContext, tools: Tools, left: str) -> StepEnded:
    """The ending where a repair does not come out clean."""
    text = f"the repaired clone does not come out clean ({left}); the original stays in place"
    if tools.no_cure:
        text = f"the filesystem is damaged ({left}), nothing was changed; {tools.no_cure}"
    snapshot = await asyncio.to_thread(restore.offer, context.incident)
    return refuse("not curable", f"{text}{snapshot}", Next.OPERATOR)


def _left_by_scrub(context: ActionContext) -> str | None:
    """What an earlier step of this plan could not mend: data, where the metadata is clean."""
    for record in context.incident.steps:
        if record.result == DAMAGED:
            return record.detail
    return None


async def _only_data_lost(context: ActionContext, superblock: Superblock) -> StepEnded:
    """What a device or a checksum has taken from files no repair of the filesystem brings back.

    So nothing is stopped for it: the rest is proven whole, and takes writes.
    """
    context.reached("contained")
    lost = views.lost(context.incident.lost)
    unwell = await verify.writable(context.inventory, superblock)
    state = f"but {unwell}" if unwell else "and takes writes"
    if unwell is None:
        context.reached("verified")
    text = (
        f"{superblock.device} is whole {state}; the data of these files are lost, and no "
        f"repair brings them back: {lost}; restore them from a backup"
    )
    return refuse("data lost", text, Next.OPERATOR)
