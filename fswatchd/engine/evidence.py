"""Where evidence is kept: taken before a plan's first step, shown on request, deleted in time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fswatchd.book import IncidentBook
from fswatchd.engine.elapsed import Elapsed
from fswatchd.engine.step_context import StepContext
from fswatchd.errors import FswatchError, UnknownTargetError
from fswatchd.helpers.client import HelperError
from fswatchd.incidents import Incident, State
from fswatchd.repair import evidence
from fswatchd.store.store import Store
from fswatchd.units import show_size

log = logging.getLogger(__name__)

_TAKING_S = 20.0
_MAX_TOTAL = 256 << 20
NS = 1_000_000_000


class EvidenceRoom:
    """The evidence of all incidents, below the state directory."""

    def __init__(self, state_dir: Path, keep_s: float) -> None:
        self._directory = state_dir / "evidence"
        self._keep_s = keep_s

    async def take(self, context: StepContext) -> None:
        """Keep what there is to see, once for an incident. That it fails stops no repair."""
        if context.incident.evidence is not None:
            return
        try:
            async with asyncio.timeout(_TAKING_S):
                path, size = await evidence.keep(context, self._directory)
        except (FswatchError, HelperError, OSError, TimeoutError) as error:
            why = str(error) or f"it took more than {_TAKING_S:.0f} s"
            context.note(f"evidence: none was kept: {why}")
            return
        context.keep_evidence({"path": str(path), "bytes": size, "taken_ns": time.time_ns()})
        context.note(f"evidence: {show_size(size)} kept before anything is done")

    def read(self, incident: Incident) -> dict[str, Any]:
        """The document of an incident. Raises UnknownTargetError where none is kept."""
        try:
            text = evidence.path_of(self._directory, incident.incident_id).read_text("utf-8")
            return dict(json.loads(text))
        except (OSError, ValueError):
            raise UnknownTargetError(
                f"no evidence of {incident.incident_id} is kept",
                hint="it is taken before the first step that acts, and deleted in time",
                code="FSW-UNKNOWN-EVIDENCE",
            ) from None

    async def sweep(self, store: Store, book: IncidentBook, elapsed: Elapsed) -> None:
        """Delete what is too old, and the oldest where there is too much of it.

        That of an incident which is still open stays.
        """
        kept = await asyncio.to_thread(self._kept)
        found = await store.known_incidents([path.stem for _, path in kept])
        for path in self._due(kept, found, elapsed):
            if book.get(path.stem) is not None:
                continue
            with suppress(OSError):
                await asyncio.to_thread(path.unlink)
            await book.amend(path.stem, _without_evidence)

    def _kept(self) -> list[tuple[os.stat_result, Path]]:
        with suppress(OSError):
            return [(path.stat(), path) for path in self._directory.glob("*.json*")]
        return []

    def _due(
        self,
        kept: list[tuple[os.stat_result, Path]],
        found: Mapping[str, Incident | None],
        elapsed: Elapsed,
    ) -> list[Path]:
        due, total = [], 0
        for status, path in sorted(kept, key=lambda one: one[0].st_mtime_ns, reverse=True):
            total += status.st_size
            incident = found.get(path.stem)
            if path.stem in found and (incident is None or incident.state is not State.CLOSED):
                continue
            if incident is not None:
                passed_ns = elapsed.since_closed_ns(incident)
            else:
                passed_ns = elapsed.since_ns(status.st_mtime_ns)
            if passed_ns > self._keep_s * NS or total > _MAX_TOTAL:
                due.append(path)
        return due


def _without_evidence(incident: Incident) -> Incident:
    return replace(incident, evidence=None)
