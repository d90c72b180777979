"""`snapshot`: keep a copy of the VE's volume as it is now, beside the image.

Of a filesystem that is still written, all is flushed and held for the moment of sharing blocks
(tasks first, then the filesystem, else a writer blocks the freezer). Where blocks cannot be shared,
only a filesystem that stands still is copied.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

from fswatchd.helpers.client import HelperError
from fswatchd.repair import clone, scope, ve_freeze
from fswatchd.repair.freeze import CannotFreezeError, Freeze
from fswatchd.repair.freeze import mark as freeze_mark
from fswatchd.repair.scope import Target, require_image
from fswatchd.repair.ve_freeze import HoldError
from fswatchd.repair.volume import ImageFile
from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse

_FREEZE_S = 20.0


class SnapshotAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        freeze = Freeze()
        try:
            target = await scope.resolve(context)
            image = require_image(target)
            path = snapshot_path(image, context.incident.incident_id)
            await context.journal(snapshot=path)
            made = await self._take(context, target, image, path, freeze)
        except StepEnded as ended:
            return ended.result
        except (OSError, HelperError, HoldError) as error:
            return refuse("failed", f"no snapshot: {error}").result
        finally:
            await freeze.release()
        text = f"{made.file.path}"
        return StepResult(next=Next.CONTINUE, result="taken", detail=text, undo={"snapshot": text})

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """What was cut off is incomplete: delete it and take another."""
        path = context.record.journal.get("snapshot")
        if isinstance(path, str):
            clone.discard_unfinished(path)
        return await self.run(context, step)

    async def _take(
        self, context: ActionContext, target: Target, image: ImageFile, path: str, freeze: Freeze
    ) -> clone.Clone:
        await clone.check_room(image, context.settings, shared=True)
        superblock = target.superblock
        if superblock is None:
            return await _share_or_copy(context, image, path)
        stopped = {"emergency_ro", "shutdown"} & set(
            context.inventory.current_options(superblock) or ()
        )
        if stopped:
            return await _share_or_copy(context, image, path)
        await freeze.prepare()
        await context.journal(frozen=freeze_mark(superblock))
        holds = ve_freeze.can_freeze(target.ve)
        tasks = ve_freeze.tasks_held(context, target.ve, _FREEZE_S) if holds else nullcontext()
        async with tasks:
            try:
                await freeze.hold(context.inventory, superblock, _FREEZE_S)
                return await clone.share(image, path)
            except CannotFreezeError as error:
                raise refuse("failed", f"writers cannot be held: {error}") from None
            except clone.NotShareableError:
                text = "the host filesystem cannot share blocks; a copy would hold writers too long"
                raise refuse("refused", text) from None
            finally:
                await freeze.thaw()


def snapshot_path(image: ImageFile, incident_id: str) -> str:
    """Where a snapshot for an incident is kept; the time tells several apart."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"{image.path}.snapshot-{incident_id}-{stamp}"


async def _share_or_copy(context: ActionContext, image: ImageFile, path: str) -> clone.Clone:
    try:
        return await clone.share(image, path)
    except clone.NotShareableError:
        await clone.check_room(image, context.settings, shared=False)
        return await clone.copy(image, path)
