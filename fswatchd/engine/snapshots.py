"""`fswatch snapshot TARGET`: the copy that the step `snapshot` makes, asked for by hand.

Blocks are shared with the image, so that its writers wait for a moment only: tasks are held first,
then the filesystem, then all is copied. What root has frozen already is copied as it stands.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from fswatchd import views
from fswatchd.engine.arming import Arming
from fswatchd.engine.freezer import Freezer
from fswatchd.engine.operations import Operations
from fswatchd.engine.operator import DryRun, Operator
from fswatchd.errors import RefusedError
from fswatchd.helpers.client import HelperError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Commands, Superblock, VeId
from fswatchd.repair import clone, scope, swap
from fswatchd.repair.clone import Clone
from fswatchd.repair.scope import Target, require_image
from fswatchd.repair.ve_freeze import HoldError, VeFreeze
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import StepEnded
from fswatchd.store.store import Store, StoreError

_KEY = "snapshotting:"
_FREEZE_S = 20.0
_STOPPED = {"emergency_ro", "shutdown"}


class Snapshots:
    """Takes them, one request after the other."""

    def __init__(
        self,
        store: Store,
        inventory: Inventory,
        operator: Operator,
        freezer: Freezer,
        arming: Arming,
        operations: Operations,
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._operator = operator
        self._freezer = freezer
        self._arming = arming
        self._operations = operations

    async def recover(self) -> None:
        """Delete the copies that an earlier run has not finished."""
        for key in await self._store.facts(_KEY):
            clone.discard_unfinished(key.removeprefix(_KEY))
            self._store.set_fact(key, None)

    async def take(self, text: str, by: str, reason: str) -> dict[str, Any]:
        """Copy the volume of a VE, a device or a mount point; returns where the copy is."""
        filesystem, ves = await self._operator.filesystem_of(text)
        self._arming.refuse_if_disarmed(ves)
        if (why := self._freezer.why_not(filesystem, ves)) is not None:
            raise RefusedError(f"no snapshot: {why}", code="FSW-REFUSED-SNAPSHOT")
        context = self._operator.dry_run(filesystem, ves)
        try:
            made, target = await self._take(context, VeId(ves[0]), by)
        except (StepEnded, HoldError, HelperError, OSError, StoreError) as error:
            self._operations.record("snapshot", text, by, reason, f"none: {error}")
            raise RefusedError(f"no snapshot: {error}", code="FSW-REFUSED-SNAPSHOT") from None
        path = made.file.path
        self._operations.record("snapshot", target.ve.ve_id, by, reason, path)
        return {
            "ve": target.ve.ve_id,
            "device": filesystem.device,
            "image": target.image.path if target.image else None,
            "path": path,
            "bytes": os.stat(path).st_size,
            "taken": views.timestamp(time.time_ns()),
            "remove": f"rm {path}",
        }

    async def _take(self, context: DryRun, ve_id: VeId, by: str) -> tuple[Clone, Target]:
        held = self._freezer.held(ve_id)
        ours = self._inventory.view.ves[ve_id].busy if held else f"{by} takes a snapshot"
        async with self._freezer.reserved(ve_id, ours or ""):
            target = await scope.resolve(context, any_type=True, not_busy=ours)
            self._freezer.refuse_while_repaired(ve_id)
            image = require_image(target)
            await clone.check_room(image, context.settings, shared=True)
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            path = swap.free_name(f"{image.path}.snapshot-{stamp}")
            await self._store.set_fact(_KEY + path, by, durable=True)
            try:
                made = await self._copy(target, image, path, held)
            except BaseException as error:
                self._store.set_fact(_KEY + path, None)
                if not isinstance(error, clone.NotShareableError):
                    raise
                text = "the host filesystem cannot share blocks (XFS with reflink=1 and btrfs can)"
                raise RefusedError(f"no snapshot: {text}", code="FSW-REFUSED-SNAPSHOT") from None
            await self._finished(made)
            return made, target

    async def _finished(self, made: Clone) -> None:
        """Once this is on the disk no start takes it for one that was cut off."""
        try:
            await self._store.set_fact(_KEY + made.file.path, None, durable=True)
        except BaseException:
            made.remove()  # the next start would
            raise

    async def _copy(
        self, target: Target, image: ImageFile, path: str, held: VeFreeze | None
    ) -> Clone:
        superblock = target.superblock
        if superblock is None or self._is_stopped(superblock):
            return await clone.share(image, path)
        if held is not None and superblock.devno in {one.devno for one in held.filesystems}:
            return await _while_held(held, image, path)
        # The moment is too short for the platform's own command, where a cgroup is known.
        ve = replace(target.ve, commands=Commands()) if target.ve.cgroup else target.ve
        hold = VeFreeze()
        try:
            await hold.hold(self._inventory, ve, [superblock], _FREEZE_S)
            return await _while_held(hold, image, path)
        finally:
            if problems := await hold.thaw():
                raise HoldError("; ".join(problems))

    def _is_stopped(self, superblock: Superblock) -> bool:
        return bool(_STOPPED & set(self._inventory.current_options(superblock) or ()))


async def _while_held(hold: VeFreeze, image: ImageFile, path: str) -> Clone:
    """A copy of what provably stood still from its beginning to its end."""
    made = await clone.share(image, path)
    if await hold.still_held():
        return made
    made.remove()
    raise HoldError("it was thawed while it was copied")
