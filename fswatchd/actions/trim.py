"""`trim`: give the room of deleted files back to the thin image or device beneath.

Through a descriptor on a detached mount of the VE's superblock, as the write probe of a repair.
What a filesystem says is free is thrown away: where an error is recorded it is not believed.
"""

from __future__ import annotations

import asyncio
import errno
import os

from fswatchd.helpers.client import HelperError
from fswatchd.kernel import fs
from fswatchd.repair import condition, scope
from fswatchd.repair.condition import Condition
from fswatchd.repair.scope import Target
from fswatchd.rules.model import Step
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse
from fswatchd.units import show_size


class TrimAction:
    """See the module."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """See Action."""
        del step
        try:
            return await self._trim(context)
        except StepEnded as ended:
            return ended.result
        except (OSError, HelperError, TimeoutError) as error:
            return refuse("failed", f"cannot trim: {error or type(error).__name__}").result

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Trimming again finds what is free now."""
        return await self.run(context, step)

    async def _trim(self, context: ActionContext) -> StepResult:
        target = await scope.resolve(context, any_type=True)
        superblock = target.superblock
        if superblock is None:
            raise refuse("refused", "it is not mounted")
        await require_sound(context, target)
        before = _allocated(target)
        async with context.inventory.opened(superblock) as mount:
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            told = await asyncio.to_thread(fs.trim, directory)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise refuse("refused", f"{superblock.device} cannot give room back") from None
            raise
        finally:
            os.close(directory)
        text = f"{show_size(told)} free in the filesystem"
        if before is not None and (after := _allocated(target)) is not None:
            text += f", {show_size(max(before - after, 0))} given back by its image"
        return StepResult(next=Next.CONTINUE, result="trimmed", detail=text)


async def require_sound(context: ActionContext, target: Target) -> None:
    """The filesystem takes writes and has recorded no error. Raises StepEnded."""
    superblock = target.superblock
    if superblock is None:
        raise refuse("refused", "it is not mounted")
    state = await condition.of(context.inventory, superblock)
    if state is not Condition.WRITABLE or "ro" in (
        context.inventory.current_options(superblock) or ()
    ):
        raise refuse("refused", f"{superblock.device} takes no writes")
    context.state.check(superblock.devno)
    if errors := context.state.errors(superblock.devno):
        raise refuse("refused", f"{errors} errors are recorded: what it says is free may not be so")


def _allocated(target: Target) -> int | None:
    """Bytes that the image takes on its host filesystem."""
    if target.image is None:
        return None
    return os.stat(target.image.path).st_blocks * 512
