"""Going back to a snapshot: cut off anywhere it ends where it was going, or where it was before."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.errors import RefusedError
from fswatchd.incidents import Filesystem
from fswatchd.inventory.model import Backing, VeId
from fswatchd.inventory.view import NodeView, Users
from fswatchd.repair import clone, owner, restore, scope, swap, ve_control, verify
from fswatchd.repair.check import CheckResult
from fswatchd.repair.outage import Outage
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import Next, StepEnded
from tests.unit import builders
from tests.unit.inventory.test_lookup import INSIDE, superblock
from tests.unit.repair.test_outage import VE
from tests.unit.repair.test_rollback import Context, Killed, Nothing, killing, started

__all__ = ["started"]

UUID = "11111111-2222-3333-4444-555555555555"


class ToSnapshot(Context):
    """A step that puts a snapshot of ve101's image in its place; all three hold what they are."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        os.unlink(self.beside)
        self.image.write_bytes(b"damaged")
        self.snapshot = directory / "ve101.raw.snapshot-x"
        self.snapshot.write_bytes(b"snapshot")
        os.utime(self.snapshot, (1000, 1000))
        filesystem = Filesystem(
            devno=None, device=None, fstype="ext4", uuid=UUID, image=str(self.image)
        )
        self.incident = builders.incident(filesystem=filesystem, ves=(str(VE.ve_id),))
        options = {"do": "rollback", "to": str(self.snapshot)}
        self.record = SimpleNamespace(journal={}, options=options)
        self.state = None

    def filesystem_is_now(self, _: object) -> None: ...

    @property
    def files_but_the_snapshot(self) -> dict[str, bytes]:
        found = self.files()
        assert found.pop(self.snapshot.name) == b"snapshot"
        return found


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[str]) -> ToSnapshot:
    """On a node that takes every file for the filesystem, and finds every clone clean."""
    made = ToSnapshot(tmp_path)

    monkeypatch.setattr(owner, "_PATIENCE_S", -1.0)

    async def resolve(*_: object, **__: object) -> Target:
        return Target.stopped(made.incident.filesystem, VE, ImageFile.at(str(made.image)))

    async def prove(*_: object) -> None: ...

    async def copied(source: ImageFile, path: str, *_: object) -> clone.Clone:
        shutil.copyfile(source.path, path)
        return clone.Clone(file=ImageFile.at(path), shared=True)

    async def well(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(restore, "_uuid_in", lambda _: UUID)
    monkeypatch.setattr(restore, "_resolve", resolve)
    monkeypatch.setattr(restore, "_prove", prove)
    monkeypatch.setattr(scope, "image_file", ImageFile.at)
    monkeypatch.setattr(clone, "share", copied)
    monkeypatch.setattr(clone, "check_room", well)
    monkeypatch.setattr(clone, "room", lambda *_: 1)
    monkeypatch.setattr(verify, "healthy", well)
    monkeypatch.setattr(owner, "why_another", lambda *_: None)
    return made


@pytest.mark.parametrize(
    ("module", "where", "before"),
    [
        (clone, "dress", True),
        (clone, "dress", False),
        (swap, "exchange", True),
        (swap, "exchange", False),
        (swap, "rename", True),
        (swap, "rename", False),
    ],
)
async def test_whenever_it_is_killed_the_snapshot_is_in_place_afterwards(
    monkeypatch: pytest.MonkeyPatch,
    context: ToSnapshot,
    started: list[str],
    module: Any,
    where: str,
    *,
    before: bool,
) -> None:
    real_discard = clone.discard
    with monkeypatch.context() as patch:
        patch.setattr(module, where, killing_any(getattr(module, where), before=before))
        patch.setattr(clone, "discard", lambda _: None)  # who is killed tidies nothing up
        patch.setattr(Outage, "__aexit__", Nothing.done)
        with pytest.raises(Killed):
            await restore.run(context)  # type: ignore[arg-type]
    assert clone.discard is real_discard
    ended = await restore.run(context)  # type: ignore[arg-type]
    assert ended.next is Next.CONTINUE
    kept = f"ve101.raw.damaged-{context.incident.incident_id}"
    assert context.files_but_the_snapshot == {"ve101.raw": b"snapshot", kept: b"damaged"}
    assert started == ["snapshot"]


def killing_any(real: Any, *, before: bool) -> Any:
    """As `killing`, for what has keywords."""

    def killed(*arguments: Any, **named: Any) -> None:
        if not before:
            real(*arguments, **named)
        raise Killed

    return killed


async def test_a_clone_that_somebody_has_written_to_meanwhile_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, context: ToSnapshot, started: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(swap, "exchange", killing(swap.exchange, before=True))
        patch.setattr(clone, "discard", lambda _: None)
        patch.setattr(Outage, "__aexit__", Nothing.done)
        with pytest.raises(Killed):
            await restore.run(context)  # type: ignore[arg-type]
    Path(context.record.journal["clone"]["path"]).write_bytes(b"written")
    assert (await restore.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert started == ["snapshot"]


async def test_such_a_clone_is_for_a_person_where_the_ve_was_stopped_for_it(
    monkeypatch: pytest.MonkeyPatch, context: ToSnapshot, started: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(swap, "exchange", killing(swap.exchange, before=True))
        patch.setattr(clone, "discard", lambda _: None)
        patch.setattr(Outage, "__aexit__", Nothing.done)
        with pytest.raises(Killed):
            await restore.run(context)  # type: ignore[arg-type]
    Path(context.record.journal["clone"]["path"]).write_bytes(b"written")
    context.record.journal["stopping"] = True
    with pytest.raises(StepEnded, match="was stopped for it") as ended:
        await restore.run(context)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.OPERATOR
    assert context.image.read_bytes() == b"damaged"
    assert started == []


async def test_what_ends_before_the_exchange_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, context: ToSnapshot, started: list[str]
) -> None:
    monkeypatch.setattr(ve_control, "is_running", lambda _: True)
    context.disarmed = True

    async def nobody(*_: object) -> None: ...

    monkeypatch.setattr("fswatchd.repair.outsiders.require_none", nobody)
    with pytest.raises(StepEnded, match="disarmed"):
        await restore.run(context)  # type: ignore[arg-type]
    assert context.files_but_the_snapshot == {"ve101.raw": b"damaged"}
    assert started == []


@pytest.mark.parametrize("clean", [True, False])
async def test_a_clone_is_proven_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, clean: bool
) -> None:
    context = ToSnapshot(tmp_path)

    async def found(*_: object) -> CheckResult:
        return CheckResult(
            returncode=0 if clean else 4,
            output="",
            duration_s=0.0,
            clean=clean,
            damaged=not clean,
            tool="e2fsck",
        )

    async def replayed(*_: object) -> CheckResult:
        return CheckResult(returncode=0, output="", duration_s=0.0, clean=True, tool="e2fsck")

    tools = SimpleNamespace(replay=replayed, check=found)
    monkeypatch.setattr(scope, "tools_for", lambda _: tools)
    made = ImageFile.at(str(context.snapshot))
    target = Target.stopped(context.incident.filesystem, VE, made)
    if clean:
        await restore._prove(context, target, made)  # type: ignore[arg-type]
        return
    with pytest.raises(StepEnded, match="damaged as well") as ended:
        await restore._prove(context, target, made)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.OPERATOR


def test_the_newest_snapshot_that_fits_is_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ToSnapshot(tmp_path)
    newer, newest = (context.snapshot.with_name(f"ve101.raw.snapshot-{n}") for n in "yz")
    for path, at_s in ((newer, 2000), (newest, 3000)):
        path.write_bytes(b"snapshot")
        os.utime(path, (at_s, at_s))
    other = {str(newest): "99999999-2222-3333-4444-555555555555"}
    monkeypatch.setattr(restore, "_uuid_in", lambda path: other.get(path, UUID))
    assert restore.offer(context.incident).endswith(f"--to {newer}")
    monkeypatch.setattr(restore, "_uuid_in", lambda _: None)
    assert restore.offer(context.incident) == ""


def test_how_old_it_is_is_said_before_anything_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ToSnapshot(tmp_path)
    monkeypatch.setattr(restore, "_uuid_in", lambda _: UUID)
    with pytest.raises(RefusedError, match="has written since would be lost") as refused:
        restore.check(context.incident, str(context.snapshot), discard_newer=False)
    assert refused.value.code == "FSW-REFUSED-NEWER-DATA"
    restore.check(context.incident, str(context.snapshot), discard_newer=True)


def test_a_volume_that_a_repair_in_place_has_left_aside_gets_its_name_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ToSnapshot(tmp_path)
    monkeypatch.setattr(restore, "_uuid_in", lambda _: UUID)
    aside = f"{context.image}.under-repair-{context.incident.incident_id}"
    context.image.rename(aside)
    with pytest.raises(RefusedError, match="is not there: rename") as refused:
        restore.check(context.incident, str(context.snapshot), discard_newer=True)
    assert aside in refused.value.message
    assert f"once the volume is {context.image} again" in restore.offer(context.incident)
    Path(aside).unlink()
    with pytest.raises(RefusedError, match="it is gone"):
        restore.check(context.incident, str(context.snapshot), discard_newer=True)


def test_a_volume_in_no_image_has_no_snapshot(tmp_path: Path) -> None:
    incident = builders.incident(filesystem=builders.filesystem(image=None))
    with pytest.raises(RefusedError, match="no image file") as refused:
        restore.check(incident, str(tmp_path / "any"), discard_newer=True)
    assert refused.value.code == "FSW-REFUSED-NO-SNAPSHOT"
    assert restore.offer(incident) == ""


class Mounted:
    """A node where somebody has mounted the image as loop0."""

    def __init__(self, context: ToSnapshot, user: str, uuid: str | None) -> None:
        file = ImageFile.at(str(context.image))
        values: Any = {"image_devno": file.devno, "image_inode": file.inode}
        backing = Backing(kind="loop", image=str(context.image), **values)
        self.superblock = replace(superblock(0, (INSIDE, "/")), backing=backing, uuid=uuid)
        self.view = SimpleNamespace(
            superblocks={self.superblock.devno: self.superblock},
            users={self.superblock.devno: Users(ves=(VeId(user),), foreign=())},
        )

    async def refresh(self) -> None: ...


@pytest.mark.parametrize(
    ("user", "in_image", "refused"),
    [
        (str(VE.ve_id), UUID, ""),
        (str(VE.ve_id), None, ""),  # its superblock is damaged
        ("lxc:ve102", UUID, "is used by lxc:ve102 now"),
        (str(VE.ve_id), "99999999-2222-3333-4444-555555555555", "it was made anew"),
        ("lxc:ve102", "99999999-2222-3333-4444-555555555555", "it was made anew"),
    ],
)
async def test_only_what_the_incident_is_about_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    user: str,
    in_image: str | None,
    refused: str,
) -> None:
    """The name may lead to another VE's volume by now, or to one that was restored since."""
    context = ToSnapshot(tmp_path)
    context.inventory = Mounted(context, user, in_image)  # type: ignore[assignment]
    uuids = {str(context.image): in_image}
    monkeypatch.setattr(restore, "_uuid_in", lambda path: uuids.get(path, UUID))
    reached: list[object] = []

    async def resolve(*_: object, **__: object) -> object:
        reached.append(True)
        return None

    monkeypatch.setattr(scope, "resolve", resolve)
    if not refused:
        await restore._resolve(context)  # type: ignore[arg-type]
        assert reached
        return
    with pytest.raises(StepEnded, match=refused) as ended:
        await restore._resolve(context)  # type: ignore[arg-type]
    assert ended.value.result.next is Next.OPERATOR
    assert not reached
    if "anew" in refused:
        with pytest.raises(RefusedError, match=refused):
            restore.check(context.incident, str(context.snapshot), discard_newer=True)


