"""A rollback that is cut off ends where it was going, and is never exchanged back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.errors import RefusedError
from fswatchd.inventory.view import NodeView
from fswatchd.repair import rollback, swap, ve_control
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings, Next, StepEnded, refuse
from tests.unit import builders
from tests.unit.repair.test_outage import VE


class Killed(BaseException):
    """kill -9."""


class Context:
    """A rollback step of an incident whose repair has put the original aside."""

    def __init__(self, directory: Path) -> None:
        self.image, self.beside = directory / "ve101.raw", directory / "ve101.raw.damaged-x"
        self.image.write_bytes(b"repaired")
        self.beside.write_bytes(b"original")
        original = replace(ImageFile.at(str(self.beside)), path=str(self.image))
        undo = {
            "image": str(self.image),
            "original": str(self.beside),
            "original_file": original.describe(),
            "repaired_file": ImageFile.at(str(self.image)).describe(),
            "ve": str(VE.ve_id),
        }
        self.settings = ActionSettings()
        self.disarmed = False
        self.incident = builders.incident(undo=undo)
        self.record = SimpleNamespace(journal={})
        self.inventory = SimpleNamespace(view=NodeView(ves={VE.ve_id: VE}), refresh=self._refresh)

    async def _refresh(self) -> None: ...

    async def lock_ve(self, ve: Any) -> Any:
        return ve

    async def about_to_start(self, _: object) -> None: ...

    async def about_to_stop(self, _: object) -> None:
        if self.disarmed:
            raise refuse("disarmed", "the node was disarmed", Next.CANCELLED)
        await self.journal(stopping=True)

    def note(self, _: str) -> None: ...

    def progress(self, *_: object) -> None: ...

    async def journal(self, **facts: Any) -> None:
        self.record.journal |= facts

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.image.parent.iterdir()}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts of the VE, on what its image was then."""
    starts: list[str] = []

    async def released(*_: object) -> None: ...

    async def running(*_: object) -> Any:
        return VE if starts else None

    async def start(_ve: object, _settings: object, image: ImageFile) -> str:
        starts.append(Path(image.path).read_text())
        return "exit code 0"

    monkeypatch.setattr(ve_control, "is_running", lambda _: False)
    monkeypatch.setattr(ve_control, "wait_released", released)
    monkeypatch.setattr(ve_control, "wait_running", running)
    monkeypatch.setattr(ve_control, "start", start)
    return starts


def killing(real: Any, *, before: bool) -> Any:
    """`real`, with the end of the daemon before or after it."""

    def killed(*arguments: Any) -> None:
        if not before:
            real(*arguments)
        raise Killed

    return killed


@pytest.mark.parametrize(
    ("where", "before"),
    [("exchange", True), ("exchange", False), ("rename", True), ("rename", False), ("", True)],
)
async def test_whenever_it_is_killed_the_original_is_in_place_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str], where: str, *, before: bool
) -> None:
    context = Context(tmp_path)
    if where:
        with monkeypatch.context() as patch:
            patch.setattr(swap, where, killing(getattr(swap, where), before=before))
            patch.setattr(rollback.Outage, "__aexit__", Nothing.done)
            with pytest.raises(Killed):
                await rollback.run(context)  # type: ignore[arg-type]
    ended = await rollback.run(context)  # type: ignore[arg-type]
    assert ended.next is Next.CONTINUE
    kept = f"ve101.raw.repaired-{context.incident.incident_id}"
    assert context.files() == {"ve101.raw": b"original", kept: b"repaired"}
    assert started == ["original"]


async def test_disarmed_right_before_the_stop_nothing_is_stopped_or_exchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str]
) -> None:
    monkeypatch.setattr(ve_control, "is_running", lambda _: True)
    monkeypatch.setattr(ve_control, "stop", lambda *_: pytest.fail("stopped"))
    context = Context(tmp_path)
    context.disarmed = True
    with pytest.raises(StepEnded) as ended:
        await rollback.run(context)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.CANCELLED
    assert context.files() == {"ve101.raw": b"repaired", "ve101.raw.damaged-x": b"original"}
    assert started == []


class Nothing:
    """What a killed daemon does at the end of a block."""

    @staticmethod
    async def done(*_: object) -> None: ...


async def test_another_file_under_the_originals_name_is_not_put_in_place(
    tmp_path: Path, started: list[str]
) -> None:
    context = Context(tmp_path)
    os.unlink(context.beside)
    context.beside.write_bytes(b"another")
    with pytest.raises(StepEnded) as caught:
        await rollback.run(context)  # type: ignore[arg-type]
    assert caught.value.result.next is Next.OPERATOR
    assert context.image.read_bytes() == b"repaired"
    assert started == []


def restored(context: Context) -> None:
    """The container was made anew, or restored, since the repair."""
    (context.image.parent / "new").write_bytes(b"another tenant's")
    os.rename(context.image.parent / "new", context.image)


async def test_what_was_restored_since_is_not_replaced_by_what_was_there_before(
    tmp_path: Path, started: list[str]
) -> None:
    context = Context(tmp_path)
    restored(context)
    with pytest.raises(RefusedError, match="not the volume that the repair has put") as refused:
        rollback.check(context.incident, discard_newer=True)
    assert str(ImageFile.at(str(context.image)).inode) in refused.value.message
    assert str(context.beside) in refused.value.hint
    with pytest.raises(StepEnded, match="not the volume that the repair has put") as ended:
        await rollback.run(context)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.OPERATOR
    assert context.files() == {
        "ve101.raw": b"another tenant's",
        "ve101.raw.damaged-x": b"original",
    }
    assert started == []


async def test_what_the_ve_has_written_since_makes_no_other_volume_of_it(
    tmp_path: Path, started: list[str]
) -> None:
    context = Context(tmp_path)
    with context.image.open("r+b") as image:
        image.write(b"written")
    rollback.check(context.incident, discard_newer=True)
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["original"]


async def test_a_repair_by_an_earlier_version_is_rolled_back_as_it_was(
    tmp_path: Path, started: list[str]
) -> None:
    context = Context(tmp_path)
    undo = {k: v for k, v in (context.incident.undo or {}).items() if k != "repaired_file"}
    context.incident = replace(context.incident, undo=undo)
    restored(context)
    rollback.check(context.incident, discard_newer=True)
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["original"]


@pytest.mark.parametrize(
    ("undo", "text", "hint"),
    [
        (None, "changed nothing", ""),
        ({"snapshot": "/vz/a.snapshot-x"}, "changed nothing", "/vz/a.snapshot-x"),
        ({"undo_file": "/state/a.undo"}, "repaired in place", "/state/a.undo"),
        ({"image": "/vz/a", "ve": "lxc:a", "keep_s": 1.0}, "not kept any more", "keep_original"),
    ],
    ids=["nothing", "only-a-snapshot", "in-place", "kept-no-longer"],
)
def test_what_cannot_be_rolled_back_says_why(undo: Any, text: str, hint: str) -> None:
    with pytest.raises(RefusedError) as caught:
        rollback.check(builders.incident(undo=undo), discard_newer=True)
    assert text in caught.value.message
    assert hint in caught.value.hint
    assert "None" not in str(caught.value)
