"""The document of `fswatch status`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fswatchd import views
from fswatchd.book import IncidentBook
from fswatchd.events import Health, VeState
from fswatchd.incidents import Incident, State
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.view import describe
from fswatchd.situation import Disarm
from fswatchd.sources.state import StateSource

_REPAIRING = {State.ACTING, State.VERIFYING}


class StatusView:
    """Puts together what inventory, sources and book know."""

    def __init__(
        self,
        inventory: Inventory,
        state: StateSource,
        book: IncidentBook,
        is_of_another: Callable[[Incident], bool],
    ) -> None:
        self._inventory = inventory
        self._state = state
        self._book = book
        self._is_of_another = is_of_another

    def ves(self, only: Ve | None = None) -> list[dict[str, Any]]:
        """All VEs, or one."""
        view = self._inventory.view
        wanted = [only] if only else sorted(view.ves.values(), key=lambda ve: ve.ve_id)
        incidents = self._book.open_incidents()
        return [
            views.ve(
                ve,
                self._ve_state(ve, incidents),
                [
                    {
                        **views.superblock(found, self.health(found), ve.namespace, view.host),
                        "stack_text": views.chain(views.stack(view, found, ve.ve_id)),
                    }
                    for found in view.superblocks_of(ve.ve_id)
                ],
                [i.incident_id for i in incidents if ve.ve_id in i.ves],
            )
            for ve in wanted
        ]

    def incidents(self, only: Ve | None = None) -> list[dict[str, Any]]:
        """All open incidents but those that are a part of another one, or all of one VE.

        `hands_off` says that another daemon handles it: then it is no fault of this node.
        """
        return [
            {**views.incident(incident), "hands_off": self._is_of_another(incident)}
            for incident in self._book.open_incidents()
            if (only.ve_id in incident.ves if only else not self._book.told_elsewhere(incident))
        ]

    def health(self, superblock: Superblock) -> Health:
        """What is known of a filesystem: its own state, and what an incident confirms."""
        measured = self._state.health(superblock.devno)
        if measured in {Health.SHUTDOWN, Health.READONLY}:
            return measured
        key = describe(superblock).key
        for incident in self._book.open_incidents():
            if incident.filesystem.key == key and incident.state is not State.VERIFYING:
                return Health.DAMAGED if incident.confirmed else Health.SUSPECT
        return measured

    def _ve_state(self, ve: Ve, incidents: list[Incident]) -> VeState:
        mine = [incident for incident in incidents if ve.ve_id in incident.direct_ves]
        if any(incident.state is State.ACTING for incident in mine):
            return VeState.REPAIRING
        if any(incident.state is State.NEEDS_OPERATOR for incident in mine):
            return VeState.QUARANTINED
        return ve.state


def disarm(found: Disarm, until_ns: int | None) -> dict[str, Any]:
    """A disarm in `status`; `until_ns` is CLOCK_REALTIME."""
    return {
        "target": found.target,
        "reason": found.reason,
        "by": found.by,
        "since": views.timestamp(found.since_ns or None),
        "until": views.timestamp(until_ns),
    }
