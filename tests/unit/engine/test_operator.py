"""A request finds only the incident that it is about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.engine.operator import Operator, refuse_another
from fswatchd.errors import ConflictError, RefusedError, UnknownTargetError
from fswatchd.incidents import Incident, State
from fswatchd.inventory.model import Volume
from fswatchd.inventory.view import NodeView
from fswatchd.rules.model import Budget
from fswatchd.situation import PolicyState, Scope, VeFacts
from fswatchd.store.database import StoreError
from tests.unit.builders import filesystem, incident, policy_state, rules, scope, ve_facts
from tests.unit.inventory.test_lookup import ve


@pytest.mark.parametrize(
    ("known", "asked", "ves"),
    [
        ({}, {}, ("lxc:ve101",)),
        ({"image": None}, {}, ("lxc:ve101",)),
        ({}, {"uuid": None}, ("lxc:ve101",)),
    ],
    ids=["same", "path-not-known-then", "uuid-not-known-now"],
)
def test_the_same_volume_of_the_same_ve(known, asked, ves) -> None:
    refuse_another(incident(filesystem=filesystem(**known)), filesystem(**asked), ves)


def test_an_incident_that_nobody_was_found_for_may_be_this_ves() -> None:
    refuse_another(incident(ves=()), filesystem(), ("lxc:ve101",))


@pytest.mark.parametrize(
    ("asked", "ves"),
    [
        ({"image": "/vz/ve102.raw"}, ("lxc:ve101",)),
        ({}, ("lxc:ve102",)),
        ({}, ("lxc:ve101", "lxc:ve102")),
        ({}, ()),
    ],
    ids=["image", "ve", "shared-now", "nobodys-now"],
)
def test_another_volume_or_another_ve_is_refused(asked, ves) -> None:
    with pytest.raises(ConflictError, match="ve101"):
        refuse_another(incident(), filesystem(**asked), ves)


class Book:
    """The incidents that are open now."""

    def __init__(self, *found: Incident) -> None:
        self.found = found

    def flush(self) -> None:
        pass

    def get(self, incident_id: str) -> Incident | None:
        return next((one for one in self.found if one.incident_id == incident_id), None)

    def open_incidents(self) -> list[Incident]:
        return list(self.found)

    def put(self, incident: Incident) -> None:
        self.found = (incident,)

    def newest(self) -> dict[str, Incident]:
        return {one.incident_id: one for one in self.found}


class Database:
    """What has been written so far."""

    def __init__(self, *found: Incident, broken: bool = False) -> None:
        self.found = found
        self.broken = broken

    async def incidents(self, limit: int) -> list[Incident]:
        if self.broken:
            raise StoreError("disk I/O error")
        return list(self.found)[:limit]

    async def find_incidents(self, text: str) -> list[Incident]:
        return [one for one in self.found if one.incident_id.endswith(f"-{text}")]


def operator(book: Book, database: Database, decider: object = None) -> Operator:
    rest: dict[str, Any] = dict.fromkeys(
        ("inventory", "state", "executor", "arming", "closer", "said_well", "settings")
    )
    known: dict[str, Any] = {"book": book, "store": database, "decider": decider}
    return Operator(**known, **rest)


class Decider:
    """Knows rules and node; decides nothing itself."""

    rules = rules(
        """
        [[rule]]
        name = "ask"
        mode = "approve"
        [[rule.step]]
        do = "fsck"
        """
    )

    def __init__(self, *ves: VeFacts) -> None:
        self.ves = ves
        self.poked: list[str] = []

    def scope(self, _incident: Incident) -> Scope:
        return scope(*self.ves)

    def policy_state(self) -> PolicyState:
        return policy_state()

    def poke(self, incident_id: str, _delay_s: float) -> None:
        self.poked.append(incident_id)


@pytest.mark.parametrize(
    ("busy", "waiting_for", "answered"),
    [(None, "approval", (State.OPEN, "")), ("a backup", "busy", (State.WAITING, "busy"))],
)
async def test_a_denial_is_answered_with_the_state_that_follows_from_it(
    busy: str | None, waiting_for: str, answered: tuple[State, str]
) -> None:
    asking = incident(state=State.WAITING, waiting_for=waiting_for, rule="ask")
    decider = Decider(ve_facts(busy=busy))
    asked = operator(Book(asking), Database(), decider)
    found = await asked.deny(asking.incident_id, "root")
    assert (found.state, found.waiting_for) == answered
    assert found.denied_by == "root"
    assert decider.poked == [asking.incident_id]


def test_the_budget_is_that_of_the_rule_that_decides() -> None:
    asked = operator(Book(), Database(), Decider(ve_facts()))
    assert asked.budget(incident(rule="ask")) == (Budget(), 0)
    assert asked.budget(incident(rule="operator-request", requested_by="root")) is not None
    assert asked.budget(incident(rule="gone")) is None
    assert asked.budget(incident()) is None


async def test_an_incident_that_cannot_be_written_is_listed_and_found_all_the_same() -> None:
    old = incident(incident_id="20261121-aaaaa", opened_ns=1)
    new = incident(incident_id="20261121-bbbbb", opened_ns=2)
    asked = operator(Book(new), Database(old))
    assert [one.incident_id for one in await asked.incidents()] == [
        new.incident_id,
        old.incident_id,
    ]
    assert await asked.find("bbbbb") == new
    assert await asked.find("aaaaa") == old


async def test_a_database_that_cannot_be_read_hides_nothing_that_is_open() -> None:
    now = incident(incident_id="20261121-aaaaa")
    assert await operator(Book(now), Database(broken=True)).incidents() == [now]


async def test_one_that_is_written_is_there_once_and_as_it_is_now() -> None:
    now = incident(incident_id="20261121-aaaaa", opened_ns=1, rule="new")
    before = incident(incident_id="20261121-aaaaa", opened_ns=1)
    asked = operator(Book(now), Database(before))
    assert await asked.incidents() == [now]
    assert await asked.find("aaaaa") == now
    with pytest.raises(UnknownTargetError):
        await asked.find("ccccc")


def repaired(directory: Path, **more: Any) -> Incident:
    """An incident of ve101 that can be rolled back."""
    for name in ("image", "original"):
        (directory / name).touch()
    paths = {name: str(directory / name) for name in ("image", "original")}
    return incident(incident_id="20261121-aaaaa", undo={**paths, "ve": "lxc:ve101"}, **more)


async def test_an_approval_is_for_what_was_shown() -> None:
    waiting = incident(state=State.WAITING, waiting_for="approval", rule="ask", rule_does="then")
    asked = operator(Book(waiting), Database(), SimpleNamespace(poke=lambda *_: None))
    approved = await asked.approve(waiting.incident_id, "alice")
    assert (approved.approved_for, approved.approved_does) == ("ask", "then")


async def refresh() -> None: ...


@pytest.mark.parametrize(
    ("state", "ves", "may"),
    [
        (State.ACTING, ("lxc:ve101",), False),
        (State.ACTING, ("lxc:ve100", "lxc:ve101"), False),
        (State.ACTING, ("lxc:ve102",), True),
        (State.WAITING, ("lxc:ve101",), True),
    ],
)
@pytest.mark.parametrize("known", [("lxc:ve101",), ()], ids=["its-ve", "nobody-known"])
async def test_no_rollback_while_another_plan_is_at_work_on_its_ve(
    tmp_path: Path, state: State, ves: tuple[str, ...], known: tuple[str, ...], *, may: bool
) -> None:
    found = repaired(tmp_path, ves=known, state=State.CLOSED)
    other = incident(incident_id="20261121-bbbbb", state=state, ves=ves)
    asked = operator(Book(other), Database(found))
    asked._arming = SimpleNamespace(refuse_if_disarmed=lambda _: None)  # type: ignore[assignment]
    asked._inventory = SimpleNamespace(view=NodeView(), refresh=refresh)  # type: ignore[assignment]
    begun: list[Incident] = []
    asked._executor = SimpleNamespace(begin_rollback=lambda one, _to: begun.append(one))  # type: ignore[assignment]
    if may:
        await asked.roll_back("aaaaa", "root", discard_newer=True)
    else:
        with pytest.raises(ConflictError, match="bbbbb is acting on lxc:ve101"):
            await asked.roll_back("aaaaa", "root", discard_newer=True)
    assert bool(begun) is may


async def test_no_rollback_is_begun_of_what_is_not_the_ves_any_more(tmp_path: Path) -> None:
    found = repaired(tmp_path, state=State.CLOSED)
    asked = operator(Book(), Database(found))
    asked._arming = SimpleNamespace(refuse_if_disarmed=lambda _: None)  # type: ignore[assignment]
    anew = ve("lxc", "ve101", volumes=(Volume(image=str(tmp_path / "another")),))
    view = NodeView(ves={anew.ve_id: anew})
    asked._inventory = SimpleNamespace(view=view, refresh=refresh)  # type: ignore[assignment]
    for discard_newer in (False, True):
        with pytest.raises(RefusedError, match=r"would be started on .*another") as refused:
            await asked.roll_back("aaaaa", "root", discard_newer=discard_newer)
        assert refused.value.code == "FSW-REFUSED-NOT-ITS-VOLUME"
