"""Deletes damaged originals when nobody needs them any more: they share blocks with the repaired
image, and every block that the VE overwrites takes room while they exist. Undo files and evidence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fswatchd.book import IncidentBook
from fswatchd.engine.elapsed import Elapsed
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.originals import give_up
from fswatchd.incidents import Incident, State
from fswatchd.store.store import Store, StoreError

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 3600.0
_KEEP_UNDO_S = 7 * 86400.0
_WHY = "it had been kept long enough"
NS = 1_000_000_000


class Retention:
    """Looks once an hour."""

    def __init__(
        self,
        store: Store,
        book: IncidentBook,
        evidence: EvidenceRoom,
        state_dir: Path,
        distrust: Callable[[], str],
    ) -> None:
        self._store = store
        self._book = book
        self._elapsed = Elapsed(book)
        self._distrust = distrust
        self._evidence = evidence
        self._undo = state_dir / "undo"

    async def run(self) -> None:
        """Look for ever."""
        while True:
            with suppress(StoreError):
                await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Delete what is due; nothing while the daemon does not trust itself, or its clock."""
        if self._distrust():
            return
        for incident in await self._store.with_original():
            # Each deletion takes its time: the next incident may be another one by then.
            while await give_up(self._book, incident.incident_id, _WHY, self._is_due) is not None:
                pass  # there may be more than one
        await self._sweep_undo()
        await self._evidence.sweep(self._store, self._book, self._elapsed)

    def _is_due(self, incident: Incident) -> bool:
        return is_due(incident, self._elapsed.since_closed_ns(incident))

    async def _sweep_undo(self) -> None:
        """Undo files that are due, and their directories once these are empty.

        What nothing is known of any more is as old as its directory; what is known and cannot be
        read stays.
        """
        directories = await asyncio.to_thread(_directories, self._undo)
        known = await self._store.known_incidents([one.name for one in directories])
        for directory in directories:
            incident = known.get(directory.name)
            if directory.name in known and (incident is None or incident.state is not State.CLOSED):
                continue
            if self._book.get(directory.name) is None:
                with suppress(OSError):
                    await asyncio.to_thread(_sweep, directory, incident, self._elapsed)


def _directories(below: Path) -> list[Path]:
    with suppress(OSError):
        return list(below.iterdir())
    return []


def _sweep(directory: Path, incident: Incident | None, elapsed: Elapsed) -> None:
    keep_s = (incident.undo or {}).get("keep_s") if incident else None
    keep_ns = NS * (keep_s if isinstance(keep_s, int | float) else _KEEP_UNDO_S)
    if incident is not None:
        passed_ns = elapsed.since_closed_ns(incident)
    else:
        passed_ns = elapsed.since_ns(directory.stat().st_mtime_ns)
    if passed_ns > keep_ns:
        for file in directory.glob("*.e2undo*"):
            file.unlink()
            log.info("%s was deleted: it had been kept long enough", file)
    directory.rmdir()


def is_due(incident: Incident, passed_ns: int) -> bool:
    """Whether the original of an incident that was closed so long ago has been kept long enough."""
    undo = incident.undo
    if incident.state is not State.CLOSED or incident.closed_ns is None or undo is None:
        return False
    keep_s = undo.get("keep_s")
    if "original" not in undo or not isinstance(keep_s, int | float):
        return False
    return passed_ns > keep_s * NS
