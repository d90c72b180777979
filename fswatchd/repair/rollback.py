"""The way back: put the volume as it was before a repair in place again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fswatchd.errors import RefusedError
from fswatchd.incidents import Incident, StepRecord, StepState
from fswatchd.inventory.model import Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.repair import outsiders, owner, scope, storage, ve_control, verify
from fswatchd.repair.journal import read_volume
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.outage import RELEASE_TIMEOUT_S, Outage
from fswatchd.repair.swap import HalfSwappedError, SwapError
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.steps import ActionContext, ActionSettings, Next, StepResult, refuse


def check(incident: Incident, view: NodeView, *, discard_newer: bool) -> None:
    """Raise RefusedError where a rollback cannot or should not be done."""
    undo = incident.undo
    if undo is None:
        raise RefusedError(
            f"{incident.incident_id} changed nothing that could be rolled back",
            code="FSW-REFUSED-NO-ROLLBACK",
        )
    if "original" not in undo:
        raise _no_way_back(incident.incident_id, undo)
    # A logical volume is nowhere to be seen while it is not active: `prepare` looks for that.
    known = read_volume(undo.get("original_file"))
    if not isinstance(known, LogicalVolume) and not os.path.exists(str(undo["original"])):
        raise RefusedError(
            f"the volume from before the repair is no longer at {undo['original']}",
            hint="it was rolled back already, or its time was over (keep_original)",
            code="FSW-REFUSED-NO-ROLLBACK",
        )
    put = read_volume(undo.get("repaired_file"))
    if put is not None and put.is_displaced:
        text, hint = _replaced(undo, put)
        raise RefusedError(text, hint=hint, code="FSW-REFUSED-REPLACED")
    there = put.today(put.path) if put is not None else _at(str(undo["image"]), known)
    ve = view.ves.get(VeId(str(undo.get("ve"))))
    # About what is not to be seen now `run` asks, which waits for it.
    if ve is not None and there is not None and not _is_inactive(there):
        another = _another_ves(incident, view, ve, there)
        if another is not None:
            text, hint = another
            raise RefusedError(text, hint=hint, code="FSW-REFUSED-NOT-ITS-VOLUME")
    if not discard_newer:
        raise RefusedError(
            f"{undo['ve']} has run on the repaired volume: what it wrote since would be lost",
            hint="to go back all the same: --discard-newer (the repaired volume is kept beside it)",
            code="FSW-REFUSED-NEWER-DATA",
        )


def _replaced(undo: Mapping[str, Any], put: Volume) -> tuple[str, str]:
    """What stands where the repair has put a volume of its own, and what can be done."""
    there = _found(put)
    text = (
        f"{put.path} is not the volume that the repair has put there ({put.identity}), but "
        f"{there.identity if there else 'nothing'}"
    )
    hint = (
        "it was made anew, restored, or repaired once more since, so nothing is put in its place; "
        f"the volume from before the repair is {undo['original']}, copy from it what you need"
    )
    return text, hint


def _found(put: Volume) -> Volume | None:
    return _at(put.path, put)


def _at(path: str, like: Volume | None) -> Volume | None:
    """What is at this path, of the same kind; None where there is nothing."""
    if isinstance(like, LogicalVolume):
        return LogicalVolume.at(path)
    try:
        return ImageFile.at(path)
    except OSError:
        return None


def _is_inactive(volume: Volume) -> bool:
    return isinstance(volume, LogicalVolume) and volume.devno is None


def _another_ves(
    incident: Incident, view: NodeView, ve: Ve, *volumes: Volume
) -> tuple[str, str] | None:
    """Why the VE would be stopped for a volume that is not its own any more, and what can be done.

    Its name may be another VE's by now, or it has got another volume. One whose platform does not
    tell its volumes is taken for the same while it is as a repair that failed has left it.
    """
    undo = incident.undo or {}
    left_with = undo.get("ve_volumes")
    failed = any(one.journal.get("put_aside") and _has_failed(one) for one in incident.steps)
    known = left_with if failed and isinstance(left_with, list) else None
    text = owner.why_another(view, ve, volumes, known)
    if text is None:
        return None
    hint = (
        f"so it is not stopped, and nothing is exchanged; the volume from before the repair is "
        f"{undo['original']}: copy from it what you need, or give {ve.ve_id} the repaired volume "
        "back and ask again (where its platform does not tell its volumes: start it, or declare "
        "the volume in ve.d)"
    )
    return text, hint


def _has_failed(record: StepRecord) -> bool:
    return record.state is StepState.FAILED


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
    half_way = any(context.record.journal.get(mark) for mark in ("stopping", "kept"))
    ve = await owner.find(context, str(undo.get("ve")), half_way=half_way, left=_left(undo))
    ve = await context.lock_ve(ve)
    way = await _Way.prepare(context, undo)
    if not context.record.journal.get("stopping"):  # else it was asked, and the VE is down for it
        await _require_its_own(context, ve, way)
    async with Outage(context) as outage:
        if not way.is_exchanged:
            await _stop(context, ve, way, outage)
            await way.exchange(context.settings, ve, outage)
        outage.begin(ve, None, way.original)
        kept = await way.keep(context.settings)
        return await _start(context, ve, way.original, kept)


def _left(undo: Mapping[str, Any]) -> str:
    """Where the volume from before the repair is, for a person who has to go on."""
    original = read_volume(undo.get("original_file"))
    beside = str(undo["original"])
    found = owner.where(original, beside) if original is not None else beside
    return f"the volume from before the repair is {found}"


async def _require_its_own(context: ActionContext, ve: Ve, way: _Way) -> None:
    """Raises StepEnded where another VE than the repaired one would be stopped, or started."""
    await context.inventory.refresh()
    view = context.inventory.view
    now = view.ves.get(ve.ve_id, ve)
    if another := _another_ves(context.incident, view, now, way.repaired, way.original):
        raise refuse("not its volume", "; ".join(another), Next.OPERATOR)


async def _stop(context: ActionContext, ve: Ve, way: _Way, outage: Outage) -> None:
    if ve_control.is_running(ve):
        await outsiders.require_none(context, ve, None)
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
    """Which volume is which, written down before anything is done.

    How far an earlier run got is told by what the names lead to, so that nothing is exchanged back
    and forth.
    """

    repaired: Volume
    original: Volume
    beside: str
    kept: str

    @classmethod
    async def prepare(cls, context: ActionContext, undo: Mapping[str, Any]) -> _Way:
        """From the journal of an earlier run, else from what is there now. Raises StepEnded."""
        image, beside = str(undo["image"]), str(undo["original"])
        journal, known = context.record.journal, read_volume(undo.get("original_file"))
        repaired = read_volume(journal.get("repaired"))
        original = read_volume(journal.get("original"))
        kept = str(journal.get("kept") or "")
        if repaired is None or original is None or not kept:
            if known is not None:
                await storage.of(known, context.settings).wake(image, beside)
            repaired, original = _volume(image, known), _volume(beside, known)
            put = read_volume(undo.get("repaired_file"))  # no earlier version has recorded it
            if put is not None and not put.is_at(put.path):
                raise refuse("replaced", "; ".join(_replaced(undo, put)), Next.OPERATOR)
            repaired = put.today(put.path) if put is not None else repaired
            if known is not None and not known.is_at(beside):
                raise refuse(
                    "refused", f"{beside} is not the original that was kept", Next.OPERATOR
                )
            lies_in = storage.of(repaired, context.settings)
            kept = await lies_in.free_name(f"{image}.repaired-{context.incident.incident_id}")
            await context.journal(
                repaired=repaired.describe(), original=original.describe(), kept=kept
            )
        repaired = replace(repaired, path=image)
        lies_in = storage.of(repaired, context.settings)
        await lies_in.wake(beside, kept)
        await lies_in.mend(kept)
        repaired = repaired.today(image, beside, kept)
        original = replace(original, path=image).today(image, beside)
        return cls(repaired, original, beside, kept)

    @property
    def is_exchanged(self) -> bool:
        """Whether the volume's name leads to the original already."""
        return self.original.is_at(self.repaired.path)

    async def exchange(self, settings: ActionSettings, ve: Ve, outage: Outage) -> None:
        """Put the original in place. Raises StepEnded."""
        original = replace(self.original, path=self.beside)
        try:
            await storage.of(self.repaired, settings).exchange(original, self.kept)
        except SwapError as error:
            raise refuse("not exchanged", str(error), Next.OPERATOR) from None
        except HalfSwappedError as error:
            outage.end()
            text = f"{error}; {ve.ve_id} stays stopped"
            raise refuse("half exchanged", text, Next.OPERATOR) from None

    async def keep(self, settings: ActionSettings) -> str:
        """Give the repaired volume the name under which it is kept; returns the one it has."""
        if not self.repaired.is_at(self.kept) and not self.repaired.is_at(self.beside):
            return "gone"
        try:
            return await storage.of(self.repaired, settings).keep(self.beside, self.kept)
        except SwapError:
            return self.beside


def _volume(path: str, like: Volume | None) -> Volume:
    """What stands at `path`, of the kind that was put aside. Raises StepEnded."""
    if not isinstance(like, LogicalVolume):
        return scope.image_file(path)
    found = LogicalVolume.at(path)
    if found is None:
        raise refuse("refused", f"{path} is no logical volume that can be used", Next.OPERATOR)
    return found


async def _start(context: ActionContext, ve: Ve, original: Volume, kept: str) -> StepResult:
    story = ""
    if not ve_control.is_running(ve):
        await context.about_to_start(ve)
        story = await ve_control.start(ve, context.settings, original)
    found = await verify.find_mounted(context, ve, original, context.settings.start_timeout_s)
    runs = not isinstance(found, str)
    state = f"{ve.ve_id} runs on it again" if runs else f"but {found} ({story or 'no command ran'})"
    text = f"the volume from before the repair is in place, {state}; the repaired one is {kept}"
    return StepResult(
        next=Next.CONTINUE if runs else Next.OPERATOR,
        result="rolled back",
        detail=text,
        changed=True,
    )
