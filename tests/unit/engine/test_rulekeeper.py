"""Rules in force: a bad file never takes their place, a changed one is read, uses are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fswatchd import rulefiles
from fswatchd.book import IncidentBook
from fswatchd.engine import rulekeeper
from fswatchd.engine.rulekeeper import RuleKeeper
from fswatchd.incidents import State
from fswatchd.store import Store
from tests.unit import builders

RULE = '[[rule]]\nname = "NAME"\n[[rule.step]]\ndo = "notify"\n'


class Kept:
    def __init__(self, directory: Path, store: Store) -> None:
        self.directory = directory
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.taken: list[list[str]] = []
        self.book = IncidentBook(store, "hn1")
        self.keeper = RuleKeeper(
            [directory], store, self.book, lambda kind, data: self.told.append((kind, data))
        )
        self.keeper.on_rules = lambda rules: self.taken.append([r.name for r in rules.rules])

    def write(self, text: str, name: str = "a.toml") -> None:
        (self.directory / name).write_text(text)

    def names(self) -> list[str]:
        return [rule.name for rule in self.keeper.current.rules]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = Store(tmp_path / "fswatchd.db")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def kept(tmp_path: Path, store: Store, monkeypatch) -> Kept:
    read = rulefiles.read  # whoever runs the tests owns the files
    monkeypatch.setattr(rulefiles, "read", lambda path, **_: read(path, trusted=True))
    directory = tmp_path / "rules.d"
    directory.mkdir()
    return Kept(directory, store)


async def test_a_bad_file_keeps_the_last_good_rules_and_is_told_once(kept: Kept) -> None:
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    kept.write("[[rule]]\nnonsense = 1\n", "b.toml")
    kept.keeper.read()
    kept.keeper.read()
    assert kept.names() == ["one"]
    assert kept.taken == [["one"]]
    ((kind, data),) = kept.told
    assert kind == "rejected"
    assert "b.toml" in data["problems"][0]
    assert kept.keeper.status()["problems"] == data["problems"]
    kept.write(RULE.replace("NAME", "two"), "b.toml")
    kept.keeper.read()
    assert kept.taken[1:] == [["one", "two"]]
    assert kept.told[1:] == [("accepted", {"problems": [], "count": 2})]
    assert kept.keeper.status()["problems"] == []


async def test_good_rules_are_not_told(kept: Kept) -> None:
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    kept.keeper.read()
    assert kept.told == []


@pytest.mark.parametrize("how", ["written", "new", "gone", "masked", "exchanged"])
async def test_a_change_of_the_files_is_seen(kept: Kept, how: str) -> None:
    kept.write(RULE.replace("NAME", "one"))
    before = rulekeeper.signature([kept.directory])
    assert rulekeeper.signature([kept.directory]) == before
    match how:
        case "written":
            kept.write(RULE.replace("NAME", "other"))
        case "new":
            kept.write("", "b.toml")
        case "gone":
            (kept.directory / "a.toml").unlink()
        case "masked":
            (kept.directory / "a.toml").unlink()
            (kept.directory / "a.toml").symlink_to("/dev/null")
        case "exchanged":
            kept.write(RULE.replace("NAME", "two"), "b.tmp")
            (kept.directory / "b.tmp").rename(kept.directory / "a.toml")
    assert rulekeeper.signature([kept.directory]) != before


async def test_what_is_saved_is_read_and_what_is_half_written_is_waited_for(
    kept: Kept, monkeypatch
) -> None:
    monkeypatch.setattr(rulekeeper, "_LOOK_EVERY_S", 0.05)
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    watching = asyncio.create_task(kept.keeper.watch())
    whole = RULE.replace("NAME", "two")
    for end in range(1, len(whole) + 1, 10):  # an editor that takes its time
        kept.write(whole[:end])
        await asyncio.sleep(0.01)
    kept.write(whole)
    async with asyncio.timeout(20):
        while kept.names() != ["two"]:
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_uses_are_counted_and_kept_over_a_restart(kept: Kept, store: Store) -> None:
    kept.write(RULE.replace("NAME", "one") + RULE.replace("NAME", "never"))
    kept.keeper.read()
    incident = builders.incident()
    kept.book.put(incident)
    kept.book.put(replace(incident, rule="one"))
    kept.book.put(replace(incident, rule="one", severity=incident.severity))
    kept.book.put(replace(incident, rule="one", state=State.ACTING))
    kept.book.put(replace(incident, rule="one", state=State.VERIFYING))
    kept.book.flush()
    later = Kept(kept.directory, store)
    await later.keeper.load()
    later.keeper.read()
    one, never = later.keeper.document("auto")["rules"]
    assert (one["name"], one["hits"], one["acted"]) == ("one", 1, 1)
    assert one["last_used"] is not None
    assert (never["hits"], never["acted"], never["last_used"]) == (0, 0, None)
