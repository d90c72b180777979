"""Deletes a damaged original: exactly the volume that a repair has put aside, told by inode or
UUID, that nobody has open, of an incident that is closed at that moment.

That takes a while (LVM), and a rollback may be asked for meanwhile. So the incident says first that
its original is about to be deleted: from then on there is no way back. After a kill the next look
goes on with it. Not here: when an original goes (`retention`, `reserve`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.incidents import Incident
from fswatchd.repair import originals, storage
from fswatchd.repair.journal import read_volume
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.steps import ActionSettings

log = logging.getLogger(__name__)


async def give_up(
    book: IncidentBook, incident_id: str, why: str, may_go: Callable[[Incident], bool]
) -> Incident | None:
    """Delete the original of this incident, of several the oldest, if that `may_go` as it is now;
    returns the incident without it, None where it stays. Raises StoreError."""

    def doomed(found: Incident) -> Incident | None:
        undo = found.undo or {}
        if "deleting" in undo:
            return found  # an earlier run was cut off
        oldest = next(iter(originals.kept(undo)), None)
        if oldest is None or not may_go(found):
            return None
        return replace(found, undo={**originals.without_oldest(undo), "deleting": oldest})

    marked = await book.amend(incident_id, doomed)
    if marked is None or book.get(incident_id) is not None:
        return None
    doomed_one = dict((marked.undo or {})["deleting"])  # type: ignore[call-overload]
    path, recorded = str(doomed_one["original"]), doomed_one.get("original_file")
    gone, story = await delete_original(path, recorded, why)
    log.info("%s: %s", incident_id, story)

    def told(found: Incident) -> Incident:
        undo = dict(found.undo or {})
        undo.pop("deleting", None)
        if not gone:
            undo = originals.with_oldest(undo, doomed_one)
        known = bool(found.log) and found.log[-1][1] == story
        found = replace(found, undo=undo)
        return found if known else found.noted(time.time_ns(), story)

    done = await book.amend(incident_id, told)
    return done if gone else None


def _is_out_of_sight(original: Volume, image: str) -> bool:
    """Whether the filesystem that it lies on is not there: nothing on it can be seen to be gone.

    Where the image that it was is there, it is. Device numbers may be others after a boot.
    """
    if not isinstance(original, ImageFile):
        return False
    if os.path.lexists(original.path) or os.path.lexists(image):
        return False
    try:
        return Devno.of(os.stat(original.directory).st_dev) != original.devno
    except OSError:
        return True


async def delete_original(
    path: str, recorded: object, why: str = "it had been kept long enough"
) -> tuple[bool, str]:
    """Delete the volume at `path` if it is the recorded one; whether it is gone, and the story."""
    known = read_volume(recorded)
    if known is None:
        return False, f"{path} stays: nothing says which volume it was"
    original = replace(known, path=path)
    try:
        await storage.wake(original, ActionSettings())
        original = original.today(path)
        if await asyncio.to_thread(_is_out_of_sight, original, known.path):
            return False, f"{path} stays: what it lies on is not mounted"
        if not original.is_at(path):
            return True, f"{path} is gone, or another volume: nothing to delete"
        if (held := await asyncio.to_thread(original.held_by)) is not None:
            return False, f"{path} stays: {held}"
        await storage.of(original, ActionSettings()).delete()
    except OSError as error:
        return False, f"{path} stays: {error}"
    return True, f"{path} was deleted: {why}"
