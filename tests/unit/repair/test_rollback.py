"""A rollback that is cut off ends where it was going, and is never exchanged back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.errors import RefusedError
from fswatchd.incidents import StepRecord, StepState
from fswatchd.inventory.model import Backing, Ve, VeId, Volume
from fswatchd.inventory.view import NodeView
from fswatchd.repair import outsiders, rollback, swap, ve_control, verify
from fswatchd.repair.outage import Outage
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings, Next, StepEnded, refuse
from tests.unit import builders
from tests.unit.inventory.test_lookup import INSIDE, superblock
from tests.unit.repair.test_outage import VE

REALLY_MOUNTED = verify.find_mounted


class Killed(BaseException):
    """kill -9."""


class Node:
    """ve101, which declares an image as its volume; `mounted` are those it runs on."""

    def __init__(self, image: Path) -> None:
        self.ve = replace(VE, volumes=(Volume(image=str(image)),))
        self.mounted: tuple[Path, ...] = ()
        self.others: dict[Path, Ve] = {}

    async def refresh(self) -> None: ...

    def runs_on(self, *images: Path) -> None:
        """It runs, and has these mounted."""
        self.mounted = images
        self.ve = replace(self.ve, init_pid=77, init_started=1)

    @property
    def view(self) -> NodeView:
        owned = [(Path(one.image), self.ve) for one in self.ve.volumes if one.image]
        owned += self.others.items()
        return NodeView(
            superblocks={
                Devno(7, n): replace(superblock(n, (INSIDE, "/")), backing=backing(image))
                for n, image in enumerate(self.mounted)
            },
            ves={one.ve_id: one for one in (self.ve, *self.others.values())},
            owners={INSIDE: self.ve.ve_id},
            image_owners={
                (found.devno, found.inode): one.ve_id
                for image, one in owned
                if image.exists() and (found := ImageFile.at(str(image)))
            },
        )


def backing(image: Path) -> Backing:
    found = ImageFile.at(str(image))
    values: Any = {"image_devno": found.devno, "image_inode": found.inode}
    return Backing(kind="loop", image=str(image), **values)


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
        self.inventory = Node(self.image)

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

    async def mounted(_context: object, ve: Ve, *_: object) -> Any:
        return (ve, None) if starts else f"{ve.ve_id} did not come up"

    monkeypatch.setattr(ve_control, "wait_running", running)
    monkeypatch.setattr(ve_control, "start", start)
    monkeypatch.setattr(verify, "find_mounted", mounted)
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
            patch.setattr(Outage, "__aexit__", Nothing.done)
            with pytest.raises(Killed):
                await rollback.run(context)  # type: ignore[arg-type]
    ended = await rollback.run(context)  # type: ignore[arg-type]
    assert ended.next is Next.CONTINUE
    kept = f"ve101.raw.repaired-{context.incident.incident_id}"
    assert context.files() == {"ve101.raw": b"original", kept: b"repaired"}
    assert started == ["original"]


@pytest.mark.parametrize("mounts", ["it", "another", "nothing"])
async def test_a_ve_that_runs_on_something_else_is_told_to_a_person(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str], mounts: str
) -> None:
    """That it runs is no proof that it runs on what was put back."""
    context, other = Context(tmp_path), tmp_path / "other.raw"
    other.write_bytes(b"other")
    monkeypatch.setattr(verify, "find_mounted", REALLY_MOUNTED)
    context.settings = replace(context.settings, start_timeout_s=0.05)
    start = ve_control.start

    async def then_runs(ve: Any, settings: Any, image: Any) -> str:
        context.inventory.runs_on(
            *{"it": (context.image,), "another": (other,), "nothing": ()}[mounts]
        )
        return await start(ve, settings, image)

    monkeypatch.setattr(ve_control, "start", then_runs)
    ended = await rollback.run(context)  # type: ignore[arg-type]
    assert started == ["original"]
    assert ended.result == "rolled back"
    assert ended.next is (Next.CONTINUE if mounts == "it" else Next.OPERATOR)
    assert ("has not mounted" in ended.detail) is (mounts != "it")


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
        rollback.check(context.incident, context.inventory.view, discard_newer=True)
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
    rollback.check(context.incident, context.inventory.view, discard_newer=True)
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["original"]


async def test_a_repair_by_an_earlier_version_is_rolled_back_as_it_was(
    tmp_path: Path, started: list[str]
) -> None:
    context = Context(tmp_path)
    undo = {k: v for k, v in (context.incident.undo or {}).items() if k != "repaired_file"}
    context.incident = replace(context.incident, undo=undo)
    restored(context)
    rollback.check(context.incident, context.inventory.view, discard_newer=True)
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
        rollback.check(builders.incident(undo=undo), NodeView(), discard_newer=True)
    assert text in caught.value.message
    assert hint in caught.value.hint
    assert "None" not in str(caught.value)


# --- whose it is ------------------------------------------------------------------------------


def another(context: Context) -> Path:
    """What a backup was restored to, beside the volume that the repair has put in place."""
    found = context.image.with_name("ve101-new.raw")
    found.write_bytes(b"restored")
    return found


async def refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why; nothing is stopped, exchanged or started for it."""
    monkeypatch.setattr(ve_control, "is_running", lambda ve: ve.init_pid is not None)
    for does in ("stop", "start"):
        monkeypatch.setattr(ve_control, does, lambda *_, does=does: pytest.fail(does))
    before = context.files()
    with pytest.raises(RefusedError) as asked:
        rollback.check(context.incident, context.inventory.view, discard_newer=True)
    assert asked.value.code == "FSW-REFUSED-NOT-ITS-VOLUME"
    assert str(context.beside) in asked.value.hint
    with pytest.raises(StepEnded) as ended:
        await rollback.run(context)  # type: ignore[arg-type]
    result = ended.value.result
    assert (result.result, result.next) == ("not its volume", Next.OPERATOR)
    assert result.detail == f"{asked.value.message}; {asked.value.hint}"
    assert context.files() == before
    assert not context.record.journal.get("stopping")
    return asked.value.message


