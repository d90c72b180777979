"""Hold a whole VE: its processes first, then its filesystems, innermost first.

In the other order a writer that waits for the filesystem cannot be stopped, and a filesystem in an
image could not be flushed to the one that the image is on. Each part has a guard process that
undoes it at its deadline and when the daemon dies.
"""

from __future__ import annotations

import asyncio
import errno
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fswatchd import process
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import cgroup
from fswatchd.repair.freeze import CannotFreezeError, Freeze
from fswatchd.steps import ActionContext, Next, StepEnded, refuse

_MODULE = "fswatchd.helpers.task_guard"
_ANSWER_S = 10.0
_COMMAND_S = 20.0
_THAW_S = 30.0
_CGROUP_S = 5.0
# What FIFREEZE says of a filesystem that the kernel has stopped already, or that has no freeze.
_NOT_NEEDED = {
    errno.EROFS: "the kernel has stopped writes",
    errno.EIO: "the kernel has stopped it",
    errno.EOPNOTSUPP: "it cannot be frozen",
}


class HoldError(Exception):
    """Something could not be frozen; nothing is frozen by us any more."""


class TaskFreeze:
    """The processes of one VE, from `hold` to `thaw`. Use once."""

    def __init__(self) -> None:
        self._guard = Helper(_MODULE)
        self._ve: Ve | None = None

    async def hold(self, ve: Ve, deadline_s: float) -> str:
        """Freeze in the platform's way, else by the cgroup; returns how. Raises HoldError."""
        if not can_freeze(ve):
            raise HoldError(f"{ve.ve_id} has neither a freeze command nor a cgroup that is known")
        try:
            arm = {"op": "arm", "deadline_s": deadline_s, **describe_tasks(ve)}
            await self._guard.request(arm, timeout_s=_ANSWER_S)
        except (HelperError, OSError) as error:
            await self._guard.close(kill=True)
            raise HoldError(f"nobody would thaw it: {error}") from None
        self._ve = ve
        try:
            problem = await freeze_tasks(ve)
        except BaseException:
            await self.thaw()
            raise
        if problem is not None:
            await self.thaw()
            raise HoldError(problem)
        return shlex.join(ve.commands.freeze) or f"cgroup {ve.cgroup}"

    async def still_held(self) -> bool:
        """Whether nobody has let them go meanwhile, as far as their cgroup tells."""
        if self._ve is None:
            return False
        group = _group(self._ve)
        return group is None or await asyncio.to_thread(cgroup.is_frozen, group)

    async def thaw(self) -> bool:
        """Let them run; False where they do not. Thawing twice is nothing."""
        ve, self._ve = self._ve, None
        if ve is None:
            await self._guard.close()
            return True
        with suppress(HelperError, OSError):
            answer, _ = await self._guard.request({"op": "thaw"}, timeout_s=_THAW_S, start=False)
            if answer["runs"]:
                await self._guard.close()
                return True
        # A guard that ended properly, at its deadline, has thawed; one that was killed has not.
        if await self._guard.close() == 0:
            return True
        return await thaw_journaled(describe_tasks(ve))


@asynccontextmanager
async def tasks_held(context: ActionContext, ve: Ve, deadline_s: float) -> AsyncIterator[None]:
    """Nothing of the VE runs meanwhile; what was frozen before stays so.

    Raises HoldError, or StepEnded where they do not run again.
    """
    if ve.cgroup is not None and await asyncio.to_thread(cgroup.is_frozen, ve.cgroup):
        yield
        return
    tasks = TaskFreeze()
    await context.journal(**describe_tasks(ve))
    await tasks.hold(ve, deadline_s)
    try:
        yield
    finally:
        if not await tasks.thaw():
            raise refuse("not thawed", f"the tasks of {ve.ve_id} do not run again", Next.OPERATOR)
        await context.journal(frozen_cgroup=None, thaw_command=[])


