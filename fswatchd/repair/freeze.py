"""Hold a filesystem frozen, with a guard process that undoes it whatever happens to us."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress

from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import fs, proc
from fswatchd.steps import Next, refuse

LEFT_FROZEN = "left frozen"
_ANSWER_S = 10.0
_SYNC_S = 120.0
_MODULE = "fswatchd.helpers.guard"


class CannotFreezeError(Exception):
    """FIFREEZE failed. `code` tells why: EROFS after an abort, EIO after a shutdown, EBUSY when
    somebody else holds a freeze."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


class _NotSyncedError(HelperError):
    """Nothing was frozen: if something is by now, somebody else has done it."""


class Freeze:
    """One freeze of one superblock, from `hold` to `thaw`.

    The guard process keeps a detached mount of the superblock open until then, so the superblock
    cannot go away before `thaw` has returned.
    """

    def __init__(self) -> None:
        self._guard = Helper(_MODULE)
        self._of: tuple[Inventory, Superblock] | None = None
        self._stuck: str | None = None
        self.held = False

    async def prepare(self) -> None:
        """Start the guard ahead, so that freezing itself takes no time for that."""
        await self._guard.start()

    async def hold(
        self,
        inventory: Inventory,
        superblock: Superblock,
        deadline_s: float,
        *,
        sync_first: bool = False,
    ) -> None:
        """Freeze, for `deadline_s` at the most.

        A freeze writes back what is only in memory, and holds all writers meanwhile: with
        `sync_first` most of that is done before, for as long as it takes.
        Raises CannotFreezeError, HelperError when the freeze takes too long (it is undone as soon
        as it succeeds), or OSError when the superblock cannot be reached.
        """
        async with inventory.opened(superblock) as mount:
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            if sync_first:
                await self._sync(directory)
            await self._guard.request(
                {"op": "freeze", "deadline_s": deadline_s}, (directory,), timeout_s=_ANSWER_S
            )
        except _NotSyncedError:
            await self._guard.close()
            raise
        except OSError as error:
            await self._guard.close()
            raise CannotFreezeError(error.errno or errno.EIO) from None
        except HelperError:
            # One that was killed may have frozen, and told nobody. One that hangs thaws later.
            if await self._guard.close() not in {0, None}:
                self._of = (inventory, superblock)
                await self._thaw_without_guard()
            raise
        finally:
            os.close(directory)
        self.held = True
        self._of = (inventory, superblock)

    async def _sync(self, directory: int) -> None:
        try:
            await self._guard.request({"op": "sync"}, (directory,), timeout_s=_SYNC_S)
        except (HelperError, OSError) as error:
            raise _NotSyncedError(f"it cannot be written back first: {error}") from None

    async def still_held(self) -> bool:
        """Whether nobody has thawed meanwhile: neither the deadline nor somebody else."""
        if not self.held:
            return False
        try:
            answer, _ = await self._guard.request({"op": "check"}, timeout_s=_ANSWER_S, start=False)
        except (HelperError, OSError):
            return False
        return bool(answer["frozen"])

    async def seal(self) -> bool:
        """Let nobody write after the thaw either; False when that cannot be had.

        A writer outside the VE (nfsd, a backup) that waits for the thaw would otherwise write to an
        image that is about to be put aside, and get its acknowledgement. ext4 can be shut down
        while it is frozen (Linux 6.18: 7 ms, two sectors of its journal, and none afterwards).
        """
        if not self.held:
            return False
        try:
            answer, _ = await self._guard.request({"op": "seal"}, timeout_s=_ANSWER_S)
        except (HelperError, OSError):
            return False
        return bool(answer["sealed"])

    async def thaw(self) -> bool:
        """Thaw; False when it was no longer frozen, or nobody can say. Thawing twice is nothing."""
        if not self.held:
            return False
        self.held = False
        thawed = None
        with suppress(HelperError, OSError):
            answer, _ = await self._guard.request({"op": "thaw"}, timeout_s=_ANSWER_S, start=False)
            thawed = bool(answer["was_frozen"])
        # A guard that has ended properly has thawed; one that was killed has not.
        if await self._guard.close() != 0:
            await self._thaw_without_guard()
        return bool(thawed)

    async def release(self) -> None:
        """Make sure that nothing stays frozen and no guard is left; safe at any time.

        Raises StepEnded for the operator when it cannot be thawed.
        """
        await self.thaw()
        await self._guard.close()
        if self._stuck is not None:
            await self._thaw_without_guard()
        if self._stuck is not None:
            raise refuse(LEFT_FROZEN, self._stuck, Next.OPERATOR)

    async def _thaw_without_guard(self) -> None:
        if self._of is None:
            return
        inventory, superblock = self._of
        self._stuck = None
        try:
            await thaw_leftover(inventory, superblock)
        except (OSError, HelperError) as error:
            if fs.has_superblock(superblock.device):
                self._stuck = (
                    f"{superblock.device} may still be frozen, its guard was killed, and it cannot "
                    f"be thawed: {error}; see fsfreeze(8)"
                )


def mark(superblock: Superblock) -> str:
    """For a journal: what is going to be frozen, so that nothing else is ever thawed for it."""
    return f"{proc.boot_id()}/{superblock.devno}/{superblock.disk_sequence}"


async def thaw_marked(inventory: Inventory, marked: object) -> str | None:
    """Thaw what an earlier daemon marked, if it is mounted and frozen still; returns its device.

    A device number that was given to another disk, or dealt again by a boot, is not it: whoever has
    frozen that relies on it. Raises OSError or HelperError.
    """
    for superblock in inventory.view.superblocks.values():
        if mark(superblock) == marked and await thaw_leftover(inventory, superblock):
            return superblock.device
    return None


async def thaw_leftover(inventory: Inventory, superblock: Superblock) -> bool:
    """Thaw what an earlier daemon may have left frozen; whether it was."""
    async with inventory.opened(superblock) as mount:
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        await asyncio.to_thread(fs.thaw, directory)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    finally:
        os.close(directory)
    return True
