"""The end of a repair in place: under which name the volume is left."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from fswatchd.devno import Devno
from fswatchd.incidents import StepRecord
from fswatchd.repair import e2fsck, offline, owner
from fswatchd.repair.check import CheckResult
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import ImageFile
from fswatchd.rules.model import FsckStep
from fswatchd.sandbox import SandboxError
from fswatchd.steps import ActionSettings, Next, StepEnded
from tests.unit import builders
from tests.unit.repair.test_outage import VE

TARGET = Target(
    filesystem=builders.filesystem(),
    ve=VE,
    superblock=None,
    image=ImageFile(path="/vz/ve101.raw", devno=Devno(8, 1), inode=77),
)


class Context:
    """As much of an ActionContext as is used."""

    settings = ActionSettings()
    incident = builders.incident()

    def reached(self, _: str) -> None: ...
    def progress(self, *_: object) -> None: ...
    async def lock_ve(self, ve: Any) -> Any:
        return ve

    async def about_to_start(self, _: object) -> None: ...

    def note(self, _: str) -> None: ...
    async def journal(self, **_: object) -> None: ...


class Hold:
    """A volume that is held, and how it was let go."""

    device = "/dev/loop7"
    file = None
    in_place: bool | None = None
    written = False
    hangs = False
    unwritten: str | None = None

    async def sync(self) -> str | None:
        return self.unwritten

    async def untouched(self) -> bool:
        return not self.written

    async def release(self, *, in_place: bool) -> str | None:
        self.in_place = in_place
        return None if in_place and not self.hangs else "/vz/ve101.raw.under-repair-x"


class Outage:
    """Whether the VE may still be given back."""

    ended = False

    def end(self) -> None:
        self.ended = True


async def test_a_check_that_is_cut_off_leaves_the_volume_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold, outage, begun = Hold(), Outage(), asyncio.Event()

    async def take(*_: object) -> Hold:
        return hold

    async def never_ends(*_: object) -> Any:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(offline.Hold, "take", take)
    monkeypatch.setattr(e2fsck, "repair", never_ends)
    task = asyncio.create_task(
        offline.repair_stopped(Context(), TARGET, None, "/undo", outage)  # type: ignore[arg-type]
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hold.in_place is False
    assert outage.ended


def held(monkeypatch: pytest.MonkeyPatch) -> Hold:
    hold = Hold()

    async def take(*_: object) -> Hold:
        return hold

    async def start(*_: object) -> Any:
        raise AssertionError("the VE was started")

    monkeypatch.setattr(offline.Hold, "take", take)
    monkeypatch.setattr(offline, "_start", start)
    return hold


@pytest.mark.parametrize("written", [False, True])
async def test_after_a_tool_that_cannot_be_run_nobody_starts_on_what_was_written(
    monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    hold, outage = held(monkeypatch), Outage()
    hold.written = written

    async def fails(*_: object) -> Any:
        raise SandboxError("no sandbox")

    monkeypatch.setattr(e2fsck, "repair", fails)
    with pytest.raises(SandboxError):
        await offline.repair_stopped(Context(), TARGET, None, "/undo", outage)  # type: ignore[arg-type]
    assert hold.in_place is not written
    assert outage.ended is written, "what was not touched the VE gets back"


async def test_what_was_proven_and_does_not_reach_the_disk_is_not_started_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold, outage = held(monkeypatch), Outage()
    hold.unwritten, hold.written = "Input/output error", True

    async def clean(*_: object, **__: object) -> CheckResult:
        return CheckResult(returncode=0, output="", duration_s=0.0, clean=True, tool="e2fsck")

    async def not_undone(*_: object) -> bool:
        return False

    monkeypatch.setattr(e2fsck, "repair", clean)
    monkeypatch.setattr(e2fsck, "check", clean)
    monkeypatch.setattr(offline, "_undone", not_undone)
    with pytest.raises(StepEnded, match="does not reach the disk: Input/output error") as ended:
        await offline.repair_stopped(Context(), TARGET, None, "/undo", outage)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.OPERATOR
    assert "/vz/ve101.raw.under-repair-x" in ended.value.result.detail
    assert hold.in_place is False
    assert outage.ended


async def test_what_cannot_be_written_is_let_go_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the node itself would keep the volume from whoever wants to start its VE."""
    image = tmp_path / "ve101.raw"
    image.write_bytes(b"volume")
    target = replace(TARGET, image=ImageFile.at(str(image)))
    (tmp_path / "aside").write_bytes(b"")
    image.rename(tmp_path / "aside")
    base, loop_fd = (os.open(tmp_path / "aside", os.O_RDWR) for _ in range(2))
    hold = offline.Hold(target, str(tmp_path / "aside"), base)
    hold._fd = loop_fd

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    async def detached(*_: object) -> bool:
        return True

    monkeypatch.setattr(os, "fsync", fails)
    monkeypatch.setattr(offline, "_detached", detached)
    assert await hold.release(in_place=True) == str(tmp_path / "aside")
    for fd in (base, loop_fd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert not image.exists()


def test_each_repair_has_an_undo_file_of_its_own(tmp_path: Path) -> None:
    """e2fsck adds to none, and ends where there is one."""
    context: Any = Context()
    context.settings = SimpleNamespace(state_dir=tmp_path)
    context.incident = builders.incident()
    first = Path(offline._undo_file(context, TARGET))
    first.write_bytes(b"of the first repair")
    second = Path(offline._undo_file(context, TARGET))
    assert second != first
    assert second.match("*.e2undo*")


async def test_a_tool_that_cannot_be_killed_keeps_the_volume_aside_though_it_was_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold, outage = held(monkeypatch), Outage()
    hold.hangs = True

    async def clean(*_: object, **__: object) -> CheckResult:
        return CheckResult(returncode=0, output="", duration_s=0.1, clean=True)

    monkeypatch.setattr(e2fsck, "repair", clean)
    monkeypatch.setattr(e2fsck, "check", clean)
    with pytest.raises(StepEnded, match="still attached") as ended:
        await offline.repair_stopped(Context(), TARGET, None, "/undo", outage)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.OPERATOR
    assert outage.ended


@pytest.mark.parametrize(
    ("journal", "anew"),
    [
        ({"stopping": False}, True),
        ({"stopping": True}, False),
        ({"stopping": False, "writing": True}, False),
        ({"stopping": False, "writing": False, "proven": "clean"}, False),
    ],
)
async def test_after_a_crash_a_ve_that_somebody_else_has_stopped_is_asked_about_anew(
    monkeypatch: pytest.MonkeyPatch, journal: dict[str, Any], *, anew: bool
) -> None:
    async def run(*_: object) -> str:
        return "anew"

    monkeypatch.setattr(offline, "run", run)
    monkeypatch.setattr(owner, "_GONE_S", 0.0)
    context = Context()
    context.inventory = Gone()  # type: ignore[attr-defined]
    facts = {"image": TARGET.image.describe(), "ve": "declared:ve101", **journal}  # type: ignore[arg-type]
    context.record = StepRecord(do="fsck", options={}, journal=facts)  # type: ignore[attr-defined]
    step = FsckStep(do="fsck")
    if anew:
        assert await offline.recover(context, step) == "anew"  # type: ignore[arg-type,comparison-overlap]
    else:
        with pytest.raises(StepEnded, match="is gone"):
            await offline.recover(context, step)  # type: ignore[arg-type]


class Gone:
    """An inventory that knows no VE."""

    class view:
        ves: ClassVar[dict[str, Any]] = {}

    problems: ClassVar[dict[str, str]] = {}

    async def refresh(self) -> None: ...