class VeFreeze:
    """One VE and filesystems of it, from `hold` to `thaw`. Use once."""

    def __init__(self) -> None:
        self._tasks = TaskFreeze()
        self._held: list[tuple[Superblock, Freeze]] = []
        self.how = ""  # the command or the cgroup by which the processes are held

    @property
    def filesystems(self) -> list[Superblock]:
        """Those that were frozen."""
        return [superblock for superblock, _ in self._held]

    async def hold(
        self, inventory: Inventory, ve: Ve, found: Sequence[Superblock], deadline_s: float
    ) -> dict[str, str]:
        """Freeze all, for `deadline_s` at the most; returns device → why it needs none.

        Raises HoldError after undoing what was done.
        """
        left: dict[str, str] = {}
        self.how = await self._tasks.hold(ve, deadline_s)
        try:
            for superblock in innermost_first(inventory.view, found):
                freeze = Freeze()
                self._held.append((superblock, freeze))
                try:
                    await freeze.hold(inventory, superblock, deadline_s)
                except CannotFreezeError as error:
                    del self._held[-1]
                    if error.code not in _NOT_NEEDED:
                        raise
                    left[superblock.device] = _NOT_NEEDED[error.code]
        except (CannotFreezeError, HelperError, OSError) as error:
            device = superblock.device
            problems = await self.thaw()
            raise HoldError("; ".join([f"{device} cannot be frozen: {error}", *problems])) from None
        except BaseException:
            await self.thaw()
            raise
        return left

    async def still_held(self) -> bool:
        """Whether nobody has thawed any part of it."""
        if not await self._tasks.still_held():
            return False
        return all([await freeze.still_held() for _, freeze in self._held])

    async def thaw(self) -> list[str]:
        """Undo all, the outermost filesystem first; returns what could not be undone."""
        problems = []
        for _, freeze in reversed(self._held):
            try:
                await freeze.release()
            except StepEnded as ended:
                problems.append(ended.result.detail)
        self._held = []
        if not await self._tasks.thaw():
            problems.append("its processes do not run again")
        return problems


def innermost_first(view: NodeView, found: Sequence[Superblock]) -> list[Superblock]:
    """What lies in an image before what the image is on: it has more beneath it."""
    return sorted(found, key=lambda one: len(view.beneath(one.devno)), reverse=True)


def can_freeze(ve: Ve) -> bool:
    """Whether its processes can be frozen, and thawed again."""
    if ve.commands.freeze:
        return bool(ve.commands.thaw)
    return ve.cgroup is not None


def describe_tasks(ve: Ve) -> dict[str, Any]:
    """For a journal: what `thaw_journaled` needs."""
    command = ve.commands.thaw if ve.commands.freeze else ()
    return {"frozen_cgroup": _group(ve), "thaw_command": list(command)}


def _group(ve: Ve) -> str | None:
    """The cgroup that shows whether it is frozen; not that of the program which runs a guest."""
    return None if ve.guest and ve.commands.freeze else ve.cgroup


async def thaw_journaled(journal: Mapping[str, Any]) -> bool:
    """Let the processes run that a journal says were frozen; whether they do."""
    group, command = journal.get("frozen_cgroup"), journal.get("thaw_command") or ()
    if group is None and not command:
        return True
    return await thaw_tasks(group, command)


async def thaw_tasks(group: str | None, command: Sequence[str]) -> bool:
    """Let the processes of a VE run, without their guard; whether they do."""
    succeeded = group is not None
    if command:
        try:
            succeeded = (await process.run(command, timeout_s=_COMMAND_S)).succeeded
        except process.ProcessError:
            succeeded = False
    if group is None:
        return succeeded
    if await asyncio.to_thread(cgroup.is_frozen, group):
        return await asyncio.to_thread(cgroup.thaw, group, _CGROUP_S)
    return True


async def freeze_tasks(ve: Ve) -> str | None:
    """Stop the VE's processes; None, or what went wrong: then the caller has to thaw."""
    if not ve.commands.freeze:
        if await asyncio.to_thread(cgroup.freeze, ve.cgroup or "", _CGROUP_S):
            return None
        return f"{ve.ve_id} did not freeze within {_CGROUP_S:.0f} s and runs again"
    try:
        done = await process.run(ve.commands.freeze, timeout_s=_COMMAND_S)
    except process.ProcessError as error:
        return error.message
    if not done.succeeded:
        return done.describe()
    group = _group(ve)
    if group is not None and not await asyncio.to_thread(cgroup.is_frozen, group):
        return f"{done.describe()}, but {ve.ve_id} still runs"
    return None
