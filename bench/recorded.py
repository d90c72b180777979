"""A recorded past: a state directory with the events and incidents of some days, made up.

Each incident was decided about by the rules given, on a node in mode `approve`, and nobody has
approved: most ended by themselves some hours later.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

from fswatchd import decisions, policy
from fswatchd.devno import Devno
from fswatchd.events import Domain, EventClass, FsEvent, usual_severity
from fswatchd.incidents import Filesystem, Incident, Outcome, State
from fswatchd.rules.model import RuleSet
from fswatchd.situation import PolicyState, Scope, VeFacts
from fswatchd.store.store import Store, StoredEvent

NS = 1_000_000_000
_DAY_NS = 86400 * NS
DAY = "20261101"  # the ids of all begin with it
_CLASSES = (EventClass.CORRUPTION, EventClass.CORRUPTION, EventClass.READONLY, EventClass.SPACE)
_TIERS = ("gold", "silver", "bronze")


def fill(
    database: Path, rules: RuleSet, *, events: int, incidents: int, ves: int, days: float = 7
) -> None:
    """Write the database; the same arguments make the same past, but for when it was."""
    asyncio.run(_fill(Store(database), rules, events, incidents, ves, days))


async def _fill(
    store: Store, rules: RuleSet, events: int, incidents: int, ves: int, days: float
) -> None:
    await store.open()
    chance = random.Random(5)
    end_ns = time.time_ns() - 60 * NS
    begun = sorted(end_ns - chance.randrange(int(days * _DAY_NS)) for _ in range(incidents))
    made = [_incident(number, when, number % ves) for number, when in enumerate(begun)]
    moments = sorted(
        (begun[number] + chance.randrange(3600 * NS), number)
        for number in (n % incidents for n in range(events))
    )
    left = len(moments)
    written = asyncio.Event()

    def told(_stored: StoredEvent, _moment: int | None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            written.set()

    for count, (when, number) in enumerate(moments):
        klass = _CLASSES[number % len(_CLASSES)] if number % 4 else _CLASSES[count % 2]
        event = _event(when, number, klass)
        cursor = store.next_cursor()
        made[number] = made[number].joined(event, when, cursor)
        stored = StoredEvent(
            cursor=cursor, event=event, ves=made[number].ves, incident_id=made[number].incident_id
        )
        store.add_event(stored, told)
        if count % 5000 == 0:
            await asyncio.sleep(0.05)  # the queue of writes is bounded
    await written.wait()
    for number, incident in enumerate(made):
        await store.save_incident(_decided(incident, rules, number % ves))
    await store.close()


def _event(when: int, number: int, klass: EventClass) -> FsEvent:
    return FsEvent(
        source="state",
        klass=klass,
        severity=usual_severity(klass),
        confirms=True,
        time_ns=when,
        mono_ns=0,
        detail="made up",
        device=f"loop{900 + number}",
        devno=Devno(7, 900 + number),
        fstype="ext4",
    )


def _incident(number: int, when: int, ve: int) -> Incident:
    return Incident(
        incident_id=f"{DAY}-{number:05}",
        node="hn1",
        domain=Domain.DAMAGE,
        filesystem=Filesystem(
            devno=Devno(7, 900 + number),
            device=f"loop{900 + number}",
            fstype="ext4",
            image=f"/vz/ve{ve}.raw",
        ),
        opened_ns=when,
        updated_ns=when,
        ves=(f"declared:ve{ve}",),
    )


def _decided(incident: Incident, rules: RuleSet, ve: int) -> Incident:
    facts = VeFacts(
        ve_id=f"declared:ve{ve}",
        name=f"ve{ve}",
        platform="declared",
        labels={"tier": _TIERS[ve % len(_TIERS)]},
    )
    # Three disks hold the images of all.
    scope = Scope(ves=(facts,), devices=(str(incident.filesystem.devno), f"8:{ve % 3}"))
    state = PolicyState(mode="approve")
    decision = policy.decide(rules, incident, scope, state, incident.updated_ns)
    return replace(
        incident,
        rule=decision.rule,
        guards=tuple((a.guard, a.passed, a.text) for a in decision.answers),
        decided=decisions.facts(decision, scope, state),
        state=State.CLOSED,
        outcome=Outcome.RECOVERED,
        closed_ns=incident.updated_ns + 4 * 3600 * NS,
    )
