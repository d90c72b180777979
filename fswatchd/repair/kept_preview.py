"""The clone of a preview, from when that was seen until the clone that is swapped in is made of it.

Every block that the VE overwrites meanwhile takes one more: once the reserve is touched it is given
up, as the preview itself would have been (`storage.while_there_is_room`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fswatchd.repair.storage import Storage
from fswatchd.repair.volume import Volume

_LOOK_EVERY_S = 0.5


class KeptPreview:
    """Watches the room from its making until `take` or `drop`."""

    def __init__(self, clone: Volume, lies_in: Storage) -> None:
        self._clone: Volume | None = clone
        self._lies_in = lies_in
        self._watching = asyncio.create_task(self._watch())

    async def take(self) -> Volume | None:
        """It is the caller's from now on; None where it was given up."""
        self._watching.cancel()
        await asyncio.wait({self._watching})
        clone, self._clone = self._clone, None
        return clone

    async def drop(self) -> None:
        """Delete it, if it was not taken. Raises OSError."""
        if (clone := await self.take()) is not None:
            await self._lies_in.discard(clone)

    async def _watch(self) -> None:
        while self._clone is not None:
            with suppress(OSError):  # who does not answer now is asked again
                if await self._lies_in.room() < 0:
                    await self._lies_in.discard(self._clone)
                    self._clone = None
            await asyncio.sleep(_LOOK_EVERY_S)
