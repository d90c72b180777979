"""The way back: put the volume as it was before a repair in place again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fswatchd.errors import RefusedError
from fswatchd.incidents import Incident
from fswatchd.inventory.model import Ve
from fswatchd.repair import scope, swap, ve_control
from fswatchd.repair.journal import describe_file, read_file
from fswatchd.repair.outage import RELEASE_TIMEOUT_S, Outage
from fswatchd.repair.scope import ImageFile
from fswatchd.steps import ActionContext, Next, StepResult, refuse


def check(incident: Incident, *, discard_newer: bool) -> None:
    """Raise RefusedError where a rollback cannot or should not be done."""
    undo = incident.undo
    if undo is None:
        raise RefusedError(
            f"{incident.incident_id} changed nothing that could be rolled back",
            code="FSW-REFUSED-NO-ROLLBACK",
        )
    if "original" not in undo:
        raise _no_way_back(incident.incident_id, undo)
    if not os.path.exists(str(undo["original"])):
        raise RefusedError(
            f"the volume from before the repair is no longer at {undo['original']}",
            hint="it was rolled back already, or its time was over (keep_original)",
            code="FSW-REFUSED-NO-ROLLBACK",
        )
    if not discard_newer:
        raise RefusedError(
            f"{undo['ve']} has run on the repaired volume: what it wrote since would be lost",
            hint="to go back all the same: --discard-newer (the repaired volume is kept beside it)",
            code="FSW-REFUSED-NEWER-DATA",
        )


def _no_way_back(incident_id: str, undo: Mapping[str, Any]) -> RefusedError:
    """Why there is no volume from before the repair: never kept, kept no longer, or no repair."""
    hint = ""
    if "undo_file" in undo:
        text = f"{incident_id} was repaired in place and the VE has run since then"
        hint = "nothing can undo that; restore what is missing from a backup"
        if undo["undo_file"]:
            hint = f"what e2fsck changed is in {undo['undo_file']}, see e2undo(8)"
    elif "image" in undo:
        text = f"the volume from before the repair of {incident_id} is not kept any more"
        hint = "its time (keep_original) was over, or the room was needed: fswatch why says which"
    else:
        text = f"{incident_id} changed nothing that could be rolled back"
    if "snapshot" in undo:
        hint = f"{hint}; " if hint else ""
        hint += f"a snapshot from then is {undo['snapshot']}"
    return RefusedError(text, hint=hint, code="FSW-REFUSED-NO-ROLLBACK")


async def run(context: ActionContext) -> StepResult:
    """Stop the VE, exchange the images again, start it. Raises StepEnded."""
    incident = context.incident
    undo = incident.undo or {}
    await context.inventory.refresh()
    ves = {str(ve_id): ve for ve_id, ve in context.inventory.view.ves.items()}
    ve = ves.get(str(undo.get("ve")))
    if ve is None:
        raise refuse("cancelled", f"{undo.get('ve')} is gone", Next.CANCELLED)
    ve = await context.lock_ve(ve)
    way = await _Way.prepare(context, undo)
    async with Outage(context) as outage:
        if not way.is_exchanged:
            await _stop(context, ve, way, outage)
            await asyncio.to_thread(way.exchange)
        outage.begin(ve, None, way.original)
        kept = await asyncio.to_thread(way.keep)
        return await _start(context, ve, way.original, kept)


async def _stop(context: ActionContext, ve: Ve, way: _Way, outage: Outage) -> None:
    if ve_control.is_running(ve):
        context.progress(None, f"stopping {ve.ve_id}")
        await context.about_to_stop(ve.ve_id)
        outage.begin(ve, None, way.repaired)
        context.note(f"{ve.ve_id}: {await ve_control.stop(ve, context.settings)}")
    elif context.record.journal.get("stopping"):
        outage.begin(ve, None, way.repaired)
    holder = await ve_control.wait_released(None, way.repaired, RELEASE_TIMEOUT_S)
    if holder is not None:
        text = f"after the stop, {holder}; nothing was changed"
        raise refuse("still in use", text, Next.OPERATOR)


@dataclass(frozen=True, slots=True)
class _Way:
    """Which file is which, written down before anything is done.

    How far an earlier run got is told by inode, so that nothing is exchanged back and forth.
    """

    repaired: ImageFile
    original: ImageFile
    beside: str
    kept: str

    @classmethod
    async def prepare(cls, context: ActionContext, undo: Mapping[str, Any]) -> _Way:
        """From the journal of an earlier run, else from the files as they are. Raises StepEnded."""
        image, beside = str(undo["image"]), str(undo["original"])
        journal = context.record.journal
        repaired, original = read_file(journal.get("repaired")), read_file(journal.get("original"))
        kept = str(journal.get("kept") or "")
        if repaired is None or original is None or not kept:
            repaired, original = scope.image_file(image), scope.image_file(beside)
            known = read_file(undo.get("original_file"))
            if known is not None and not known.is_at(beside):
                raise refuse(
                    "refused", f"{beside} is not the original that was kept", Next.OPERATOR
                )
            kept = swap.free_name(f"{image}.repaired-{context.incident.incident_id}")
            await context.journal(
                repaired=describe_file(repaired), original=describe_file(original), kept=kept
            )
        repaired = replace(repaired, path=image).today(image, beside, kept)
        original = replace(original, path=image).today(image, beside)
        return cls(repaired, original, beside, kept)

    @property
    def is_exchanged(self) -> bool:
        """Whether the image's name leads to the original already."""
        return swap.is_exchanged(self.repaired, self.original)

    def exchange(self) -> None:
        """Put the original in place. Raises StepEnded."""
        try:
            swap.exchange(self.repaired, replace(self.original, path=self.beside))
        except swap.SwapError as error:
            raise refuse("not exchanged", str(error), Next.OPERATOR) from None

    def keep(self) -> str:
        """Give the repaired image the name under which it is kept; returns the one it has."""
        if self.repaired.is_at(self.kept):
            return self.kept
        if not self.repaired.is_at(self.beside):
            return "gone"
        try:
            swap.rename(self.beside, self.kept)
        except swap.SwapError:
            return self.beside
        return self.kept


async def _start(context: ActionContext, ve: Ve, original: ImageFile, kept: str) -> StepResult:
    story = ""
    if not ve_control.is_running(ve):
        await context.about_to_start(ve)
        story = await ve_control.start(ve, context.settings, original)
    running = await ve_control.wait_running(context, ve, context.settings.start_timeout_s)
    state = "runs again" if running else f"does not run ({story})"
    text = (
        f"the volume from before the repair is in place, {ve.ve_id} {state}; "
        f"the repaired one is {kept}"
    )
    return StepResult(
        next=Next.CONTINUE if running else Next.OPERATOR,
        result="rolled back",
        detail=text,
        changed=True,
    )
