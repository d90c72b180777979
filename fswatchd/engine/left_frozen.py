"""What is still frozen after the daemon should have thawed it, or an earlier run of it.

A thaw may fail: the filesystem cannot be opened, the platform does not answer. Then what is still
frozen stays written down, is shown in `status`, and is tried again. Not here: freezing (`freezer`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fswatchd.events import VeState
from fswatchd.helpers.client import HelperError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import VeId
from fswatchd.kernel import proc
from fswatchd.repair import freeze, ve_freeze
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

KEY = "frozen:"
_AGAIN_S = 30.0


class LeftFrozen:
    """See the module. `on_thawed` is called when others may go on."""

    def __init__(
        self, store: Store, inventory: Inventory, on_thawed: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._on_thawed = on_thawed
        self._left: dict[VeId, dict[str, Any]] = {}
        self._problems: dict[VeId, str] = {}
        self._one_at_a_time = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None

    def current(self) -> list[dict[str, Any]]:
        """For `status`."""
        return [
            {
                "ve": ve_id,
                "state": "left frozen",
                "by": "fswatchd",
                "reason": None,
                "since": None,
                "until": None,
                "tasks": left["frozen_cgroup"],
                "filesystems": [],
                "not_frozen": [],
                "problem": self._problems[ve_id],
            }
            for ve_id, left in self._left.items()
        ]

    def busy(self, ve_id: VeId) -> str | None:
        """What keeps others from acting on the VE."""
        return "left frozen by fswatchd" if ve_id in self._left else None

    async def recover(self) -> None:
        """Thaw what is written down; what cannot be thawed is tried again."""
        for key, left in (await self._store.facts(KEY)).items():
            if left["boot"] == proc.boot_id():
                ve_id = VeId(key.removeprefix(KEY))
                self._left[ve_id], self._problems[ve_id] = left, "not tried yet"
                await self.thaw(ve_id)
            else:
                self._store.set_fact(key, None)
        if self._left:
            await self._inventory.refresh()
            self._begin()

    async def take_over(self, ve_id: VeId, problem: str) -> None:
        """What this run could not thaw."""
        left = (await self._store.facts(KEY + ve_id)).get(KEY + ve_id)
        if left is not None:
            self._left[ve_id], self._problems[ve_id] = left, problem
            self._begin()

    def _begin(self) -> None:
        if self._again is None or self._again.done():
            self._again = asyncio.create_task(self._try_again())

    async def close(self) -> None:
        """Try no more; the next start does."""
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)

    async def thaw(self, ve_id: VeId) -> str | None:
        """Thaw what is left of a VE's; why it is still frozen, None where it is not."""
        async with self._one_at_a_time:
            left = self._left.get(ve_id)
            if left is None:
                return None
            marks, problems = await self._thaw_filesystems(left["marks"])
            left = {**left, "marks": marks}
            if await self._tasks_run(ve_id, left):
                # What somebody else freezes from now on is not ours.
                left |= {"frozen_cgroup": None, "thaw_command": []}
            else:
                problems.append("its processes do not run again")
            self._keep(ve_id, left, problems)
            return "; ".join(problems) or None

    def _keep(self, ve_id: VeId, left: dict[str, Any], problems: list[str]) -> None:
        if not problems:
            del self._left[ve_id], self._problems[ve_id]
            self._store.set_fact(KEY + ve_id, None)
            return
        why = "; ".join(problems)
        if self._problems[ve_id] != why:
            log.error("%s is still frozen by fswatchd: %s", ve_id, why)
        if self._left[ve_id] != left:
            self._store.set_fact(KEY + ve_id, left)
        self._left[ve_id], self._problems[ve_id] = left, why

    async def _thaw_filesystems(self, marks: list[Any]) -> tuple[list[Any], list[str]]:
        """The outermost first; returns what is left, and why."""
        left: list[Any] = []
        problems: list[str] = []
        for marked in reversed(marks):
            try:
                device = await freeze.thaw_marked(self._inventory, marked)
                if device is not None:
                    log.warning("thawed %s, left frozen", device)
            except (OSError, HelperError) as error:
                left.insert(0, marked)
                problems.append(f"a filesystem cannot be thawed: {error}")
        return left, problems

    async def _tasks_run(self, ve_id: VeId, left: dict[str, Any]) -> bool:
        return await ve_freeze.thaw_journaled(left) or self._was_ended(ve_id, left)

    def _was_ended(self, ve_id: VeId, left: dict[str, Any]) -> bool:
        """Whether the processes that were frozen have ended, or somebody has let them go on: a
        platform refuses to resume what is not suspended.

        A platform that does not list it may not answer yet. What an agent has frozen inside of a
        guest its platform does not show.
        """
        init, started = left.get("init"), left.get("started")
        if init is not None and not proc.is_alive(init, started):
            return True
        ve = self._inventory.view.ves.get(ve_id)
        if ve is None:
            return False
        if started is not None and ve.init_started not in {None, started}:
            return True
        if any("fs" in word for word in left.get("thaw_command") or ()):
            return False
        return ve.guest and ve.state is not VeState.FROZEN

    async def _try_again(self) -> None:
        while self._left:
            await asyncio.sleep(_AGAIN_S)
            try:
                await self._inventory.refresh()
                for ve_id in list(self._left):
                    await self.thaw(ve_id)
                await self._on_thawed()
            except Exception:  # a task border: a VE must not stay frozen because of another one
                log.exception("cannot thaw what an earlier run has frozen")
