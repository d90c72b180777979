"""What would be decided about an event that has not happened, with the node as it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from fswatchd import decisions, eventdoc, policy
from fswatchd.book import IncidentBook
from fswatchd.engine.attribution import Attribution, attribute
from fswatchd.engine.decider import Decider
from fswatchd.engine.history import boottime_ns
from fswatchd.engine.substrate import Substrate
from fswatchd.errors import ConfigError
from fswatchd.eventdoc import Hypothesis
from fswatchd.events import FsEvent, domain_of
from fswatchd.incidents import Incident, State
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.inventory.view import NodeView
from fswatchd.policy import Decision
from fswatchd.rules.model import RuleSet, assemble

_BUSY = {State.ACTING, State.VERIFYING, State.NEEDS_OPERATOR}


class Rehearsal:
    """See the module."""

    def __init__(
        self, book: IncidentBook, inventory: Inventory, decider: Decider, substrate: Substrate
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._decider = decider
        self._substrate = substrate

    async def decide(
        self, document: object, files: list[tuple[str, str]] | None = None
    ) -> dict[str, Any]:
        """The decision about an event (see `eventdoc`), by the rules in force or those in `files`.

        Raises ConfigError where either has mistakes, UnknownTargetError where there is no such VE.
        """
        hypothesis = eventdoc.of(document)
        rules = self._decider.rules if files is None else await asyncio.to_thread(_rules, files)
        await self._inventory.refresh()
        notes: list[str] = []
        if hypothesis.event.klass.is_problem:
            incident = self._incident(hypothesis, notes)
            decision = await self._decision(rules, incident)
        else:
            incident = self._new(hypothesis.event, self._attribution(hypothesis, notes))
            decision = policy.no_incident(hypothesis.event.klass)
        return {
            "state": "daemon",
            "mode": self._decider.policy_state().mode,
            "ves": list(incident.ves),
            "filesystem": incident.filesystem.device,
            "assumed": list(hypothesis.assumed),
            "notes": notes,
            "decision": decisions.document(decision, rules),
        }

    async def _decision(self, rules: RuleSet, incident: Incident) -> Decision:
        layers = await self._substrate.beneath(incident)
        scope = replace(self._decider.scope(incident), beneath=layers)
        state = self._decider.policy_state()
        wanted = policy.for_request(rules) if incident.requested_by else rules
        return policy.decide(wanted, incident, scope, state, boottime_ns())

    def _new(self, event: FsEvent, found: Attribution) -> Incident:
        incident = self._book.new(found.filesystem, domain_of(event.klass), tuple(found.ves))
        return replace(incident, through=tuple(found.through))

    def _incident(self, hypothesis: Hypothesis, notes: list[str]) -> Incident:
        found = self._attribution(hypothesis, notes)
        event = replace(hypothesis.event, time_ns=time.time_ns(), mono_ns=time.monotonic_ns())
        if event.fstype is None:
            event = replace(event, fstype=found.filesystem.fstype)
        incident = self._book.find(found.filesystem, domain_of(event.klass))
        if incident is None:
            incident = self._new(event, found)
        else:
            notes.append(f"it would join the open incident {incident.incident_id}")
            if incident.state in _BUSY:
                notes.append(f"which is {incident.state.value}: nothing is decided until that ends")
        return incident.joined(event, boottime_ns())

    def _attribution(self, hypothesis: Hypothesis, notes: list[str]) -> Attribution:
        view, event = self._inventory.view, hypothesis.event
        if event.devno is not None or event.device is not None or not hypothesis.ves:
            return attribute(event, view)
        ves = [lookup.find_ve(view, ve.ve_id) for ve in hypothesis.ves]
        own = [
            one
            for one in view.superblocks_of(ves[0].ve_id)
            if event.fstype in {None, one.fstype}
            and list(view.users[one.devno].ves) == [ves[0].ve_id]
        ]
        if len(ves) > 1 or not own:
            notes.append("no filesystem that is mounted is meant: who else uses it is not known")
            filesystem = replace(attribute(event, view).filesystem, fstype=event.fstype)
            return Attribution(filesystem=filesystem, ves=tuple(ve.ve_id for ve in ves))
        chosen = min(own, key=_depth)
        notes.append(f"the event names no device: /dev/{chosen.device} is taken")
        return _of(view, chosen)


def _of(view: NodeView, found: Superblock) -> Attribution:
    return Attribution(
        filesystem=view.describe(found),
        ves=view.affected(found.devno),
        through=view.dependents(found.devno).ves,
        superblock=found,
    )


def _depth(found: Superblock) -> int:
    """How deep in the tree it is mounted: the root of a VE is taken before what it has mounted."""
    return min(len(place.mount.point) for place in found.mounts)


def _rules(files: list[tuple[str, str]]) -> RuleSet:
    rules, problems = assemble(files)
    if problems:
        raise ConfigError("\n".join(map(str, problems)), code="FSW-RULE")
    return rules
