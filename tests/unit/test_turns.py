"""Whose turn it is."""

from __future__ import annotations

from fswatchd.incidents import Load
from fswatchd.rules.model import Budget
from fswatchd.turns import Turns
from tests.unit.builders import incident


def load(disk: str, own: str = "7:1", **labels: str) -> Load:
    return Load(devices=(own, disk), filesystems=(f"on {disk}",), labels=tuple(labels.items()))


def next_ones(turns: Turns) -> list[str]:
    return [waiting.incident_id for waiting in turns.queue]


def wait(turns: Turns, name: str, opened: int, ve: str = "", **more: object) -> None:
    budget = more.pop("budget", Budget())
    assert isinstance(budget, Budget)
    disk = str(more.pop("disk", "8:0"))
    labels = {key: str(value) for key, value in more.items()}
    found = incident(incident_id=name, opened_ns=opened)
    turns.waits(found, ve or name, budget, load(disk, own=name, **labels))


def test_of_those_that_have_not_had_a_turn_who_waits_longest_is_next() -> None:
    turns = Turns({})
    wait(turns, "late", 3)
    wait(turns, "early", 1)
    wait(turns, "between", 2)
    assert next_ones(turns) == ["early"]
    turns.gone("early")
    assert next_ones(turns) == ["between"]
    turns.gone("late")
    turns.gone("between")
    turns.gone("unknown")
    assert next_ones(turns) == []


def test_a_ve_that_had_its_turn_comes_later_and_is_moved_when_it_is_asked_again() -> None:
    begun: dict[str, int] = {}
    turns = Turns(begun)
    wait(turns, "a1", 1, "a")
    wait(turns, "a2", 2, "a")
    wait(turns, "b", 3)
    turns.gone("a1")
    begun["a"] = 100
    wait(turns, "a2", 2, "a")
    assert next_ones(turns) == ["b"]


def test_there_is_one_for_each_disk_budget_and_value_of_a_label_in_it() -> None:
    turns = Turns({})
    wait(turns, "a", 1)
    wait(turns, "a2", 2)
    wait(turns, "b", 3, disk="8:16")
    wait(turns, "c", 4, budget=Budget(node=2))
    racks = Budget(label={"rack": 1})
    wait(turns, "d", 5, budget=racks, rack="1", room="x")
    wait(turns, "e", 6, budget=racks, rack="1", room="y")
    wait(turns, "f", 7, budget=racks, rack="2", room="x")
    assert next_ones(turns) == ["a", "b", "c", "d", "f"]
