"""The way back from a repair: the volume as it was before it, in place again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fswatchd.errors import RefusedError
from fswatchd.incidents import Incident, StepRecord, StepState
from fswatchd.inventory.model import VeId
from fswatchd.inventory.view import NodeView
from fswatchd.repair import put_back
from fswatchd.repair.journal import read_volume
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.put_back import Goal
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, StepResult


def check(incident: Incident, view: NodeView, *, discard_newer: bool) -> None:
    """Raise RefusedError where a rollback cannot or should not be done."""
    undo = incident.undo
    if undo is None:
        raise RefusedError(
            f"{incident.incident_id} changed nothing that could be rolled back",
            hint=f"to a snapshot of the volume: fswatch rollback {incident.incident_id} --to PATH",
            code="FSW-REFUSED-NO-ROLLBACK",
        )
    if "original" not in undo:
        raise _no_way_back(incident.incident_id, undo)
    goal = _goal(incident)
    # A logical volume is nowhere to be seen while it is not active: `prepare` looks for that.
    if not isinstance(goal.volume, LogicalVolume) and not os.path.exists(goal.beside):
        raise RefusedError(
            f"the volume from before the repair is no longer at {goal.beside}",
            hint="it was rolled back already, or its time was over (keep_original)",
            code="FSW-REFUSED-NO-ROLLBACK",
        )
    put = goal.there
    if put is not None and put.is_displaced:
        text, hint = put_back.replaced(goal, put)
        raise RefusedError(text, hint=hint, code="FSW-REFUSED-REPLACED")
    there = put.today(put.path) if put is not None else put_back.at(goal.image, goal.volume)
    ve = view.ves.get(VeId(goal.ve))
    # About what is not to be seen now `run` asks, which waits for it.
    if ve is not None and there is not None and not _is_inactive(there):
        another = put_back.another_ves(view, goal, ve, there)
        if another is not None:
            text, hint = another
            raise RefusedError(text, hint=hint, code="FSW-REFUSED-NOT-ITS-VOLUME")
    if not discard_newer:
        raise RefusedError(
            f"{goal.ve} has run on the repaired volume: what it wrote since would be lost",
            hint="to go back all the same: --discard-newer (the repaired volume is kept beside it)",
            code="FSW-REFUSED-NEWER-DATA",
        )


async def run(context: ActionContext) -> StepResult:
    """Stop the VE, exchange the images again, start it. Raises StepEnded."""
    return await put_back.run(context, _goal(context.incident))


def _goal(incident: Incident) -> Goal:
    undo = incident.undo or {}
    left_with = undo.get("ve_volumes")
    failed = any(one.journal.get("put_aside") and _has_failed(one) for one in incident.steps)
    return Goal(
        ve=str(undo.get("ve")),
        image=str(undo["image"]),
        there=read_volume(undo.get("repaired_file")),
        beside=str(undo["original"]),
        volume=read_volume(undo.get("original_file")),
        aside=f"{undo['image']}.repaired-{incident.incident_id}",
        left_with=left_with if failed and isinstance(left_with, list) else None,
    )


def _is_inactive(volume: Volume) -> bool:
    return isinstance(volume, LogicalVolume) and volume.devno is None


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
        hint += (
            f"a snapshot from then is {undo['snapshot']}: fswatch rollback {incident_id} --to it"
        )
    return RefusedError(text, hint=hint, code="FSW-REFUSED-NO-ROLLBACK")
