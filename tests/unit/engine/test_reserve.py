"""Below the reserve what is kept goes: the oldest first, never what may still be needed."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fswatchd.engine import reserve
from fswatchd.engine.reserve import ReserveWatch
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.repair import clone, originals, storage
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings, StepEnded
from fswatchd.store.store import StoreError
from tests.unit.builders import NOW_NS, incident

FULL = ActionSettings(reserve_bytes=1 << 60)
EMPTY = ActionSettings(reserve_bytes=0, reserve_share=0.0)


def kept(directory: Path, name: str, ago: int, state: State = State.CLOSED) -> Incident:
    path = directory / f"image.damaged-{name}"
    path.write_text(name)
    undo = {"original": str(path), "original_file": ImageFile.at(str(path)).describe()}
    return replace(
        incident(),
        incident_id=name,
        state=state,
        outcome=Outcome.REPAIRED,
        closed_ns=NOW_NS - ago,
        undo=undo,
    )


class Known:
    """Book and store of these incidents."""

    def __init__(self, *found: Incident) -> None:
        self.found = {one.incident_id: one for one in found}
        self.told: list[Incident] = []

    def subscribe(self, listener) -> None:
        for one in self.found.values():
            listener(None, one)

    def get(self, incident_id: str) -> Incident | None:
        one = self.found[incident_id]
        return None if one.state is State.CLOSED else one

    async def amend(self, incident_id: str, change) -> Incident | None:
        changed = change(self.found[incident_id])
        if changed is not None:
            self.found[incident_id] = changed
        return changed

    def watch(self, settings: ActionSettings) -> ReserveWatch:
        return ReserveWatch(cast("Any", self), cast("Any", self), settings, self.told.append)


def beside(directory: Path, settings: ActionSettings) -> storage.Storage:
    image = directory / "image"
    image.touch()
    return storage.of(ImageFile.at(str(image)), settings)


def left(directory: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in directory.iterdir())


async def test_while_there_is_room_nothing_goes(tmp_path) -> None:
    known = Known(kept(tmp_path, "old", 99))
    watch = known.watch(EMPTY)
    await watch.look()
    assert (left(tmp_path), known.told, watch.low()) == (["old"], [], [])


async def test_the_oldest_goes_first_and_it_is_told(tmp_path, monkeypatch) -> None:
    known = Known(kept(tmp_path, "new", 1), kept(tmp_path, "old", 99))
    rooms = iter((-5, 5))
    monkeypatch.setattr(clone, "room", lambda *_: next(rooms))
    await known.watch(FULL).look()
    assert left(tmp_path) == ["new"]
    (told,) = known.told
    assert (told.incident_id, told.undo) == ("old", {})
    assert "was deleted" in told.log[-1][1]
    assert "reserve" in told.log[-1][1]


def repaired_twice(directory: Path, name: str, ago: int) -> Incident:
    """An incident with two repairs, each of which has put an original aside."""
    first, second = kept(directory, f"{name}-1", ago), kept(directory, f"{name}-2", ago)
    return replace(second, undo=originals.merged(first.undo, second.undo or {}))


async def test_of_an_incident_with_two_repairs_the_first_original_goes_first(
    tmp_path, monkeypatch
) -> None:
    known = Known(repaired_twice(tmp_path, "old", 99), kept(tmp_path, "new", 1))
    watch = known.watch(FULL)
    for stay in (["new", "old-2"], ["new"]):
        rooms = iter((-5, 5))
        monkeypatch.setattr(clone, "room", lambda *_, rooms=rooms: next(rooms))
        await watch.look()
        assert left(tmp_path) == stay
    first, second = (dict(told.undo or {}) for told in known.told)
    assert first["original"] == str(tmp_path / "image.damaged-old-2")
    assert second == {}


async def test_a_store_that_does_not_answer_at_first_is_asked_again(tmp_path, monkeypatch) -> None:
    """What was kept before the start is known as soon as it can be read."""
    one = kept(tmp_path, "old", 99)
    known, answers = Known(one), iter((StoreError("it is locked"), [one]))
    monkeypatch.setattr(known, "subscribe", lambda _: None)
    monkeypatch.setattr(reserve, "_LOOK_EVERY_S", 0.0)

    async def with_original() -> list[Incident]:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    known.with_original = with_original  # type: ignore[attr-defined]
    gone = asyncio.Event()
    watch = ReserveWatch(cast("Any", known), cast("Any", known), FULL, lambda _incident: gone.set())
    running = asyncio.create_task(watch.run())
    told = asyncio.create_task(gone.wait())
    await asyncio.wait({running, told}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert not running.done()
    assert left(tmp_path) == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_not_settled_stays_and_it_is_said(tmp_path) -> None:
    known = Known(
        kept(tmp_path, "verifying", 99, State.VERIFYING),
        kept(tmp_path, "rolling-back", 99, State.ACTING),
        kept(tmp_path, "operator", 99, State.NEEDS_OPERATOR),
    )
    watch = known.watch(FULL)
    await watch.look()
    assert left(tmp_path) == ["operator", "rolling-back", "verifying"]
    assert known.told == []
    (low,) = watch.low()
    assert str(tmp_path) in low


@pytest.mark.parametrize("outcome", [Outcome.DISMISSED, Outcome.RECOVERED, Outcome.FALSE_ALARM])
async def test_what_was_never_proven_stays_also_when_somebody_has_closed_it(
    tmp_path, outcome: Outcome
) -> None:
    """`fswatch ack` of a repair that has failed says that it was seen, not that it may go."""
    known = Known(replace(kept(tmp_path, "failed", 99), outcome=outcome))
    watch = known.watch(FULL)
    await watch.look()
    assert left(tmp_path) == ["failed"]
    assert watch.low()


async def test_another_file_of_that_name_stays(tmp_path) -> None:
    known = Known(kept(tmp_path, "old", 99))
    path = tmp_path / "image.damaged-old"
    path.rename(tmp_path / "image.damaged-moved")
    path.write_text("somebody else's")
    await known.watch(FULL).look()
    assert left(tmp_path) == ["moved", "old"]


async def test_a_preview_is_given_up_when_the_reserve_is_touched(tmp_path) -> None:
    ended = asyncio.Event()

    async def look() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(StepEnded, match="below its reserve"):
        await storage.while_there_is_room(look(), beside(tmp_path, FULL))
    assert ended.is_set()


async def test_a_preview_with_room_goes_on_to_its_end(tmp_path) -> None:
    async def look() -> int:
        await asyncio.sleep(0)
        return 42

    assert await storage.while_there_is_room(look(), beside(tmp_path, EMPTY)) == 42


async def test_a_filesystem_that_does_not_answer_is_named_and_nothing_there_goes(
    tmp_path, monkeypatch
) -> None:
    """Where the disk below hangs statvfs(3) never returns; what can be asked is looked after."""
    answered, dead, well = threading.Event(), tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    real = os.statvfs

    def statvfs(path: str) -> os.statvfs_result:
        if path == str(dead):
            answered.wait()
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(clone, "_PATIENCE_S", 0.05)
    known = Known(kept(dead, "old", 99), kept(well, "other", 99))
    watch = known.watch(FULL)
    try:
        await watch.look()
        assert (left(dead), left(well)) == (["old"], [])
        (low,) = [text for text in watch.low() if str(dead) in text]
        assert "does not answer" in low
    finally:
        answered.set()
