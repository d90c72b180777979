"""Ends incidents when facts prove that they are over, and says so when they are not.

A condition is never cleared by time alone: after a repair the healthy period must pass without an
event and end with a write that succeeds; without one, the state of the kernel must be clean.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from fswatchd import views
from fswatchd.book import IncidentBook
from fswatchd.engine.history import boottime_ns
from fswatchd.engine.mounted_again import (
    has_another,
    is_known,
    is_put_down,
    is_unnamed,
    moved,
    taken_up,
    unmounted,
)
from fswatchd.engine.said_well import can_be_read
from fswatchd.engine.substrate import is_multipath
from fswatchd.events import Domain, EventClass, Health, names_filesystem, printable
from fswatchd.incidents import UNDECIDED, Incident, Outcome, State, StepState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import BlockDevice, Superblock
from fswatchd.inventory.ownership import served_from
from fswatchd.inventory.view import describe
from fswatchd.kernel import block
from fswatchd.repair import verify
from fswatchd.sources.state import StateSource

log = logging.getLogger(__name__)

_SWEEP_S = 2.0
_MISSING_S = 5.0
# Boots of whole nodes take as long before their last VE is started.
_COMES_BACK_S = 600.0
_DEVICE_QUIET_S = 600.0
NS = 1_000_000_000
# Classes and sources of what is read of a device that a filesystem rests on.
_OF_DEVICE = frozenset({EventClass.IO_ERROR, EventClass.READONLY, EventClass.DEGRADED})
_TELL_OF_THEMSELVES = frozenset({EventClass.DEGRADED, EventClass.SPACE})
# What a mount that succeeds, and can be written, makes an end of.
_STOPS = frozenset({EventClass.SHUTDOWN, EventClass.READONLY, EventClass.MOUNT_FAILURE})
_READ_OF_DEVICE = frozenset({"state", "uevent"})


class Closer:
    """Sweeps the open incidents."""

    def __init__(
        self,
        book: IncidentBook,
        inventory: Inventory,
        state: StateSource,
        *,
        forget_volume: Callable[[str], None],
        poke: Callable[[str], None],
        has_room: Callable[[Superblock], Awaitable[bool | None]],
        device_fault: Callable[[BlockDevice], Awaitable[str | None]],
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._state = state
        self._forget_volume = forget_volume
        self._poke = poke
        self._has_room = has_room
        self._device_fault = device_fault
        self._wake = asyncio.Event()
        self._missing: dict[str, float] = {}
        # Incident and attempt → when it was first seen verifying (CLOCK_MONOTONIC, ns). In memory
        # only: the clock of an earlier boot means nothing, and each repair has a period of its own.
        self._verifying_since: dict[tuple[str, int], int] = {}

    def wake(self) -> None:
        """Look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            incidents = self._book.open_incidents()
            now = {(incident.incident_id, incident.attempts) for incident in incidents}
            self._verifying_since = {k: v for k, v in self._verifying_since.items() if k in now}
            ids = {incident.incident_id for incident in incidents}
            self._missing = {k: v for k, v in self._missing.items() if k in ids}
            for incident in incidents:
                try:
                    self._take_up(incident.incident_id)
                    await self._look_at(incident.incident_id)
                except Exception:  # a task border: one incident must not stop the others
                    log.exception("cannot look after %s", incident.incident_id)
            self._wake.clear()
            try:
                async with asyncio.timeout(self._next_sweep_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def event_joined(self, incident_id: str) -> None:
        """An event has joined an incident: during the healthy period that is a relapse."""
        incident = self._book.get(incident_id)
        if incident is not None and incident.state is State.VERIFYING and incident.confirmed:
            now = time.time_ns()
            relapsed = replace(incident, state=State.NEEDS_OPERATOR)
            self._book.put(relapsed.noted(now, "it failed again within its healthy period"))

    def _next_sweep_s(self) -> float:
        verifying = [
            one
            for one in self._book.open_incidents()
            if one.state is State.VERIFYING and one.incident_id not in self._missing
        ]
        if not verifying:
            return _SWEEP_S
        due = min(self._verified_until_ns(incident) for incident in verifying)
        return min(max((due - time.monotonic_ns()) / NS, 0.05), _SWEEP_S)

    def _verified_until_ns(self, incident: Incident) -> int:
        key = (incident.incident_id, incident.attempts)
        since = self._verifying_since.setdefault(key, time.monotonic_ns())
        return since + int(incident.healthy_s * NS)

    def _present(self, seen: Incident) -> Incident | None:
        """The undecided incident as it is now; None where it went on since it was `seen`.

        A write probe takes seconds: a repair may have begun, or an error been met, meanwhile.
        """
        now = self._book.get(seen.incident_id)
        if now is None or not {now.state, seen.state} <= UNDECIDED:
            return None
        same = (now.recent, now.requested_by) == (seen.recent, seen.requested_by)
        return now if same else None

    async def _look_at(self, incident_id: str) -> None:
        incident = self._book.get(incident_id)
        if incident is None:
            return  # it was closed while others were looked at
        if incident.state is State.VERIFYING:
            await self._verify(incident)
        elif incident.filesystem.server is not None:
            self._look_for_mounts(incident)
        elif incident.state in UNDECIDED:
            if incident.waiting_for == "mount" and self._superblock(incident) is not None:
                self._poke(incident.incident_id)
            if (
                incident.cause is not None
                and not incident.cause_is_over
                and self._superblock(incident) is not None
            ):
                return  # it ends first
            if incident.domain not in {Domain.DAMAGE, Domain.SPACE}:
                return
            if (device := self._bare_device(incident)) is not None:
                await self._look_at_device(incident, device)
            elif _still_there(incident):
                return  # nothing rests on it for now; what is wrong with it is not over by that
            elif incident.domain is Domain.SPACE:
                await self._look_at_space(incident)
            elif self._had_no_room(incident):
                await self.look_after_room(incident.incident_id)
            elif not await self._recovered_with_its_device(incident):
                await self._look_for_recovery(incident)

    def _look_for_mounts(self, incident: Incident) -> None:
        """A server that nothing is mounted from any more cannot be missed by anybody."""
        known, view = incident.filesystem, self._inventory.view
        if not known.mountpoints or served_from(view, known.fstype or "", known.server):
            self._missing.pop(incident.incident_id, None)
            if _is_of_earlier_boot(incident) and known.mountpoints:
                # It has answered whoever has mounted it; what is lost since is said since.
                text = f"the node was booted since, and {printable(known.server or '')} is mounted"
                self._book.close(incident, Outcome.RECOVERED, text)
            return
        since = self._missing.setdefault(incident.incident_id, time.monotonic())
        if time.monotonic() - since >= _MISSING_S:
            text = f"nothing is mounted from {printable(known.server or '')} any more"
            self._book.close(incident, Outcome.DISMISSED, text)

    async def _verify(self, incident: Incident) -> None:
        if time.monotonic_ns() < self._verified_until_ns(incident):
            return
        superblock, device = self._superblock(incident), self._bare_device(incident)
        nowhere = superblock is None and device is None
        if nowhere and incident.incident_id not in self._missing:
            # A look that is under way has seen it, and does not know yet what it is (btrfs).
            await self._inventory.refresh()
            now = self._book.get(incident.incident_id)
            if now is None or now.state is not State.VERIFYING:
                return
            incident = now
            superblock = self._superblock(incident)
        if superblock is None and device is None:
            if _is_moved_away(incident):
                if self._successor(incident) is None:
                    text = "what it was about has been moved away, and is not mounted here any more"
                    self._book.close(incident, Outcome.DISMISSED, text)
                    return
            else:
                self._wait_for_its_mount(incident)
                return
        self._missing.pop(incident.incident_id, None)
        well = "a write succeeds"
        if superblock is not None:
            may_be_full = incident.domain is not Domain.SPACE
            unwell = await verify.healthy(
                self._inventory, self._state, superblock, may_be_full=may_be_full
            )
        elif device is not None and incident.domain is Domain.SPACE:
            # Room can be read of a device; that it will not report another error cannot.
            well = f"/dev/{device.name} has room again"
            unwell = await self._device_fault(device)
        else:
            unwell = "it is no longer mounted"
        current = self._book.get(incident.incident_id)
        if current is None or current.state is not State.VERIFYING:
            return
        if unwell is not None:
            self._relapse(current, unwell)
            return
        text = f"healthy for {incident.healthy_s:.0f} s, and {well}"
        self._book.close(current, Outcome.REPAIRED, text)
        self._end_what_that_was_about(current)

    def _end_what_that_was_about(self, repaired: Incident) -> None:
        """An earlier incident of the volume that needed an operator: somebody has seen to it."""
        for one in self._book.open_incidents():
            same = one.filesystem.is_volume_of(repaired.filesystem) or (
                one.filesystem.volume_key == repaired.filesystem.volume_key
                and not set(one.direct_ves).isdisjoint(repaired.direct_ves)
            )
            if same and one.state is State.NEEDS_OPERATOR and one.domain is repaired.domain:
                text = f"the volume was repaired: {repaired.incident_id}"
                self._book.close(one, Outcome.RECOVERED, text)

    def _wait_for_its_mount(self, incident: Incident) -> None:
        """A VE that was restarted, or a node after its boot: it is watched on where it is mounted.

        One that was stopped, however long, speaks neither for the repair nor against it.
        """
        successor = self._successor(incident)
        if successor is None:
            text = None
            if self._is_gone(incident) and not is_known(self._inventory, incident.ves):
                text = "it was repaired, and its VE is not known here any more"
            elif has_another(self._inventory.view, incident):
                text = f"it was repaired, and another filesystem is at {incident.filesystem.image}"
            if text is not None:
                self._forget_volume(incident.filesystem.volume_key)
                self._book.close(incident, Outcome.DISMISSED, text)
            return
        self._verifying_since.pop((incident.incident_id, incident.attempts), None)
        self._missing.pop(incident.incident_id, None)
        watched = replace(incident, filesystem=describe(successor))
        text = f"the volume was mounted again as {successor.device}, and is watched there"
        self._book.put(watched.noted(time.time_ns(), text))

    def waits_for_its_mount(self, incident: Incident) -> bool:
        """Whether it was repaired, and is mounted nowhere: nobody knows whether it ever is."""
        nowhere = self._superblock(incident) is None and self._bare_device(incident) is None
        return incident.state is State.VERIFYING and nowhere

    def _wait_for_its_ve(self, incident: Incident) -> None:
        if incident.filesystem.unmounted:
            return
        known = unmounted(incident.filesystem)
        text = f"{known.device} is mounted nowhere now; what is wrong with it is not over by that"
        self._book.put(replace(incident, filesystem=known).noted(time.time_ns(), text))
        self._poke(incident.incident_id)

    def _is_gone(self, incident: Incident) -> bool:
        """Whether it has been missing for longer than a boot takes."""
        since = self._missing.setdefault(incident.incident_id, time.monotonic())
        return time.monotonic() - since >= _COMES_BACK_S

    def _relapse(self, incident: Incident, why: str) -> None:
        relapsed = replace(incident, state=State.NEEDS_OPERATOR)
        self._book.put(relapsed.noted(time.time_ns(), f"not healthy after the repair: {why}"))

    async def _look_at_device(self, incident: Incident, device: BlockDevice) -> None:
        """A device is well when all that can be read of it is, and nothing else was said of it.

        Of what lines have said nobody knows for how long: it has to be quiet for long, and reads at
        both ends succeed. It may be quiet because nothing is asked of it any more; so it is asked.
        """
        if not incident.recent or await self._device_fault(device) is not None:
            return
        if _is_told_once(incident, [device]):
            return
        path = f"/dev/{incident.filesystem.device}"
        text = f"nothing is wrong with {path} any more"
        if incident.sources != ("state",):
            if incident.domain is Domain.SPACE:
                if _quiet_s(incident) <= incident.healthy_s:
                    return
            elif not self._is_quiet(incident) or not await can_be_read(path):
                return
            else:
                quiet = f"no error for {_DEVICE_QUIET_S / 60:.0f} minutes"
                text = f"{quiet}, and {path} can be read"
        if incident.domain is Domain.SPACE:
            text = "there is room again"
        if (current := self._present(incident)) is not None:
            self._book.close(current, Outcome.RECOVERED, text)

    async def _recovered_with_its_device(self, incident: Incident) -> bool:
        """Whether nothing was wrong with the filesystem but its device, and that is well again.

        Only what was read of the device has to be all there was: an error that the filesystem has
        met is counted, told by the kernel, or has stopped it.
        """
        superblock = self._superblock(incident)
        if superblock is None or not _is_only_of_device(incident):
            return False
        members = superblock.members or (superblock.devno,)
        below = {
            one for member in members for one in (member, *self._inventory.view.beneath(member))
        }
        known = self._inventory.view.devices
        devices = [known[one] for one in below if one in known]
        if _is_told_once(incident, devices):
            return False
        for device in devices:
            if await self._device_fault(device) is not None:
                return False
        if self._state.errors(superblock.devno):
            return False
        if await verify.healthy(self._inventory, self._state, superblock) is not None:
            return False
        if (current := self._present(incident)) is None:
            return False
        text = "nothing is wrong with its device any more, and a write succeeds"
        self._book.close(current, Outcome.RECOVERED, text)
        return True

    def _is_quiet(self, incident: Incident) -> bool:
        return _quiet_s(incident) > _DEVICE_QUIET_S

    def _had_no_room(self, incident: Incident) -> bool:
        return incident.cause_is_over and (incident.cause or {}).get("kind") == "space"

    async def look_after_room(self, incident_id: str) -> None:
        """What only waited for room goes on when there is some: facts and a write prove it."""
        incident = self._book.get(incident_id)
        if incident is None:
            return
        superblock = self._superblock(incident)
        unwell = superblock is None or await verify.healthy(
            self._inventory, self._state, superblock
        )
        if (current := self._present(incident)) is None:
            return
        if not unwell:
            text = "there is room again beneath it, and a write succeeds"
            if current.lost:
                text += f"; what was written meanwhile is lost: {views.lost(current.lost)}"
            else:
                text += "; what could not be written meanwhile is lost where the writer was told so"
            self._book.close(current, Outcome.RECOVERED, text)
        elif current.domain is Domain.DAMAGE:
            await self._look_for_recovery(current)
        elif (damage := self._book.find(current.filesystem, Domain.DAMAGE)) is not None:
            text = f"there is room again beneath it; what it has done is {damage.incident_id}"
            self._book.close(current, Outcome.RECOVERED, text)

    async def _look_at_space(self, incident: Incident) -> None:
        """Want of room is over when there is room, in it and beneath it."""
        superblock = self._superblock(incident)
        if superblock is None:
            await self._look_for_recovery(incident)
        elif self._had_no_room(incident):
            await self.look_after_room(incident.incident_id)
        elif _is_told_once(incident):
            return
        elif incident.recent and await self._has_room(superblock):
            # A fact is over with the fact; of what a line has said nobody knows for how long.
            quiet_s = _quiet_s(incident)
            current = self._present(incident)
            if current is not None and (
                current.sources == ("state",) or quiet_s > current.healthy_s
            ):
                self._book.close(current, Outcome.RECOVERED, "there is room again")

    async def _look_for_recovery(self, seen: Incident) -> None:
        if (incident := self._present(seen)) is None:
            return
        superblock = self._superblock(incident)
        if superblock is not None:
            self._missing.pop(incident.incident_id, None)
            if not incident.recent:
                return  # opened a moment ago: the event that opened it has not joined yet
            quiet_s = _quiet_s(incident)
            keep = incident.requested_by is not None or incident.confirmed
            # Counters of a filesystem say nothing about its device: that has to be quiet for long.
            keep = keep or (incident.device_errors > 0 and not self._is_quiet(incident))
            if quiet_s <= incident.healthy_s:
                return
            if keep:
                await self._end_a_stop(incident, superblock)
                return
            self._state.check(superblock.devno)  # as it is now, not as it was at the last look
            present = self._present(incident)
            if present is not None and self._state.health(superblock.devno) is Health.OK:
                text = "only log lines said so, and the kernel's own counters are clean"
                self._book.close(present, Outcome.FALSE_ALARM, text)
            return
        known = incident.filesystem
        successor = self._successor(incident)
        if successor is None:
            if known.devno is None and (known.device is None or known.image is not None):
                return
            if known.devno is None and (
                not incident.recent or _quiet_s(incident) <= incident.healthy_s
            ):
                return  # each line about a device that is gone would open another one
            if is_unnamed(self._inventory.view, known):
                self._missing.pop(incident.incident_id, None)
                return
            # One look may have missed it in the middle of a change.
            since = self._missing.setdefault(incident.incident_id, time.monotonic())
            if time.monotonic() - since < _MISSING_S:
                return
            if is_put_down(self._inventory, incident):
                self._wait_for_its_ve(incident)
                return
            said = incident.denied_by or incident.mute
            if said and (is_known(self._inventory, incident.ves) or not self._is_gone(incident)):
                return  # what somebody has said of it holds when it is mounted again
            self._forget_volume(known.volume_key)
            text = f"{known.device} is no longer mounted; a later mount is looked at anew"
            self._book.close(incident, Outcome.DISMISSED, text)
        elif self._state.health(successor.devno) is Health.OK:
            text = "the volume was mounted again and has no error recorded"
            self._book.close(incident, Outcome.RECOVERED, text)
        elif not await self._end_a_stop(incident, successor):
            text = f"the volume was mounted again as {successor.device}, with its error record"
            if self._state.health(successor.devno) is Health.UNKNOWN:
                text = (
                    f"the volume was mounted again as {successor.device}; only a check would tell "
                    "whether it is damaged still"
                )
            self._book.put(moved(incident, successor, text))
            self._poke(incident.incident_id)

    async def _end_a_stop(self, incident: Incident, superblock: Superblock) -> bool:
        """Whether it had only stopped, and goes on: a new mount makes an end of that."""
        if incident.requested_by is not None or not incident.classes <= _STOPS:
            return False
        if self._state.health(superblock.devno) not in {Health.OK, Health.UNKNOWN}:
            return False
        if await verify.healthy(self._inventory, self._state, superblock) is not None:
            return False
        if (current := self._present(incident)) is None:
            return False
        text = "it had stopped and goes on, nothing else is recorded, and a write succeeds"
        self._book.close(current, Outcome.RECOVERED, text)
        return True

    def _take_up(self, incident_id: str) -> None:
        """An incident of an earlier boot goes on where its volume is mounted since.

        Damage of an image that nobody has begun to repair: by what its next mount says of it, as
        within a boot (`_look_for_recovery`). A disk was mounted all the time but for the boot.
        """
        incident = self._book.get(incident_id)
        if incident is None or incident.state is State.ACTING:
            return
        undecided = incident.state in UNDECIDED
        known = incident.filesystem
        is_image = known.image is not None or known.image_inode is not None
        if undecided and incident.domain is Domain.DAMAGE and is_image:
            return
        found = taken_up(self._inventory.view, incident)
        if found is None:
            return
        self._book.put(found)
        if undecided:
            self._poke(incident_id)

    def _superblock(self, incident: Incident) -> Superblock | None:
        return self._inventory.view.attached(incident.filesystem)

    def _bare_device(self, incident: Incident) -> BlockDevice | None:
        return self._inventory.view.bare_device(incident.filesystem)

    def _successor(self, incident: Incident) -> Superblock | None:
        """The same volume, mounted again."""
        return self._inventory.view.successor(incident.filesystem, incident.direct_ves)


def _is_moved_away(incident: Incident) -> bool:
    """Whether being gone is what the plan was for. What has come back is looked at as ever."""
    return any(
        record.do == "evacuate" and record.state is StepState.DONE for record in incident.steps
    )


def _is_of_earlier_boot(incident: Incident) -> bool:
    """Whether it was heard of before the node was booted, and not since."""
    return bool(incident.earlier) and bool(incident.recent) and incident.recent[-1][0] < 0


def _quiet_s(incident: Incident) -> float:
    return (boottime_ns() - incident.recent[-1][0]) / NS


def _is_only_of_device(incident: Incident) -> bool:
    return (
        incident.confirmed
        and incident.requested_by is None
        and bool(incident.recent)
        and incident.domain is Domain.DAMAGE
        and incident.classes <= _OF_DEVICE
        # A member that btrfs misses is no device beneath it any more.
        and not (incident.filesystem.fstype == "btrfs" and EventClass.DEGRADED in incident.classes)
        and _READ_OF_DEVICE.issuperset(incident.sources)
    )


def _is_told_once(incident: Incident, devices: Sequence[BlockDevice] = ()) -> bool:
    """Whether something has told of itself what nobody can read of it later.

    The health of an NVMe, the room of a storage behind SCSI, the journal of another node's GFS2:
    only a person knows when that is over. Whether paths are missing can be read.
    """
    if "uevent" not in incident.sources or incident.classes.isdisjoint(_TELL_OF_THEMSELVES):
        return False
    return not any(is_multipath(device) for device in devices)


def _still_there(incident: Incident) -> bool:
    """Whether what was read of a bare device may still be so: the device is there."""
    known = incident.filesystem
    if known.devno is None or names_filesystem(known.fstype) or incident.sources != ("state",):
        return False
    if known.boot is not None:
        return False
    if block.name_of(known.devno) is None:
        return False
    return block.disk_sequence(known.devno) == known.disk_sequence
