"""What people ask for: repair, roll back, approve, deny, acknowledge (`arming`: arm, disarm)."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from fswatchd import guards, policy
from fswatchd.book import IncidentBook
from fswatchd.engine import mounted_again
from fswatchd.engine.arming import Arming
from fswatchd.engine.closer import Closer
from fswatchd.engine.decider import Decider
from fswatchd.engine.executor import Executor
from fswatchd.engine.history import boottime_ns
from fswatchd.engine.preview_clones import PreviewClones
from fswatchd.engine.said_well import SaidWell
from fswatchd.errors import ConflictError, RefusedError, UnknownTargetError
from fswatchd.events import Domain
from fswatchd.incidents import Filesystem, Incident, Outcome, State, StepRecord
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve, VeId
from fswatchd.inventory.view import describe
from fswatchd.kernel import block, magic
from fswatchd.kernel.patience import Patience
from fswatchd.repair import clone, preview, restore, rollback, scope, storage, tools
from fswatchd.repair.scope import require_volume
from fswatchd.rules.model import Budget
from fswatchd.sources.state import StateSource
from fswatchd.steps import ActionSettings, StepEnded
from fswatchd.store.store import Store, StoreError

log = logging.getLogger(__name__)

NS = 1_000_000_000
_BUSY = {State.ACTING, State.VERIFYING}
_OUTPUT_SHOWN = 20_000
_ANSWER_S = 5.0
_patience = Patience()


class Operator:
    """Carries out requests; `by` is who asked, for the record."""

    def __init__(
        self,
        book: IncidentBook,
        store: Store,
        inventory: Inventory,
        state: StateSource,
        decider: Decider,
        executor: Executor,
        arming: Arming,
        closer: Closer,
        said_well: SaidWell,
        settings: ActionSettings,
    ) -> None:
        self._book = book
        self._store = store
        self._inventory = inventory
        self._state = state
        self._decider = decider
        self._executor = executor
        self._arming = arming
        self._closer = closer
        self._said_well = said_well
        self._settings = settings
        self.preview_clones = PreviewClones(store, settings)

    async def find(self, text: str) -> Incident:
        """An incident by its id or the end of it; raises UnknownTargetError."""
        known = self._book.get(text)
        if known is not None:
            return known
        self._book.flush()
        newest = self._book.newest()
        found = [one for one in newest.values() if one.incident_id.endswith(f"-{text}")]
        if not found:
            found = await self._store.find_incidents(text)
        if not found:
            raise UnknownTargetError(
                f"there is no incident {text!r}",
                hint="fswatch incidents --all lists them",
                code="FSW-UNKNOWN-INCIDENT",
            )
        if len(found) > 1:
            ids = ", ".join(incident.incident_id for incident in found[:5])
            raise UnknownTargetError(
                f"{text} names several incidents: {ids}", code="FSW-UNKNOWN-AMBIGUOUS"
            )
        return newest.get(found[0].incident_id, found[0])

    def open_incidents(self) -> list[Incident]:
        """Those that are not closed, newest first; known without the database."""
        return self._book.open_incidents()[::-1]

    async def incidents(self, limit: int = 1000) -> list[Incident]:
        """The newest incidents, closed ones too, newest first."""
        self._book.flush()
        try:
            kept = await self._store.incidents(limit)
        except StoreError as error:
            log.warning("only incidents that are open, or not written yet: %s", error)
            kept = []
        found = {incident.incident_id: incident for incident in kept} | self._book.newest()
        return sorted(found.values(), key=lambda one: one.opened_ns, reverse=True)[:limit]

    def told_elsewhere(self, incident: Incident) -> bool:
        """Whether the incident is only a part of another one that is open."""
        return self._book.told_elsewhere(incident)

    async def consequences(self, incident: Incident, limit: int) -> list[Incident]:
        """The first of the incidents that this one is, or was, to blame for."""
        found = [await self._store.find_incidents(one) for one in incident.consequences[:limit]]
        return [self._book.get(one.incident_id) or one for (one, *_) in found if one]

    def budget(self, incident: Incident) -> tuple[Budget, int] | None:
        """What the incident's rule allows at once, and how many repairs run now; None where no
        rule decides about it."""
        rules = self._decider.rules
        if incident.requested_by:
            rules = policy.for_request(rules)
        rule = rules.by_name.get(incident.rule or "")
        if rule is None:
            return None
        return rule.budget, len(self._decider.policy_state().running)

    async def repair(self, target: str, by: str, *, force: bool = False) -> Incident:
        """Begin to repair the filesystem of a VE, a device or a mount point; with `force` also one
        that was repaired again and again."""
        filesystem, ves = await self.filesystem_of(target)
        self._arming.refuse_if_disarmed(ves)
        self._refuse_if_not_repairable(filesystem, ves)
        incident = self._book.find(filesystem, Domain.DAMAGE)
        if incident is None:
            incident = self._known_otherwise(filesystem, ves)
        if incident is not None:
            refuse_another(incident, filesystem, ves)
        else:
            incident = self._book.new(filesystem, Domain.DAMAGE, ves)
            incident = replace(incident, sources=("operator",))
            incident = incident.reached("detected", time.monotonic_ns())
            incident = incident.reached("attributed", time.monotonic_ns())
        if incident.state in _BUSY:
            raise ConflictError(
                f"{incident.incident_id} is {incident.state.value} already",
                code="FSW-CONFLICT-REPAIR",
            )
        incident = replace(
            incident,
            state=State.OPEN,
            requested_by=by,
            requested_ns=boottime_ns(),
            forced=force,
            steps=(),
            asks="",
            denied_by=None,
        )
        self._refuse_if_it_flaps(incident)
        self._book.put(incident.noted(time.time_ns(), f"repair requested by {by}"))
        self._decider.poke(incident.incident_id, 0.0)
        return incident

    async def preview(self, target: str) -> dict[str, Any]:
        """What a repair would find and do; nothing of the VE or its volume is changed."""
        filesystem, ves = await self.filesystem_of(target)
        return {"target": target, **await self.look(filesystem, ves)}

    async def look(self, filesystem: Filesystem, ves: tuple[str, ...]) -> dict[str, Any]:
        """The same for a filesystem of these VEs. Raises RefusedError, OSError, StoreError."""
        context = self.dry_run(filesystem, ves)
        try:
            resolved = await scope.resolve(context)
            volume = require_volume(resolved)
            await storage.of(volume, context.settings).prepare()
            async with self.preview_clones.noted(volume, context.incident.incident_id):
                seen = await preview.look(context, resolved, volume)
        except StepEnded as ended:
            raise RefusedError(ended.result.detail, code="FSW-REFUSED-PREVIEW") from None
        except clone.NotShareableError as error:
            if resolved.image is None:
                text = f"no preview: {error}"
                raise RefusedError(text, code="FSW-REFUSED-PREVIEW") from None
            raise RefusedError(
                "no preview: the host filesystem cannot share blocks, and a copy of a "
                "filesystem that is written shows nothing",
                hint="XFS (reflink=1) and btrfs can share blocks",
                code="FSW-REFUSED-PREVIEW",
            ) from None
        return {
            "ve": resolved.ve.ve_id,
            "image": volume.path,
            "clean": seen.clean,
            "curable": seen.curable,
            "found": seen.check.summary(),
            "would_do": seen.would_do,
            **seen.document(),
            "output": (seen.cure.repaired if seen.cure else seen.check).shown(_OUTPUT_SHOWN),
        }

    def dry_run(self, filesystem: Filesystem, ves: tuple[str, ...]) -> DryRun:
        """A context for looking at a filesystem without an incident."""
        incident = self._book.new(filesystem, Domain.DAMAGE, ves)
        return DryRun(self._inventory, self._state, self._settings, incident)

    async def roll_back(
        self, text: str, by: str, *, discard_newer: bool, to: str | None = None
    ) -> Incident:
        """Begin to put the volume from before the repair in place again, or with `to` what a
        snapshot at this path holds."""
        await self._inventory.refresh()
        incident = await self.find(text)
        _refuse_while_acting(incident)
        if to is not None:
            await asyncio.to_thread(restore.check, incident, to, discard_newer=discard_newer)
            incident = self._book.get(incident.incident_id) or incident  # it may have gone on
            _refuse_while_acting(incident)
        else:
            rollback.check(incident, self._inventory.view, discard_newer=discard_newer)
        self._refuse_while_acting_on_its_ves(incident)
        self._arming.refuse_if_disarmed(incident.ves)
        for ve_id in incident.direct_ves:
            ve = self._inventory.view.ves.get(VeId(ve_id))
            if ve is not None and ve.busy:
                raise ConflictError(f"{ve_id} is busy: {ve.busy}", code="FSW-CONFLICT-BUSY")
        where = f" to {to}" if to is not None else ""
        incident = incident.noted(time.time_ns(), f"rollback{where} requested by {by}")
        self._executor.begin_rollback(incident, to)
        return self._book.get(incident.incident_id) or incident

    def _refuse_while_acting_on_its_ves(self, incident: Incident) -> None:
        """What another plan has stopped, or works on, is not exchanged under its hands."""
        ves = {*incident.ves, str((incident.undo or {}).get("ve"))}
        for other in self._book.open_incidents():
            shared = sorted(ves & set(other.ves))
            if other.state is State.ACTING and other.incident_id != incident.incident_id and shared:
                raise ConflictError(
                    f"{other.incident_id} is {other.state.value} on {', '.join(shared)}",
                    code="FSW-CONFLICT-REPAIR",
                )

    async def approve(
        self, text: str, by: str, reason: str = "", asked_by: str | None = None
    ) -> Incident:
        """Permit what the incident waits for; with `asked_by` only where that rule asks."""
        incident = await self.find(text)
        _refuse_another_question(incident, asked_by)
        if incident.state is not State.WAITING or incident.waiting_for != "approval":
            raise _not_waiting(incident)
        incident = replace(
            incident,
            approved_by=by,
            approved_ns=boottime_ns(),
            approved_for=incident.rule,
            approved_does=incident.rule_does,
            denied_by=None,
        )
        self._book.put(incident.noted(time.time_ns(), _said(f"approved by {by}", reason)))
        self._decider.poke(incident.incident_id, 0.0)
        return incident

    async def deny(
        self, text: str, by: str, reason: str = "", asked_by: str | None = None
    ) -> Incident:
        """Forbid what the incident waits for; it stays open. `asked_by` as in `approve`."""
        incident = await self.find(text)
        _refuse_another_question(incident, asked_by)
        if incident.state is not State.WAITING:
            raise _not_waiting(incident)
        incident = replace(incident, denied_by=by, approved_by=None)
        # Who has said no is answered with what follows from it, not with what was before.
        if self._decision(incident).verdict is not policy.Verdict.WAIT:
            incident = replace(incident, state=State.OPEN, waiting_for="")
        self._book.put(incident.noted(time.time_ns(), _said(f"denied by {by}", reason)))
        self._decider.poke(incident.incident_id, 0.0)
        return incident

    async def acknowledge(
        self, text: str, by: str, reason: str = "", *, recovered: bool = False
    ) -> Incident:
        """Somebody has seen it; an incident that needs an operator ends with that, and a storm.

        With `recovered` any other that is well again: see `SaidWell.recovered`.
        """
        incident = await self.find(text)
        if incident.state is State.CLOSED:
            raise ConflictError(f"{incident.incident_id} is closed", code="FSW-CONFLICT-CLOSED")
        if recovered:
            said = _said(
                f"{by} says that it has recovered, and nothing speaks against that", reason
            )
            return await self._said_well.recovered(incident, by, said)
        incident = replace(incident, acknowledged_by=by)
        said = _said(f"acknowledged by {by}", reason)
        ends = incident.state is State.NEEDS_OPERATOR or incident.domain is Domain.STORM
        if ends or self._closer.waits_for_its_mount(incident):
            return self._book.close(incident, Outcome.DISMISSED, said)
        incident = incident.noted(time.time_ns(), said)
        self._book.put(incident)
        return incident

    async def filesystem_of(self, target: str) -> tuple[Filesystem, tuple[str, ...]]:
        """The one filesystem that is meant, and its VEs. Raises UnknownTargetError."""
        await self._inventory.refresh()
        view = self._inventory.view
        ve, found = lookup.find_superblocks(view, block.without_links(target))
        if ve is not None and not found:
            # A volume that others have mounted too is no unmounted one.
            owned = view.superblocks_of(ve.ve_id)
            found = [one for one in owned if view.owner_of_volume(one) == ve.ve_id]
            if not found:
                return await self._unmounted_volume(ve), (ve.ve_id,)
        if len(found) > 1:
            found = self._most_wanted(found)
        if len(found) > 1:
            devices = ", ".join(f"/dev/{superblock.device}" for superblock in found)
            raise UnknownTargetError(
                f"{target} has several filesystems: {devices}",
                hint="name one",
                code="FSW-UNKNOWN-AMBIGUOUS",
            )
        return describe(found[0]), tuple(view.users[found[0].devno].ves)

    def _known_otherwise(self, filesystem: Filesystem, ves: tuple[str, ...]) -> Incident | None:
        """One of a volume that was put down: mounted again a moment ago, or from now on about the
        image, and not about the device that was mounted."""
        view, known = self._inventory.view, self._book.open_incidents()
        found = mounted_again.find(view, known, filesystem, Domain.DAMAGE, ves)
        if found is None or filesystem.devno is not None:
            return found
        about = replace(filesystem, uuid=found.filesystem.uuid)
        return replace(found, filesystem=about, preview=None)

    def _most_wanted(self, found: list[Superblock]) -> list[Superblock]:
        with_incident = [
            s for s in found if self._book.find(describe(s), Domain.DAMAGE) is not None
        ]
        return with_incident or found

    async def _unmounted_volume(self, ve: Ve) -> Filesystem:
        if ve.unrepairable:
            raise RefusedError(
                f"not repaired: {ve.ve_id} is {ve.unrepairable}", code="FSW-REFUSED-REPAIR"
            )
        images = [one.image for one in ve.volumes if one.image and one.format == "raw"]
        if len(images) != 1:
            raise UnknownTargetError(
                f"{ve.ve_id} has no filesystem of its own that is mounted, and "
                f"{len(images)} image files that are known and hold one",
                code="FSW-UNKNOWN-VOLUME",
            )
        try:
            image = images[0]
            fstype = await _patience.answer(image, lambda: magic.fstype_of(image), _ANSWER_S)
        except OSError as error:
            raise UnknownTargetError(
                f"{images[0]}: {error.strerror}", code="FSW-UNKNOWN-VOLUME"
            ) from None
        # Without a magic number e2fsck looks for a copy of the superblock, or refuses.
        return Filesystem(devno=None, device=None, fstype=fstype or "ext4", image=images[0])

    def _refuse_if_not_repairable(self, filesystem: Filesystem, ves: tuple[str, ...]) -> None:
        asked = self._book.new(filesystem, Domain.DAMAGE, ves)
        refused = guards.refused_scope(self._decider.scope(asked))
        if refused is None and tools.of(filesystem.fstype) is None:
            refused = f"{filesystem.fstype} cannot be repaired by this version"
        if refused is not None:
            raise RefusedError(f"not repaired: {refused}", code="FSW-REFUSED-REPAIR")

    def _decision(self, incident: Incident) -> policy.Decision:
        """What the decider would decide now, as far as no look at the node is needed for it."""
        rules, state = self._decider.rules, self._decider.policy_state()
        if incident.requested_by:
            rules = policy.for_request(rules)
        scope_now = self._decider.scope(incident)
        return policy.decide(rules, incident, scope_now, state, boottime_ns())

    def _refuse_if_it_flaps(self, incident: Incident) -> None:
        """Now, so that nobody waits for what will not be done."""
        last = self._decision(incident).answers[-1]
        if last.guard == "flap" and not last.passed and not last.waits:
            hint = "fswatch repair --force does it all the same"
            raise RefusedError(f"not repaired: {last.text}", hint=hint, code="FSW-REFUSED-REPAIR")


def _refuse_while_acting(incident: Incident) -> None:
    if incident.state is State.ACTING:
        raise ConflictError(
            f"{incident.incident_id} is {incident.state.value}", code="FSW-CONFLICT-REPAIR"
        )


def _not_waiting(incident: Incident) -> ConflictError:
    found = incident.state.value
    if incident.state is State.WAITING:
        found += f" for {incident.waiting_for}"
    return ConflictError(
        f"{incident.incident_id} does not wait for an approval: it is {found}",
        code="FSW-CONFLICT-NOT-WAITING",
    )


def _refuse_another_question(incident: Incident, asked_by: str | None) -> None:
    """Who may answer one rule may not answer the one that has taken its place meanwhile, nor permit
    what root has asked for."""
    if asked_by is None or (incident.rule == asked_by and incident.requested_by is None):
        return
    raise ConflictError(
        f"{incident.incident_id} does not wait for an answer to rule {asked_by}",
        code="FSW-CONFLICT-NOT-WAITING",
    )


def _said(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


def refuse_another(incident: Incident, filesystem: Filesystem, ves: tuple[str, ...]) -> None:
    """The incident that was found must be about the volume and the VEs that were asked for."""
    known = incident.filesystem
    same_image = None in (known.image, filesystem.image) or known.image == filesystem.image
    if same_image and (not incident.ves or set(incident.direct_ves) == set(ves)):
        return
    known_ves, asked = ", ".join(incident.ves), ", ".join(ves)
    raise ConflictError(
        f"{incident.incident_id}, which is open, is about {known.image or known.device} of "
        f"{known_ves or 'no VE'}, not about {filesystem.image or filesystem.device} of {asked}",
        hint=f"fswatch ack {incident.incident_id} when it is settled",
        code="FSW-CONFLICT-ANOTHER",
    )


@dataclass(slots=True)
class DryRun:
    """An ActionContext that records nothing, for looking without touching."""

    inventory: Inventory
    state: StateSource
    settings: ActionSettings
    transient: Incident

    @property
    def incident(self) -> Incident:
        return self.transient

    @property
    def record(self) -> StepRecord:
        return StepRecord(do="preview")

    def note(self, text: str) -> None:
        pass

    def progress(self, share: float | None, text: str) -> None:
        pass

    def reached(self, milestone: str) -> None:
        pass

    def filesystem_is_now(self, superblock: Any) -> None:
        pass

    async def lock_ve(self, ve: Ve) -> Ve:
        return ve

    async def about_to_start(self, ve: Ve) -> None:
        pass

    async def about_to_stop(self, ve_id: str) -> None:
        pass

    async def journal(self, **facts: Any) -> None:
        pass
