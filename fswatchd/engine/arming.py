"""Who has told the daemon to keep its hands off what, and whether it trusts itself.

A disarm of the node, of a VE or of a label holds at once: it is asked about before a plan is
decided (guard `armed`), before each of its steps, and right before a VE is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fswatchd.engine.history import History, boottime_ns
from fswatchd.engine.operations import Operations
from fswatchd.engine.trust import Trust
from fswatchd.errors import ConflictError, RefusedError, UnknownTargetError
from fswatchd.events import VeState, printable
from fswatchd.incidents import Incident
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.situation import NODE, Disarm, Labelled, StormState, label_target
from fswatchd.units import show_duration

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A VE that is not there now: its labels could be any."""

    ve_id: str
    labels: dict[str, str] = field(default_factory=dict)
    labels_known: bool = False


class Arming:
    """See the module. `poke_all` is called when decisions may be others.

    `storm` is asked for the storm that goes on.
    """

    def __init__(
        self,
        history: History,
        inventory: Inventory,
        trust: Trust,
        operations: Operations,
        poke_all: Callable[[], None],
    ) -> None:
        self._history = history
        self._inventory = inventory
        self._trust = trust
        self._operations = operations
        self._poke_all = poke_all
        self.storm: Callable[[], StormState | None] = lambda: None

    def why_disarmed(self, ves: Iterable[str]) -> str | None:
        """Who has disarmed one of the VEs, a label of theirs or the node; None when nobody has."""
        return self._history.why_disarmed(self._labelled(ves))

    def why_doubted(self, incident: Incident) -> str | None:
        """Why the daemon goes on with no plan of its own for it; None where it does."""
        if not self._trust.why or self._is_asked_for(incident):
            return None
        return f"the daemon does not trust itself: {self._trust.why}"

    def why_storm(self, incident: Incident) -> str | None:
        """Why nothing is stopped for it while so many VEs fail at once; None where it may be."""
        storm = self.storm()
        if storm is None or self._is_asked_for(incident):
            return None
        return f"{storm.text} ({storm.incident_id})"

    def _is_asked_for(self, incident: Incident) -> bool:
        """By somebody, or by a drill."""
        view = self._inventory.view
        ves = [view.ves.get(VeId(ve)) for ve in incident.direct_ves]
        scratch = bool(ves) and all(ve is not None and ve.scratch for ve in ves)
        return incident.requested_by is not None or scratch

    def refuse_if_disarmed(self, ves: Iterable[str]) -> None:
        """Raise RefusedError where one of the VEs, a label of theirs, or the node is disarmed."""
        found = self._history.disarm_of(self._labelled(ves))
        if found is None:
            return
        left = ""
        if found.until_ns is not None:
            left = f" for another {show_duration((found.until_ns - boottime_ns()) / _NS)}"
        raise RefusedError(
            printable(f"{found.target} was disarmed by {found.by}{left}: {found.reason}"),
            hint="fswatch arm ends that",
            code="FSW-REFUSED-DISARMED",
        )

    async def disarm(
        self, target: str | None, label: str | None, reason: str, by: str, for_s: float | None
    ) -> str:
        """Nobody acts any more on the VE, on those with the label (`tier=gold`), or, where both are
        None, on the whole node; returns what was disarmed.

        Raises UnknownTargetError, and ValueError where `for_s` is no time at all.
        """
        if for_s is not None and for_s <= 0:
            raise ValueError("a disarm for no time at all disarms nothing")
        name = self._target(target, label, self._inventory.view)
        until = None if for_s is None else boottime_ns() + int(for_s * _NS)
        since = time.time_ns()
        found = Disarm(target=name, reason=reason, by=by, until_ns=until, since_ns=since)
        await self._history.disarm(found)
        how_long = "until arm" if for_s is None else f"for {show_duration(for_s)}"
        self._operations.record("disarm", name, by, reason, f"disarmed {how_long}")
        self._poke_all()
        return name

    async def arm(
        self, target: str | None, label: str | None, reason: str, by: str
    ) -> tuple[str, list[str]]:
        """Act again; returns what was armed, and, for the node, what the daemon doubted in itself
        until now. Raises ConflictError when there was neither."""
        name = self._target(target, label, self._with_those_gone())
        known = await self._history.arm(name)
        accepted = self._trust.accept(by) if name == NODE else []
        if not known and not accepted:
            hint = self._what_holds(name)
            raise ConflictError(
                f"{printable(name)} is not disarmed", hint=hint, code="FSW-CONFLICT-ARMED"
            )
        result = "armed" + "".join(f"; accepted: {text}" for text in accepted)
        self._operations.record("arm", name, by, reason, result)
        self._poke_all()
        return name, accepted

    def _with_those_gone(self) -> NodeView:
        """The VEs that there are, and those that have gone and are still disarmed by their id."""
        known = self._inventory.view.ves
        targets = [one.target for one in self._history.current_disarms() if one.names_a_ve]
        gone = {VeId(target): _gone(target) for target in targets if target not in known}
        return NodeView(ves={**known, **gone})

    def _what_holds(self, name: str) -> str:
        """What to arm instead, where something else is why nothing is done about a VE."""
        found = None if name == NODE else self._history.disarm_of(self._labelled([name]))
        if found is None or found.target == name:
            return ""
        # A target is written like the option that names it.
        said = f"{found.target} was disarmed by {found.by}: fswatch arm --{found.target} ends that"
        return printable(said)

    def _target(self, target: str | None, label: str | None, view: NodeView) -> str:
        if target is not None and label is not None:
            raise UnknownTargetError("a VE or a label, not both", code="FSW-UNKNOWN-LABEL")
        if label is not None:
            key, equals, value = label.partition("=")
            if not key or not equals:
                hint = 'write it like "tier=gold"'
                raise UnknownTargetError(
                    f"{label!r} is no label", hint=hint, code="FSW-UNKNOWN-LABEL"
                )
            return label_target(key, value)
        if target is None:
            return NODE
        return str(lookup.find_ve(view, target).ve_id)

    def _labelled(self, ves: Iterable[str]) -> list[Labelled]:
        view = self._inventory.view
        return [view.ves.get(VeId(ve)) or _Unknown(ve) for ve in ves]


def _gone(target: str) -> Ve:
    platform, _, name = target.partition(":")
    return Ve(
        ve_id=VeId(target), platform=platform, native_id=name, name=name, state=VeState.UNKNOWN
    )