@pytest.mark.parametrize("repaired_file", [True, False], ids=["", "earlier version"])
async def test_a_ve_that_runs_on_another_image_by_now_is_not_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, repaired_file: bool
) -> None:
    context = Context(tmp_path)
    if not repaired_file:
        undo = {k: v for k, v in (context.incident.undo or {}).items() if k != "repaired_file"}
        context.incident = replace(context.incident, undo=undo)
    new = another(context)
    context.inventory.ve = replace(context.inventory.ve, volumes=(Volume(image=str(new)),))
    context.inventory.runs_on(new)
    text = await refused(context, monkeypatch)
    assert text == f"{VE.ve_id} runs on {new}, and has not mounted {context.image}"


async def test_a_ve_that_runs_on_another_image_is_not_stopped_for_what_it_declares(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = Context(tmp_path)
    context.inventory.runs_on(another(context))
    assert "runs on" in await refused(context, monkeypatch)


async def test_a_stopped_ve_that_would_be_started_on_another_image_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = Context(tmp_path)
    new = another(context)
    context.inventory.ve = replace(context.inventory.ve, volumes=(Volume(image=str(new)),))
    assert f"would be started on {new}, and not on" in await refused(context, monkeypatch)


async def test_who_has_the_volume_now_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The VE was renamed, and another got its name."""
    context = Context(tmp_path)
    context.inventory.ve = replace(context.inventory.ve, volumes=())
    renamed = replace(VE, ve_id=VeId("declared:ve201"), name="ve201")
    context.inventory.others = {context.image: renamed}
    text = await refused(context, monkeypatch)
    assert text.endswith("; that is a volume of declared:ve201")


async def test_one_that_runs_on_it_is_rolled_back_whatever_it_declares(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str]
) -> None:
    """A volume that its platform does not tell, among others."""
    context = Context(tmp_path)
    context.inventory.ve = replace(context.inventory.ve, volumes=())
    context.inventory.runs_on(another(context), context.image)
    stops: list[str] = []

    async def stop(ve: Ve, _: object) -> str:
        stops.append(ve.ve_id)
        return "exit code 0"

    monkeypatch.setattr(ve_control, "is_running", lambda _: not stops)
    monkeypatch.setattr(ve_control, "stop", stop)
    monkeypatch.setattr(outsiders, "require_none", Nothing.done)
    rollback.check(context.incident, context.inventory.view, discard_newer=True)
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert (stops, started) == ([VE.ve_id], ["original"])


async def test_a_declared_path_may_be_a_link_to_it(tmp_path: Path, started: list[str]) -> None:
    context = Context(tmp_path)
    link = tmp_path / "vz"
    link.symlink_to(tmp_path)
    view = context.inventory.view
    through = replace(VE, volumes=(Volume(image=str(link / "ve101.raw")),))
    context.inventory = SimpleNamespace(  # type: ignore[assignment]
        view=replace(view, ves={VE.ve_id: through}), refresh=context.inventory.refresh
    )
    rollback.check(context.incident, context.inventory.view, discard_newer=True)
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["original"]


@pytest.mark.parametrize(
    ("state", "declared_then", "declares_now", "may"),
    [
        (StepState.FAILED, [], (), True),
        (StepState.FAILED, ["/vz/root"], ("/vz/root",), True),
        (StepState.FAILED, [], ("/vz/root",), False),
        (StepState.FAILED, ["/vz/root"], (), False),
        (StepState.FAILED, None, (), False),
        (StepState.DONE, [], (), False),
    ],
    ids=["nothing", "others", "more", "less", "it was declared", "it ran after the repair"],
)
async def test_where_a_platform_does_not_tell_the_volume_it_is_as_the_repair_has_left_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    started: list[str],
    state: StepState,
    declared_then: list[str] | None,
    declares_now: tuple[str, ...],
    *,
    may: bool,
) -> None:
    """A start that has failed leaves the VE stopped, and nothing is mounted that would tell."""
    context = Context(tmp_path)
    step = StepRecord(do="fsck", state=state, journal={"put_aside": True})
    undo = {**(context.incident.undo or {}), "ve_volumes": declared_then}
    context.incident = replace(context.incident, undo=undo, steps=(step,))
    volumes = tuple(Volume(image=path) for path in declares_now)
    context.inventory.ve = replace(context.inventory.ve, volumes=volumes)
    if not may:
        await refused(context, monkeypatch)
        return
    rollback.check(context.incident, context.inventory.view, discard_newer=True)
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["original"]


async def test_one_that_it_has_stopped_itself_is_not_left_down(
    tmp_path: Path, started: list[str]
) -> None:
    """Cut off after the stop: what it had mounted then was looked at before."""
    context = Context(tmp_path)
    context.inventory.ve = replace(context.inventory.ve, volumes=())
    context.record.journal["stopping"] = True
    assert (await rollback.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["original"]
