"""The clones of previews that belong to no incident (`fswatch repair --dry-run`, questions).

Such a clone has a name that nothing else leads to: what a kill leaves would stay for ever, and take
room in its pool with everything that the VE overwrites. So it is written down while there may be
one, and the next start deletes it. Not here: the preview of a plan's step, which is deleted by its
incident (`repair.resume`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fswatchd.errors import FswatchError
from fswatchd.repair import clone, storage
from fswatchd.repair.journal import read_volume
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionSettings
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

KEY = "previewing:"


class PreviewClones:
    """See the module. `load` before the first preview, then `discard_left`."""

    def __init__(self, store: Store, settings: ActionSettings) -> None:
        self._store = store
        self._settings = settings
        self._left: dict[str, Volume] = {}

    async def load(self) -> None:
        """Read what an earlier run may have left."""
        for key, value in (await self._store.facts(KEY)).items():
            volume = read_volume(value)
            if volume is not None:
                self._left[key.removeprefix(KEY)] = volume

    async def discard_left(self) -> None:
        """Delete it; what cannot be deleted now stays written down for the next start."""
        for path, volume in self._left.items():
            await self._discard(path, volume)

    @asynccontextmanager
    async def noted(self, volume: Volume, incident_id: str) -> AsyncIterator[None]:
        """A preview of `volume` may make its clone meanwhile. Raises StoreError."""
        path = clone.clone_path(volume, incident_id, "preview")
        await self._store.set_fact(KEY + path, volume.describe(), durable=True)
        try:
            yield
        finally:
            await self._discard(path, volume)

    async def _discard(self, path: str, volume: Volume) -> None:
        try:
            await storage.of(volume, self._settings).discard_unfinished(path)
            stays = "it cannot be deleted" if await _is_there(path) else None
        except (OSError, FswatchError) as error:
            stays = str(error)
        if stays is None:
            self._store.set_fact(KEY + path, None)
        else:
            log.warning("%s, the clone of a preview, stays: %s", path, stays)


async def _is_there(path: str) -> bool:
    return await asyncio.to_thread(os.path.lexists, path)
