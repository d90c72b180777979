"""Rules in force: a bad file never takes their place, a changed one is read, uses are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fswatchd.book import IncidentBook
from fswatchd.engine import rulekeeper
from fswatchd.engine.rulekeeper import RuleKeeper
from fswatchd.incidents import State
from fswatchd.kernel import inotify
from fswatchd.rules import files
from fswatchd.rules.problem import RuleProblem
from fswatchd.store.store import Store
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
def kept(tmp_path: Path, store: Store, monkeypatch) -> Kept:
    read = files.read  # whoever runs the tests owns the files
    monkeypatch.setattr(files, "read", lambda path, **_: read(path, trusted=True))
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


async def test_a_directory_that_could_not_be_listed_for_once_is_read_when_it_can_be(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has changed in it: no event tells, and no time of a file."""
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    kept.write(RULE.replace("NAME", "two"), "b.toml")
    read_all = files.read_all

    def fails(directories: list[Path]) -> object:
        problem = RuleProblem(
            file=str(kept.directory), rule="", key="", message="EMFILE", code=files.NOT_HAD
        )
        return [], [problem]

    monkeypatch.setattr(files, "read_all", fails)
    kept.keeper.read()
    assert (kept.names(), len(kept.told)) == (["one"], 1)
    monkeypatch.setattr(files, "read_all", read_all)
    monkeypatch.setattr(rulekeeper, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(rulekeeper, "_LOOK_UNTOLD_S", 0.01)
    watching = asyncio.create_task(kept.keeper.watch())
    async with asyncio.timeout(30):
        while kept.names() != ["one", "two"]:
            await asyncio.sleep(0.005)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert [kind for kind, _ in kept.told] == ["rejected", "accepted"]


async def test_whatever_goes_wrong_while_they_are_read_the_last_good_rules_stay(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()

    def breaks(_: object) -> None:
        raise OverflowError("nobody has thought of that")

    monkeypatch.setattr(files, "read_all", breaks)
    kept.keeper.read()
    assert kept.names() == ["one"]
    assert "nobody has thought of that" in kept.keeper.status()["problems"][0]


async def test_a_daemon_that_starts_beside_a_bad_file_goes_on_with_the_rules_of_before(
    kept: Kept, store: Store
) -> None:
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    kept.write("[[rule]]\nnonsense = 1\n", "b.toml")
    later = Kept(kept.directory, store)
    await later.keeper.load()
    later.keeper.read()
    assert later.taken == [["one"]]
    status = later.keeper.status()
    assert status["problems"]
    assert (status["count"], status["read"] is None) == (1, False)


async def test_where_there_were_no_rules_before_none_are_in_force_and_it_says_so(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write("[[rule]]\nnonsense = 1\n")
    await kept.keeper.load()
    kept.keeper.read()
    assert kept.taken == []
    assert kept.keeper.status()["read"] is None
    assert "none are in force" in caplog.text
    assert "last good" not in caplog.text


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


@pytest.fixture
async def watching(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    """Only the kernel tells of a change: nobody looks by himself while the test runs."""
    monkeypatch.setattr(rulekeeper, "_LOOK_EVERY_S", 3600.0)
    monkeypatch.setattr(rulekeeper, "_SETTLE_S", 0.05)
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    task = asyncio.create_task(kept.keeper.watch())
    await until(lambda: kept.keeper._files.works)
    yield kept
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(question: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not question():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "how", ["written", "renamed", "linked", "through a link", "directory replaced", "directory new"]
)
async def test_what_is_saved_in_whatever_way_is_read(
    watching: Kept, tmp_path: Path, how: str
) -> None:
    two, directory = RULE.replace("NAME", "two"), watching.directory
    match how:
        case "written":
            watching.write(two)
        case "renamed":  # as editors save
            watching.write(two, ".a.toml.swp")
            (directory / ".a.toml.swp").rename(directory / "a.toml")
        case "linked" | "through a link":
            (tmp_path / "elsewhere").mkdir()
            target = tmp_path / "elsewhere" / "rules"
            target.write_text(RULE.replace("NAME", "three"))
            (directory / "a.toml").unlink()
            (directory / "a.toml").symlink_to(target)
            await until(lambda: watching.names() == ["three"])
            if how == "linked":
                target.write_text(two)
            else:
                (tmp_path / "new").write_text(two)
                (tmp_path / "new").rename(target)
        case "directory replaced":
            (tmp_path / "next").mkdir()
            (tmp_path / "next" / "a.toml").write_text(RULE.replace("NAME", "three"))
            directory.rename(tmp_path / "old")
            (tmp_path / "next").rename(directory)
            await until(lambda: watching.names() == ["three"])
            watching.write(two)  # and the new one is watched
        case "directory new":
            directory.rename(tmp_path / "old")
            await until(lambda: watching.keeper.problems)
            assert watching.names() == ["one"]
            directory.mkdir()
            watching.write(two)
    await until(lambda: watching.names() == ["two"])


async def test_what_is_half_written_is_waited_for(watching: Kept) -> None:
    whole = RULE.replace("NAME", "two")
    with (watching.directory / "a.toml").open("w") as file:
        file.write(whole[:20])
        file.flush()
        await until(lambda: watching.keeper._files.is_written(3600.0))
        for _ in range(20):  # many times as long as a file is left alone otherwise
            await asyncio.sleep(0.05)
        assert (watching.names(), watching.told) == (["one"], [])
        file.write(whole[20:])
    await until(lambda: watching.names() == ["two"])
    assert watching.told == []


async def test_what_stays_half_written_is_read_in_the_end_and_told(
    watching: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulekeeper, "_PATIENCE_S", 0.2)
    with (watching.directory / "a.toml").open("w") as file:
        file.write("[[rule]]\nname = ")
        file.flush()
        await until(lambda: watching.told)
    assert (watching.names(), watching.told[0][0]) == (["one"], "rejected")


async def test_an_editors_own_files_are_nothing(watching: Kept) -> None:
    before = watching.keeper._read_ns
    for name in (".a.toml.swp", "a.toml~", "4913"):
        watching.write("nonsense", name)
    watching.write(RULE.replace("NAME", "two"))
    await until(lambda: watching.names() == ["two"])
    assert watching.told == []
    assert watching.keeper._read_ns > before


async def test_without_inotify_the_files_are_looked_at(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify, "init", none)
    monkeypatch.setattr(rulekeeper, "_LOOK_UNTOLD_S", 0.05)
    kept.write(RULE.replace("NAME", "one"))
    kept.keeper.read()
    task = asyncio.create_task(kept.keeper.watch())
    kept.write(RULE.replace("NAME", "two"))
    await until(lambda: kept.names() == ["two"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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
