"""What a person says of an incident, that it is over, is asked of what it is about."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fswatchd.book import IncidentBook
from fswatchd.errors import ConflictError, RefusedError
from fswatchd.events import DEVICE_CLASSES, printable
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import BlockDevice
from fswatchd.inventory.ownership import served_from
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block
from fswatchd.kernel.patience import Patience
from fswatchd.repair import verify
from fswatchd.sources.state import StateSource

_READ_TIMEOUT_S = 10.0
_MOST_ASKED = 16
_patience = Patience()
_BUSY = {State.ACTING, State.VERIFYING}


class SaidWell:
    """`fswatch ack --recovered`."""

    def __init__(
        self,
        book: IncidentBook,
        inventory: Inventory,
        state: StateSource,
        *,
        forget_volume: Callable[[str], None],
        poke: Callable[[str], None],
        device_fault: Callable[[BlockDevice], Awaitable[str | None]],
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._state = state
        self._forget_volume = forget_volume
        self._poke = poke
        self._device_fault = device_fault

    async def recovered(self, incident: Incident, by: str, said: str) -> Incident:
        """`by` says that what this incident is about is well again.

        What its device has reported until now counts no more, which is asked first; a filesystem on
        it that is well ends its incident with that, and what else is wrong is decided anew. Where
        no device was to blame the filesystem is asked, and where it is mounted nowhere nobody.
        Raises ConflictError, RefusedError with what they say.
        """
        known, view = incident.filesystem, self._inventory.view
        if known.server is not None:
            await self._require_answers(known.fstype or "", known.server)
        of_device = incident.device_errors or incident.classes & DEVICE_CLASSES
        asked = of_device or view.attached(known) is None
        devices = _own_devices(view, incident) if asked else []
        for device in devices:
            fault = await self._device_fault(device)
            if fault is None and not await can_be_read(f"/dev/{device.name}"):
                fault = "a read at its begin or end fails"
            if fault is not None:
                raise RefusedError(
                    f"/dev/{device.name} has not recovered: {fault}",
                    code="FSW-REFUSED-DEVICE",
                )
        now = self._inventory.view  # it may have been mounted again meanwhile
        superblock = now.attached(known) or now.successor(known, incident.direct_ves)
        unwell: object = superblock is not None and (
            self._state.errors(superblock.devno)
            or await verify.healthy(self._inventory, self._state, superblock)
        )
        if unwell and superblock is not None and not devices:
            raise RefusedError(
                f"/dev/{superblock.device} has not recovered: {unwell}",
                hint=f"fswatch repair {superblock.device} --dry-run shows what a repair would do",
                code="FSW-REFUSED-UNWELL",
            )
        current = self._book.get(incident.incident_id)
        if current is None or current.state in _BUSY or current.recent != incident.recent:
            raise ConflictError(
                f"{incident.incident_id} goes on: another error, or a repair",
                hint=f"fswatch incident {incident.incident_id}",
                code="FSW-CONFLICT-GOES-ON",
            )
        current = replace(current, acknowledged_by=by)
        if not unwell:
            if superblock is None:
                # Nobody was asked: what its next mount says is news.
                self._forget_volume(known.volume_key)
            return self._book.close(current, Outcome.RECOVERED, said)
        current = replace(current, state=State.OPEN, device_errors=0, device_since_ns=None)
        current = current.noted(time.time_ns(), said)
        self._book.put(current)
        self._poke(current.incident_id)
        return current

    async def _require_answers(self, fstype: str, server: str) -> None:
        """Ask what the node itself has mounted from it; what only VEs have nobody asks for them.

        Kernels tell the end of it only to whom has waited all the time (net/sunrpc/clnt.c), and
        SMB never: it may well be over. Raises RefusedError.
        """
        view = self._inventory.view
        points = [
            place.mount.point
            for remote in served_from(view, fstype, server)
            for place in remote.mounts
            if place.namespace == view.node_namespace and not place.unreached
        ]
        answers = await asyncio.gather(*map(_answers, points[:_MOST_ASKED]))
        for point, problem in zip(points, answers, strict=False):
            if problem is not None:
                raise RefusedError(
                    f"{printable(server)} has not recovered: {printable(point)}: {problem}",
                    hint="ask again when it answers; unmounting all that it serves ends it too",
                    code="FSW-REFUSED-UNWELL",
                )


async def _answers(point: str) -> str | None:
    """Why what is mounted there does not answer; None where it does."""
    try:
        await _patience.answer(f"what serves {point}", lambda: os.statvfs(point), _READ_TIMEOUT_S)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


async def can_be_read(path: str) -> bool:
    """Whether reads at both ends of a device succeed, in time."""
    try:
        await _patience.answer(path, lambda: block.read_ends(path), _READ_TIMEOUT_S)
    except OSError:
        return False
    return True


def _own_devices(view: NodeView, incident: Incident) -> list[BlockDevice]:
    """What the filesystem lies on, or the bare device; none where it is gone."""
    superblock = view.attached(incident.filesystem)
    if superblock is None:
        bare = view.bare_device(incident.filesystem)
        return [] if bare is None else [bare]
    members = superblock.members or (superblock.devno,)
    return [view.devices[one] for one in members if one in view.devices]
