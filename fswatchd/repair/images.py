"""Image files as what volumes lie in: `clone` makes the copies, `swap` exchanges them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fswatchd.repair import clone, swap
from fswatchd.repair.logical_volume import Stamp
from fswatchd.repair.progress import OnProgress
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.shielded import to_the_end
from fswatchd.steps import ActionSettings, StepEnded


class Images:
    """See `storage.Storage`."""

    live = True
    renews = True

    def __init__(self, image: ImageFile, settings: ActionSettings) -> None:
        self._image = image
        self._settings = settings

    @property
    def place(self) -> str:
        """The directory."""
        return self._image.directory

    async def prepare(self) -> None:
        """Nothing: whether there is room is asked when it is known whether blocks are shared."""

    async def wake(self, *paths: str | None) -> None:
        """Nothing: a file is always there."""

    async def mend(self, away: str | None) -> None:
        """Nothing: an exchange is one rename."""

    async def check_room(self, *, shared: bool) -> None:
        """See Storage."""
        await clone.check_room(self._image, self._settings, shared=shared)

    async def room(self) -> int:
        """See Storage. Raises TimeoutError where the filesystem does not answer."""
        return await asyncio.to_thread(clone.room, self.place, self._settings)

    def bytes_to_copy(self) -> int:
        """See Storage."""
        return os.stat(self._image.path).st_blocks * 512

    async def free_name(self, path: str) -> str:
        """See Storage."""
        return swap.free_name(path)

    async def share(self, path: str) -> ImageFile:
        """See Storage."""
        return (await clone.share(self._image, path)).file

    async def make(
        self, path: str, begin: Callable[[], OnProgress], earlier: Volume | None = None
    ) -> ImageFile:
        """See Storage."""
        if earlier is not None:
            # Why it cannot be had is of no interest: another one is as good, and read again.
            with suppress(OSError, StepEnded):
                return await self._renewed(_file(earlier), path)
        try:
            await self.check_room(shared=True)
            return await self.share(path)
        except clone.NotShareableError:
            await self.check_room(shared=False)
            return (await clone.copy(self._image, path, begin())).file

    async def _renewed(self, earlier: ImageFile, path: str) -> ImageFile:
        try:
            await self.check_room(shared=True)
            return (await clone.renew(self._image, earlier, path)).file
        finally:
            await self.discard(earlier)  # what has become the clone is not there any more

    @asynccontextmanager
    async def at_work(self, made: Volume) -> AsyncIterator[str]:
        """The file itself."""
        yield made.path

    async def sync(self, made: Volume) -> None:
        """See Storage."""
        await asyncio.to_thread(clone.sync, made.path)

    async def discard(self, made: Volume) -> None:
        """See Storage."""
        await asyncio.to_thread(clone.discard, _file(made))

    async def discard_unfinished(self, path: str) -> None:
        """See Storage."""
        await asyncio.to_thread(clone.discard_unfinished, path)

    async def delete(self) -> None:
        """See Storage."""
        await asyncio.to_thread(os.unlink, self._image.path)

    async def exchange(self, made: Volume, kept: str, stamp: Stamp | None = None) -> None:
        """See Storage: the volume is where the clone was.

        Cancelled, it comes to its end first: until then what has the clone's name may become the
        only original while somebody deletes the clone.
        """
        await to_the_end(asyncio.to_thread(swap.exchange, self._image, _file(made), stamp))

    async def keep(self, beside: str, kept: str) -> str:
        """See Storage."""
        if not self._image.is_at(kept):
            await asyncio.to_thread(swap.rename, beside, kept)
        return kept


def _file(volume: Volume) -> ImageFile:
    if not isinstance(volume, ImageFile):
        raise TypeError(f"not an image file: {volume}")
    return volume
