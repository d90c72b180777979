"""`fswatch freeze VE` and `thaw VE`: a whole VE held for a bounded time.

Only processes and filesystems that are the VE's alone. What is about to be frozen is on the disk
first, so that the next start thaws what the guards (killed with the daemon) could not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fswatchd import guards, views
from fswatchd.book import IncidentBook
from fswatchd.engine.arming import Arming
from fswatchd.engine.decider import Decider
from fswatchd.engine.left_frozen import KEY, LeftFrozen
from fswatchd.engine.operations import Operations
from fswatchd.errors import ConflictError, RefusedError
from fswatchd.events import Domain, VeState
from fswatchd.incidents import Filesystem, State
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve, VeId
from fswatchd.kernel import cgroup, proc
from fswatchd.repair import freeze, ve_control, ve_freeze
from fswatchd.repair.ve_freeze import HoldError, VeFreeze
from fswatchd.store.store import Store
from fswatchd.units import show_duration

log = logging.getLogger(__name__)

USUAL_S = 60.0
_LONGEST_S = 3600.0


@dataclass(slots=True, kw_only=True)
class _Frozen:
    ve: Ve
    hold: VeFreeze
    document: dict[str, Any]
    timer: asyncio.Task[None] | None = None
    ending: asyncio.Task[list[str]] | None = None


class Freezer:
    """See the module. What it holds is `busy` for everybody else (`seen`)."""

    def __init__(
        self,
        store: Store,
        book: IncidentBook,
        inventory: Inventory,
        decider: Decider,
        arming: Arming,
        operations: Operations,
    ) -> None:
        self._store = store
        self._book = book
        self._inventory = inventory
        self._decider = decider
        self._arming = arming
        self._operations = operations
        self._frozen: dict[VeId, _Frozen] = {}
        self._busy: dict[VeId, str] = {}
        self._timers: set[asyncio.Task[None]] = set()
        self._left = LeftFrozen(store, inventory, self._let_others_go_on)
        inventory.adjust.append(self.seen)

    # --- what others see ------------------------------------------------------------------------

    def current(self) -> list[dict[str, Any]]:
        """What is frozen now, for `status`."""
        return [frozen.document for frozen in self._frozen.values()] + self._left.current()

    def seen(self, ve: Ve) -> Ve:
        """The VE for the inventory: what is held here, nobody else acts on."""
        text = self._busy.get(ve.ve_id) or self._left.busy(ve.ve_id)
        return ve if text is None else replace(ve, busy=ve.busy or text)

    def held(self, ve_id: VeId) -> VeFreeze | None:
        """The freeze of a VE that root has frozen."""
        found = self._frozen.get(ve_id)
        return found.hold if found else None

    @asynccontextmanager
    async def reserved(self, ve_id: VeId, text: str) -> AsyncIterator[None]:
        """Nobody begins anything with the VE meanwhile."""
        before = self._busy.get(ve_id)
        self._busy[ve_id] = before or text
        try:
            await self._inventory.refresh()
            yield
        finally:
            frozen = self._frozen.get(ve_id)
            if frozen is not None:
                document = frozen.document
                self._busy[ve_id] = f"frozen by {document['by']} until {document['until']}"
            else:
                self._busy.pop(ve_id, None)
            await self._inventory.refresh()

    def refuse_while_repaired(self, ve_id: VeId) -> None:
        """Raise ConflictError while a plan works on the VE."""
        for incident in self._book.open_incidents():
            if incident.state is State.ACTING and ve_id in incident.direct_ves:
                raise ConflictError(
                    f"{incident.incident_id} is being repaired on {ve_id}",
                    code="FSW-CONFLICT-REPAIR",
                )

    def why_not(self, filesystem: Filesystem, ves: tuple[str, ...]) -> str | None:
        """Why this filesystem is never held or copied by us; what its VE is busy with is not asked.

        What the node or the daemon itself works on is none of a VE's: both would wait for the thaw.
        """
        incident = self._book.new(filesystem, Domain.DAMAGE, ves)
        scope = self._decider.scope(incident)
        idle = tuple(replace(one, busy=None) for one in scope.ves)
        return guards.refused_scope(replace(scope, ves=idle))

    # --- requests -------------------------------------------------------------------------------

    async def freeze(self, text: str, by: str, reason: str, for_s: float) -> dict[str, Any]:
        """Freeze a VE for `for_s` at the most; returns what `status` shows of it.

        Raises ValueError for a time that is too long or none.
        """
        if not 0 < for_s <= _LONGEST_S:
            longest = show_duration(_LONGEST_S)
            raise ValueError(f"a VE can be frozen for more than nothing and {longest} at the most")
        ve = lookup.find_ve(self._inventory.view, text)
        busy = self._busy.get(ve.ve_id) or self._left.busy(ve.ve_id)
        if busy is not None:
            raise ConflictError(f"{ve.ve_id}: {busy}", code="FSW-CONFLICT-BUSY")
        async with self.reserved(ve.ve_id, f"{by} freezes it"):
            now = lookup.find_ve(self._inventory.view, ve.ve_id)
            ve = replace(now, busy=None) if now.busy == self._busy[ve.ve_id] else now
            await self._refuse(ve)
            frozen = await self._hold(ve, by, reason, for_s)
            frozen.timer = asyncio.create_task(self._end_in_time(ve.ve_id, for_s))
            self._timers.add(frozen.timer)
            frozen.timer.add_done_callback(self._timers.discard)
            until = frozen.document["until"]
            self._operations.record("freeze", ve.ve_id, by, reason, f"frozen until {until}")
        return frozen.document

    async def thaw(self, text: str, by: str, reason: str) -> dict[str, Any]:
        """Thaw a VE that `freeze` has frozen."""
        ve = lookup.find_ve(self._inventory.view, text)
        frozen = self._frozen.get(ve.ve_id)
        if frozen is None and self._left.busy(ve.ve_id) is not None:
            return await self._thaw_left(ve.ve_id, by, reason)
        if frozen is None:
            hint = "only what fswatch freeze has frozen is thawed; others may rely on their freeze"
            raise ConflictError(
                f"{ve.ve_id} is not frozen by fswatchd", hint=hint, code="FSW-CONFLICT-NOT-FROZEN"
            )
        if frozen.timer is not None:
            frozen.timer.cancel()
        held = await frozen.hold.still_held()
        problems = await self._end(ve.ve_id)
        await self._let_others_go_on()
        result = "; ".join(problems) or ("thawed" if held else "it was thawed before, in part")
        self._operations.record("thaw", ve.ve_id, by, reason, result)
        if problems:
            raise RefusedError(
                f"{ve.ve_id}: {result}", hint="see fsfreeze(8)", code="FSW-REFUSED-THAW"
            )
        return {"ve": ve.ve_id, "state": "thawed", "held": held, "problem": None}

    async def _thaw_left(self, ve_id: VeId, by: str, reason: str) -> dict[str, Any]:
        problem = await self._left.thaw(ve_id)
        await self._let_others_go_on()
        self._operations.record("thaw", ve_id, by, reason, problem or "thawed")
        if problem is not None:
            raise RefusedError(
                f"{ve_id}: {problem}", hint="see fsfreeze(8)", code="FSW-REFUSED-THAW"
            )
        return {"ve": ve_id, "state": "thawed", "held": True, "problem": None}

    # --- life -----------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Thaw what an earlier run has left frozen."""
        await self._left.recover()

    async def close(self) -> None:
        """Thaw everything: the daemon ends."""
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        for ve_id in list(self._frozen):
            problems = await self._end(ve_id)
            result = "; ".join(problems) or "thawed, the daemon ended"
            self._operations.record("thaw", ve_id, "fswatchd", "", result)
        await self._left.close()  # it takes over what cannot be thawed here: the next start does

    async def _refuse(self, ve: Ve) -> None:
        why = self._arming.why_disarmed((ve.ve_id,))
        if why is not None:
            raise RefusedError(why, hint="fswatch arm ends that", code="FSW-REFUSED-DISARMED")
        if ve.hands_off:
            raise RefusedError(
                "it belongs to a drill that another daemon handles", code="FSW-REFUSED-DRILL"
            )
        if ve.busy:
            raise ConflictError(f"{ve.ve_id} is busy: {ve.busy}", code="FSW-CONFLICT-BUSY")
        self.refuse_while_repaired(ve.ve_id)
        if not ve_control.is_running(ve):
            raise ConflictError(f"{ve.ve_id} does not run", code="FSW-CONFLICT-STOPPED")
        members = await asyncio.to_thread(ve_control.tasks, ve)
        members += await asyncio.to_thread(cgroup.pids, ve.cgroup) if ve.cgroup else []
        if {1, os.getpid()} & set(members) or ve.namespace == self._inventory.view.node_namespace:
            raise RefusedError(
                f"the processes of {ve.ve_id} include the node's own", code="FSW-REFUSED-NODE"
            )
        for other in self._inventory.view.ves.values():
            if other.ve_id != ve.ve_id and other.init_pid in members:
                raise RefusedError(
                    f"{other.ve_id} would be frozen with {ve.ve_id}", code="FSW-REFUSED-SHARED"
                )
        frozen = ve.state is VeState.FROZEN
        if ve.cgroup is not None and not frozen:
            frozen = await asyncio.to_thread(cgroup.is_frozen, ve.cgroup)
        if frozen:
            raise ConflictError(
                f"{ve.ve_id} is frozen already, and not by fswatchd", code="FSW-CONFLICT-FROZEN"
            )

    async def _hold(self, ve: Ve, by: str, reason: str, for_s: float) -> _Frozen:
        view = self._inventory.view
        mine: list[Superblock] = []
        left: dict[str, str] = {}
        for superblock in view.superblocks_of(ve.ve_id):
            why = self.why_not(view.describe(superblock), view.users[superblock.devno].ves)
            if why is None:
                mine.append(superblock)
            else:
                left[superblock.device] = why
        now = time.time_ns()
        journal = {
            "boot": proc.boot_id(),
            "init": ve.init_pid,
            "started": ve.init_started,
            "marks": [freeze.mark(superblock) for superblock in mine],
            **ve_freeze.describe_tasks(ve),
        }
        await self._store.set_fact(KEY + ve.ve_id, journal, durable=True)
        hold = VeFreeze()
        try:
            left |= await hold.hold(self._inventory, ve, mine, for_s)
        except BaseException as error:
            self._store.set_fact(KEY + ve.ve_id, None)
            if not isinstance(error, HoldError):
                raise
            self._operations.record("freeze", ve.ve_id, by, reason, f"not frozen: {error}")
            raise ConflictError(f"not frozen: {error}", code="FSW-CONFLICT-FREEZE") from None
        document = {
            "ve": ve.ve_id,
            "state": "frozen",
            "by": by,
            "reason": reason or None,
            "since": views.timestamp(now),
            "until": views.timestamp(now + int(for_s * guards.NS)),
            "tasks": hold.how,
            "filesystems": [
                {"device": one.device, "devno": str(one.devno)} for one in hold.filesystems
            ],
            "not_frozen": [{"device": device, "why": why} for device, why in left.items()],
            "problem": None,
        }
        frozen = self._frozen[ve.ve_id] = _Frozen(ve=ve, hold=hold, document=document)
        return frozen

    async def _end_in_time(self, ve_id: VeId, for_s: float) -> None:
        await asyncio.sleep(for_s)
        problems = await self._end(ve_id)
        await self._let_others_go_on()
        result = "; ".join(problems) or "thawed, its time was over"
        self._operations.record("thaw", ve_id, "fswatchd", "", result)
        if problems:
            log.error("%s: %s", ve_id, result)

    async def _end(self, ve_id: VeId) -> list[str]:
        """Thaw, once, whoever asks for it and whoever stops waiting for it."""
        frozen = self._frozen.get(ve_id)
        if frozen is None:
            return []
        if frozen.ending is None:
            frozen.ending = asyncio.create_task(self._thaw(ve_id, frozen))
        return await asyncio.shield(frozen.ending)

    async def _thaw(self, ve_id: VeId, frozen: _Frozen) -> list[str]:
        problems = await frozen.hold.thaw()
        del self._frozen[ve_id]
        self._busy.pop(ve_id, None)
        if problems:
            await self._left.take_over(ve_id, "; ".join(problems))
        else:
            self._store.set_fact(KEY + ve_id, None)
        return problems

    async def _let_others_go_on(self) -> None:
        await self._inventory.refresh()
        self._decider.poke_all()
