"""What a volume lies in: where a clone of it is made, exchanged with it, kept, and deleted.

`Images` does it with files, `LvmStorage` with logical volumes; a repair by clone is the same for
both. What is what they tell by what the kernel knows it by, never by a name alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from fswatchd.repair.images import Images
from fswatchd.repair.logical_volume import LogicalVolume, Stamp
from fswatchd.repair.lvm_storage import LvmStorage
from fswatchd.repair.progress import OnProgress
from fswatchd.repair.volume import Volume
from fswatchd.shielded import ended
from fswatchd.steps import ActionSettings, refuse

T = TypeVar("T")

_LOOK_EVERY_S = 0.5


class Storage(Protocol):
    """Of one volume. Every method may raise OSError."""

    @property
    def live(self) -> bool:
        """Whether a clone can be made beside a filesystem that can no longer be written."""

    @property
    def renews(self) -> bool:
        """Whether what was read of an earlier clone is at hand for the next one, see `make`."""

    @property
    def place(self) -> str:
        """What has the room, for people: a directory, or a thin pool."""

    async def prepare(self) -> None:
        """Before anything is stopped: raise StepEnded where no clone could take its place."""

    async def wake(self, *paths: str | None) -> None:
        """Make what has one of these names, and the volume, known to the kernel."""

    async def mend(self, away: str | None) -> None:
        """Undo an exchange that was cut off in the middle, with the volume at `away`."""

    async def check_room(self, *, shared: bool) -> None:
        """Raise StepEnded where a clone would leave less than the reserve."""

    async def room(self) -> int:
        """Bytes that may be written before the reserve is touched; negative below."""

    def bytes_to_copy(self) -> int:
        """What would be copied where no blocks can be shared."""

    async def free_name(self, path: str) -> str:
        """`path`, with a number behind it where something has that name already."""

    async def share(self, path: str) -> Volume:
        """A clone that shares its blocks.

        Raises clone.NotShareableError where none can be had, or not while it is mounted as it is.
        """

    async def make(
        self, path: str, begin: Callable[[], OnProgress], earlier: Volume | None = None
    ) -> Volume:
        """A clone of what stands still: shared, else copied, of which `begin` is told.

        `earlier` is a clone of the same that nobody needs: it becomes this one, or is deleted.
        Raises StepEnded where there is no room.
        """

    def at_work(self, made: Volume) -> AbstractAsyncContextManager[str]:
        """The path on which tools work on a clone, and nobody else does."""

    async def sync(self, made: Volume) -> None:
        """Return when the clone is on the disk."""

    async def discard(self, made: Volume) -> None:
        """Delete a clone, if what has its name is still it."""

    async def discard_unfinished(self, path: str) -> None:
        """Delete the clone at `path` of which nothing is written down but this name."""

    async def delete(self) -> None:
        """Delete the volume itself, which was kept; the caller has proven that it is that."""

    async def exchange(self, made: Volume, kept: str, stamp: Stamp | None = None) -> None:
        """Give the clone the volume's name; raises SwapError where nothing was changed.

        That is StaleError where the volume has another `stamp` by then. Raises HalfSwappedError
        where it was cut off with names changed.
        The volume is at `kept` afterwards, or where the clone was: see `keep`.
        """

    async def keep(self, beside: str, kept: str) -> str:
        """After an exchange, the name that the volume has from now on: `kept` if it can be had.

        Until then it may be at `beside`. Raises SwapError where it could not be renamed.
        """


def of(volume: Volume, settings: ActionSettings) -> Storage:
    """What this volume lies in."""
    if isinstance(volume, LogicalVolume):
        return LvmStorage(volume, settings)
    return Images(volume, settings)


async def while_there_is_room(work: Coroutine[Any, Any, T], storage: Storage) -> T:
    """The result of `work` on a clone that nobody needs; cancelled once the reserve is touched.

    Raises StepEnded then.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
            if await storage.room() < 0:
                text = f"{storage.place} ran below its reserve: the clone was given up"
                raise refuse("no room", text)
        return task.result()
    finally:
        task.cancel()
        await ended(task)


async def wake(volume: Volume | None, settings: ActionSettings) -> None:
    """Make a volume known to the kernel that a platform has put away with its VE."""
    if volume is not None:
        await of(volume, settings).wake()