@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_a_stopped_ve_is_found_whoever_has_its_device_number_now(
    tmp_path: Path, whose: str
) -> None:
    context = ToSnapshot(tmp_path)
    known = replace(context.incident.filesystem, devno=Devno(7, 0), device="loop0")
    incident = replace(context.incident, filesystem=known)
    found = {Devno(7, 0): superblock(0, (INSIDE, "/"))} if whose == "another's" else {}
    node: Any = SimpleNamespace(view=NodeView(superblocks=found))
    assert scope._superblock(incident, node, unmounted=True) is None
    with pytest.raises(StepEnded):
        scope._superblock(incident, node, unmounted=False)


async def test_one_that_was_cut_off_waits_for_what_its_image_lies_on(
    monkeypatch: pytest.MonkeyPatch, context: ToSnapshot, started: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(swap, "exchange", killing(swap.exchange, before=True))
        patch.setattr(clone, "discard", lambda _: None)
        patch.setattr(Outage, "__aexit__", Nothing.done)
        with pytest.raises(Killed):
            await restore.run(context)  # type: ignore[arg-type]
    context.record.journal["stopping"] = True
    away = context.image.parent.with_name("away")
    context.image.parent.rename(away)
    waits: list[str] = []

    def progress(_: object, text: str) -> None:
        if text.startswith("waiting to see") and not waits:
            away.rename(context.image.parent)
        waits.append(text)

    monkeypatch.setattr(owner, "_PATIENCE_S", 60.0)
    monkeypatch.setattr(owner, "_PAUSE_S", 0.0)
    context.progress = progress  # type: ignore[method-assign]
    assert (await restore.run(context)).next is Next.CONTINUE  # type: ignore[arg-type]
    assert waits
    assert started == ["snapshot"]
