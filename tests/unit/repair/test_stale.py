"""A clone is swapped in only when it is a copy of what the image ended as."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.inventory.view import NodeView
from fswatchd.repair import clone, owner, resume, swap, ve_control, verify
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.journal import read_volume
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import ImageFile
from fswatchd.rules.model import FsckStep
from fswatchd.steps import ActionSettings, Next, StepEnded, refuse
from tests.unit import builders
from tests.unit.repair.test_outage import VE


class Context:
    """A step with its journal, on a node where the VE is stopped."""

    def __init__(self) -> None:
        self.settings = ActionSettings()
        self.incident = builders.incident()
        self.record = SimpleNamespace(journal={})
        self.inventory = SimpleNamespace(view=NodeView(ves={VE.ve_id: VE}), refresh=self._refresh)

    async def _refresh(self) -> None: ...

    async def lock_ve(self, ve: Any) -> Any:
        return ve

    async def about_to_start(self, _: object) -> None: ...

    def note(self, _: str) -> None: ...

    async def journal(self, **facts: Any) -> None:
        self.record.journal |= facts


class Repair(CloneRepair):
    """The real decisions; `meanwhile` is what happens while a clone is being repaired."""

    def __init__(self, context: Any, meanwhile: Callable[[int], None]) -> None:
        super().__init__(context, None)  # type: ignore[arg-type]
        self._meanwhile = meanwhile
        self.clones: list[bytes] = []
        self.swapped: bytes | None = None

    async def adopt(self, made: Any) -> None:
        self._clone = made
        self.clones.append(Path(made.path).read_bytes())

    async def _make_clone(self, target: Target) -> None:
        assert target.image is not None
        path = Path(swap.free_name(clone.clone_path(target.image, "x1", "clone")))
        path.write_bytes(Path(target.image.path).read_bytes())
        await self.adopt(ImageFile.at(str(path)))

    async def _cure(self) -> None:
        self._meanwhile(len(self.clones))

    async def _swap(self, target: Target, stamp: Any) -> bool:
        assert target.image is not None
        if not target.image.is_unchanged(stamp):
            return False
        self.swapped = self.clones[-1]
        return True

    async def start(self, target: Target) -> Any:
        return "started"

    async def run(self) -> Any:
        raise AssertionError("it was begun anew although the VE is stopped")


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"before")
    return ImageFile.at(str(path))


def write(image: ImageFile, content: bytes) -> None:
    """What a VE that somebody has started does before it is stopped again."""
    with open(image.path, "r+b") as file:
        file.write(content)


def target(image: ImageFile) -> Target:
    return Target(filesystem=builders.filesystem(), ve=VE, superblock=None, image=image)


async def test_a_clone_of_what_was_written_to_meanwhile_is_made_anew(image: ImageFile) -> None:
    repair = Repair(Context(), lambda number: write(image, b"after!") if number == 1 else None)
    assert await repair.finish(target(image), fresh=False) == "started"
    assert repair.clones == [b"before", b"after!"]
    assert repair.swapped == b"after!"


async def test_a_clone_of_what_stood_still_is_swapped_in(image: ImageFile) -> None:
    repair = Repair(Context(), lambda _: None)
    await repair.finish(target(image), fresh=False)
    assert repair.clones == [b"before"]
    assert repair.swapped == b"before"


async def test_what_never_stands_still_is_for_a_person(image: ImageFile) -> None:
    repair = Repair(Context(), lambda number: write(image, b"after%d" % number))
    with pytest.raises(StepEnded) as caught:
        await repair.finish(target(image), fresh=False)
    assert caught.value.result.next is Next.OPERATOR
    assert repair.swapped is None


@pytest.mark.parametrize("ran_meanwhile", [True, False])
async def test_a_clone_from_before_a_crash_is_taken_only_while_the_image_stood_still(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, *, ran_meanwhile: bool
) -> None:
    async def released(*_: object) -> None: ...

    monkeypatch.setattr(ve_control, "is_running", lambda _: False)
    monkeypatch.setattr(ve_control, "dead_are_gone", released)
    monkeypatch.setattr(ve_control, "wait_released", released)
    context = Context()
    path = Path(swap.free_name(clone.clone_path(image, "x1", "clone")))
    path.write_bytes(b"proven")
    made = ImageFile.at(str(path))
    await context.journal(
        image=image.describe(),
        ve=str(VE.ve_id),
        clone=made.describe(),
        stopping=True,
        fresh=True,
        stamp=image.stamp(),
    )
    if ran_meanwhile:
        write(image, b"after!")
    repair = Repair(context, lambda _: None)
    await resume.resume(repair, context)  # type: ignore[arg-type]
    assert repair.swapped == (b"after!" if ran_meanwhile else b"proven")
    assert len(repair.clones) == 1


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch, image: ImageFile) -> Context:
    """The daemon has died while it stopped the VE."""

    async def released(*_: object) -> None: ...

    monkeypatch.setattr(ve_control, "wait_released", released)
    context = Context()
    context.record.journal = {
        "image": image.describe(),
        "ve": str(VE.ve_id),
        "stopping": True,
    }
    return context


async def test_a_ve_that_was_killed_and_dies_only_now_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, stopping: Context
) -> None:
    running = [True]

    async def gone(*_: object) -> None:
        running.clear()

    monkeypatch.setattr(ve_control, "is_running", lambda _: bool(running))
    monkeypatch.setattr(ve_control, "dead_are_gone", gone)
    repair = Repair(stopping, lambda _: None)
    assert await resume.resume(repair, stopping) == "started"  # type: ignore[arg-type]
    assert repair.swapped == b"before"


class BegunAnew(Repair):
    """It seems to run still; `down` says whether it has stopped when that is found out."""

    down = True

    async def run(self) -> Any:
        await self._context.journal(stopping=False)
        self.running = not self.down
        raise refuse("cancelled", "loop1 is no longer mounted", Next.CANCELLED)


@pytest.mark.parametrize("down", [True, False])
async def test_a_ve_whose_stop_ends_only_now_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, stopping: Context, *, down: bool
) -> None:
    async def gone(*_: object) -> None: ...

    repair = BegunAnew(stopping, lambda _: None)
    repair.running, repair.down = True, down
    monkeypatch.setattr(ve_control, "is_running", lambda _: repair.running)
    monkeypatch.setattr(ve_control, "dead_are_gone", gone)
    if down:
        assert await resume.resume(repair, stopping) == "started"  # type: ignore[arg-type]
        assert repair.swapped == b"before"
        assert stopping.record.journal["stopping"]
    else:
        with pytest.raises(StepEnded):
            await resume.resume(repair, stopping)  # type: ignore[arg-type]
        assert repair.swapped is None


async def test_a_ve_that_somebody_else_has_stopped_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, stopping: Context
) -> None:
    stopping.record.journal["stopping"] = False
    repair = BegunAnew(stopping, lambda _: None)
    repair.running = True
    monkeypatch.setattr(ve_control, "is_running", lambda _: repair.running)
    with pytest.raises(StepEnded):
        await resume.resume(repair, stopping)  # type: ignore[arg-type]
    assert repair.swapped is None


def test_a_stamp_that_is_not_known_is_never_the_same(image: ImageFile) -> None:
    assert image.is_unchanged(image.stamp())
    assert not image.is_unchanged(None)
    os.rename(image.path, f"{image.path}.elsewhere")
    assert image.stamp() is None
    assert not image.is_unchanged(None)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("well", [True, False])
async def test_for_the_way_back_both_volumes_are_known(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, *, well: bool, declared: bool
) -> None:
    async def found(*_: object) -> Any:
        return (VE, SimpleNamespace()) if well else "it does not run"

    async def healthy(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(ve_control, "is_running", lambda _: True)
    monkeypatch.setattr(verify, "find_mounted", found)
    monkeypatch.setattr(verify, "healthy", healthy)
    context: Any = Context()
    context.state = None
    if declared:
        owners = {(image.devno, image.inode): VE.ve_id}
        context.inventory.view = NodeView(ves={VE.ve_id: VE}, image_owners=owners)
    context.reached = context.filesystem_is_now = lambda _: None
    beside = f"{image.path}.fswatchd-clone-x1"
    Path(beside).write_bytes(b"repaired")
    made = ImageFile.at(beside)
    os.rename(image.path, f"{image.path}.damaged-x1")
    os.rename(beside, image.path)
    await context.journal(clone=made.describe(), kept=f"{image.path}.damaged-x1")
    ended = await CloneRepair(context, FsckStep(do="fsck")).start(target(image))
    assert (ended.result == "repaired") is well
    undo = ended.undo or {}
    repaired, original = (read_volume(undo[name]) for name in ("repaired_file", "original_file"))
    assert repaired is not None
    assert repaired.is_at(undo["image"])
    assert original is not None
    assert original.is_at(undo["original"])
    # What tells whose it is later, where the VE does not declare it.
    assert undo["ve_volumes"] == (None if declared else [])


@pytest.mark.parametrize("comes", [True, False])
async def test_what_lies_on_something_that_is_mounted_later_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, *, comes: bool
) -> None:
    """Else the plan would end as if the volume were gone, a minute before it can be seen."""
    away = Path(image.path).rename(image.path + ".away")
    waits: list[str] = []

    class Waiting(Context):
        def progress(self, _: object, text: str) -> None:
            waits.append(text)
            if comes and len(waits) == 3:
                away.rename(image.path)

    monkeypatch.setattr(owner, "_PAUSE_S", 0.0)
    monkeypatch.setattr(owner, "_PATIENCE_S", 60.0 if comes else 0.01)
    await owner.wait_seen(Waiting(), image, image.path + ".damaged-x")  # type: ignore[arg-type]
    assert set(waits) == {f"waiting to see {image.path}"}
    assert image.is_at(image.path) is comes
