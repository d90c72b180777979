"""Watches the room beside volumes while originals are kept there that share blocks with them.

Copy on write takes room for every block that a VE overwrites, and where there is none the VE's own
writes fail. Below the reserve a preview gives itself up (`repair.preview`); here the oldest kept
originals go, of repairs that were proven: their VE has been healthy for long enough. What is still
needed for a rollback that runs, or was never proven, stays, also when somebody has closed its
incident: it may be the only way back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import replace

from fswatchd.book import IncidentBook
from fswatchd.engine.originals import give_up
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.repair import storage
from fswatchd.repair.journal import read_volume
from fswatchd.repair.storage import Storage
from fswatchd.steps import ActionSettings
from fswatchd.store.store import Store, StoreError
from fswatchd.units import show_size

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0


class ReserveWatch:
    """Looks every few seconds, where there is something to look at.

    `tell` is called with an incident whose original had to go.
    """

    def __init__(
        self,
        store: Store,
        book: IncidentBook,
        settings: ActionSettings,
        tell: Callable[[Incident], object],
    ) -> None:
        self._store = store
        self._book = book
        self._settings = settings
        self._tell = tell
        self._kept: dict[str, Incident] = {}
        self._low: dict[str, str] = {}
        book.subscribe(lambda _, after: self._remember(after))

    def low(self) -> list[str]:
        """The places where the reserve is used up and nothing more may go, for people."""
        return list(self._low.values())

    async def run(self) -> None:
        """Look for ever."""
        read = False
        while True:
            read = read or await self._read_stored()
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _read_stored(self) -> bool:
        """Take up what was kept before; False where the store does not tell."""
        try:
            stored = await self._store.with_original()
        except StoreError as error:
            log.error("not all originals that are kept are known yet: %s", error)
            return False
        for incident in stored:
            if incident.incident_id not in self._kept:
                self._remember(incident)
        return True

    async def look(self) -> None:
        """Where the reserve is touched, delete the oldest that may go, one after the other."""
        found = {kept.incident_id: self._lies_in(kept) for kept in self._kept.values()}
        places = {lies_in.place: lies_in for lies_in in found.values() if lies_in is not None}
        self._low = {place: text for place, text in self._low.items() if place in places}
        for place, lies_in in places.items():
            here = {name for name, other in found.items() if other and other.place == place}
            try:
                missing = await _missing(lies_in)
                while missing > 0 and await self._delete_oldest(place, here, missing):
                    missing = await _missing(lies_in)
            except TimeoutError:
                self._say(place, "it does not answer, so how much is free is not known")
                continue
            self._judge(place, missing)

    def _remember(self, incident: Incident) -> None:
        if incident.undo is not None and "original" in incident.undo:
            self._kept[incident.incident_id] = incident
        else:
            self._kept.pop(incident.incident_id, None)

    def _lies_in(self, kept: Incident) -> Storage | None:
        known = read_volume((kept.undo or {}).get("original_file"))
        if known is None:
            return None  # nothing says which volume it is: it is never deleted
        return storage.of(replace(known, path=_original(kept)), self._settings)

    async def _delete_oldest(self, place: str, here: Collection[str], missing: int) -> bool:
        settled = [
            kept
            for kept in self._kept.values()
            if kept.incident_id in here
            and _is_proven(kept)
            and self._book.get(kept.incident_id) is None
        ]
        oldest = min(settled, key=lambda kept: kept.closed_ns or 0, default=None)
        if oldest is None:
            return False
        del self._kept[oldest.incident_id]
        why = f"{place} had {show_size(missing)} less than the reserve"
        try:
            done = await give_up(self._book, oldest.incident_id, why, _is_proven)
        except StoreError as error:
            log.error("%s: its original stays: %s", oldest.incident_id, error)
            return True
        if done is not None:
            self._remember(done)
            log.warning("%s: its original is gone: %s", oldest.incident_id, why)
            self._tell(done)
        return True  # somebody holds it, or it is wanted: try the next

    def _judge(self, place: str, missing: int) -> None:
        if missing <= 0:
            self._low.pop(place, None)
            return
        text = (
            f"{show_size(missing)} less than the reserve are free, beside originals "
            "that are still needed: writes of VEs on volumes there may fail"
        )
        self._say(place, text)

    def _say(self, place: str, text: str) -> None:
        if place not in self._low:
            log.warning("the reserve in %s: %s", place, text)
        self._low[place] = f"{place}: {text}"


def _is_proven(kept: Incident) -> bool:
    return kept.state is State.CLOSED and kept.outcome is Outcome.REPAIRED


async def _missing(lies_in: Storage) -> int:
    try:
        return -await lies_in.room()
    except TimeoutError:
        raise
    except OSError:
        return 0  # it is not there: nothing is kept there either


def _original(incident: Incident) -> str:
    return str((incident.undo or {})["original"])
