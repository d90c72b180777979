"""What becomes of open incidents when the node is booted: numbers and attachments are new."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine import mounted_again, scoping
from fswatchd.engine.attribution import Attribution
from fswatchd.engine.closer import Closer
from fswatchd.engine.decider import Decider
from fswatchd.engine.intake import Intake
from fswatchd.engine.mounted_again import moved, taken_up
from fswatchd.engine.stream import EventStream
from fswatchd.events import Domain, VeState
from fswatchd.incidents import Filesystem, Incident, Outcome, State
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    RemoteFilesystem,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import proc
from fswatchd.repair import scope
from fswatchd.store.store import Store
from tests.unit import builders
from tests.unit.inventory.test_lookup import superblock, ve

IMAGE = builders.filesystem()
LVM, LVM_NOW = Devno(253, 3), Devno(253, 5)
SDA3, LOOP = (Devno(8, 3), None), (builders.LOOP3, None)
VOLUME = builders.filesystem(device="dm-3", devno=LVM, image=None, image_inode=None)


def image(ve: int, devno: Devno = builders.LOOP3) -> Superblock:
    """The image of a VE, on what was loop3 with sequence 42 of ve101 before the boot."""
    return Superblock(
        devno=devno,
        fstype="ext4",
        device=f"loop{devno.minor}",
        disk_sequence=42,
        mounts=(),
        backing=Backing(
            kind="loop",
            image=f"/vz/ve{ve}.raw",
            image_devno=Devno(8, 1),
            image_inode=ve - 24,
        ),
        uuid=IMAGE.uuid if ve == 101 else "99999999-2222-3333-4444-555555555555",
    )


def volume(devno: Devno) -> Superblock:
    return Superblock(
        devno=devno,
        fstype="ext4",
        device=f"dm-{devno.minor}",
        disk_sequence=42,
        mounts=(),
        backing=Backing(kind="device"),
        uuid=VOLUME.uuid,
    )


def view_of(**owners: Superblock) -> NodeView:
    ves = {
        VeId(f"lxc:{name}"): Ve(
            ve_id=VeId(f"lxc:{name}"),
            platform="lxc",
            native_id=name,
            name=name,
            state=VeState.RUNNING,
        )
        for name in owners
    }
    return NodeView(
        superblocks={one.devno: one for one in owners.values()},
        ves=ves,
        device_owners={one.devno: VeId(f"lxc:{name}") for name, one in owners.items()},
    )


Booted = Callable[[Incident], Any]


@pytest.fixture
async def after_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Booted]:
    """A book that has loaded what one of an earlier boot (or, if told so, of this one) has left."""
    stores: list[Store] = []

    async def opened() -> tuple[IncidentBook, Store]:
        store = Store(tmp_path / "fswatchd.db")
        await store.open()
        stores.append(store)
        return IncidentBook(store, "hn1"), store

    async def load(left: Incident, *, boot: bool = True) -> IncidentBook:
        with monkeypatch.context() as patch:
            if boot:
                patch.setattr(proc, "boot_id", lambda: "an earlier boot")
            before, store = await opened()
        before.put(left.on_clock(*before.clock()))
        before.flush()
        await store.close()
        stores.remove(store)
        book, _ = await opened()
        await book.load()
        return book

    yield load
    for store in stores:
        await store.close()


def taken(book: IncidentBook) -> Incident:
    (found,) = book.open_incidents()
    return found


@pytest.mark.parametrize("state", [State.NEEDS_OPERATOR, State.WAITING, State.VERIFYING])
@pytest.mark.parametrize("boot", [False, True])
async def test_who_has_the_number_after_a_boot_has_not_the_incident(
    after_boot, state: State, *, boot: bool
) -> None:
    book = await after_boot(builders.incident(state=state), boot=boot)
    view = view_of(ve102=image(102))
    now = view.describe(view.superblocks[builders.LOOP3])
    assert now.key == IMAGE.key  # by chance
    known = taken(book)
    assert (book.find(now, Domain.DAMAGE) is None) is boot
    assert (view.attached(known.filesystem) is None) is boot
    assert view.gone_over(known.filesystem) is boot
    assert known.filesystem == replace(IMAGE, boot="an earlier boot" if boot else None)


async def test_the_boot_that_a_number_is_of_stays_through_further_ones() -> None:
    found = builders.incident().on_clock("first", 0).on_clock("second", 0).on_clock("third", 0)
    assert found.filesystem.boot == "first"


async def test_what_has_no_number_is_the_same_after_a_boot() -> None:
    known = Filesystem(devno=None, device=None, fstype="ext4", image="/vz/ve101.raw")
    found = builders.incident(filesystem=known).on_clock("first", 0).on_clock("second", 0)
    assert found.filesystem == known


async def test_a_closed_incident_that_is_taken_up_again_is_not_about_who_has_its_number(
    after_boot,
) -> None:
    book = await after_boot(builders.incident())
    old = builders.incident(incident_id="old", opened_ns=builders.NOW_NS + 1, state=State.CLOSED)
    book.put(replace(old.on_clock("an earlier boot", 0), state=State.ACTING))
    assert book.find(replace(IMAGE, image="/vz/ve102.raw"), Domain.DAMAGE) is None
    assert book.under_repair(builders.LOOP3, Domain.DAMAGE) is None


@pytest.mark.parametrize("boot", [False, True])
async def test_a_line_about_who_has_the_number_is_not_part_of_what_was_repaired_there(
    after_boot, *, boot: bool
) -> None:
    book = await after_boot(builders.incident(state=State.VERIFYING), boot=boot)
    book.close(taken(book).reached("repaired", 10**18), Outcome.REPAIRED, "healthy")
    assert (book.repaired_since(builders.LOOP3, Domain.DAMAGE, 5) is None) is boot


async def test_incidents_of_a_version_that_knew_no_boots_are_read() -> None:
    kind = TypeAdapter(Incident)
    document = json.loads(kind.dump_json(builders.incident()))
    del document["filesystem"]["boot"], document["filesystem"]["unmounted"], document["earlier"]
    assert kind.validate_python(document) == builders.incident()


async def swept(book: IncidentBook, view: NodeView, poked: list[str]) -> None:
    """One sweep of the closer."""

    async def refresh() -> None: ...

    closer = Closer(
        book,
        cast("Any", SimpleNamespace(view=view, refresh=refresh)),
        cast("Any", SimpleNamespace(check=lambda _: None, health=lambda _: None)),
        forget_volume=lambda _: None,
        poke=poked.append,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    task = asyncio.create_task(closer.run())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("known", "state", "now"),
    [
        (VOLUME, State.NEEDS_OPERATOR, volume(LVM)),
        (VOLUME, State.NEEDS_OPERATOR, volume(LVM_NOW)),
        (VOLUME, State.WAITING, volume(LVM)),
        (VOLUME, State.VERIFYING, volume(LVM_NOW)),
        (IMAGE, State.NEEDS_OPERATOR, image(101, Devno(7, 9))),
        (IMAGE, State.VERIFYING, image(101, Devno(7, 9))),
    ],
)
async def test_an_incident_goes_on_where_its_volume_is_mounted_after_a_boot(
    after_boot, known: Filesystem, state: State, now: Superblock
) -> None:
    left = builders.incident(filesystem=known, state=state, healthy_s=3600.0)
    book = await after_boot(left)
    view, poked = view_of(ve101=now), []
    await swept(book, view, poked)
    found = taken(book)
    assert found.filesystem == view.describe(now)
    assert (found.state, found.ves) == (state, left.ves)
    assert f"mounted again as {now.device}" in found.log[-1][1]
    assert poked == ([found.incident_id] if state is State.WAITING else [])


@pytest.mark.parametrize("known", [IMAGE, VOLUME])
async def test_it_does_not_go_on_at_another_ve(after_boot, known: Filesystem) -> None:
    book = await after_boot(builders.incident(filesystem=known, state=State.NEEDS_OPERATOR))
    await swept(book, view_of(ve102=image(102), ve103=volume(LVM)), [])
    found = taken(book)
    assert found.filesystem == replace(known, boot="an earlier boot")
    assert found.ves == ("lxc:ve101",)


@pytest.mark.parametrize("ve", [101, 102])
async def test_an_error_after_a_boot_joins_the_incident_of_its_volume_only(
    after_boot, ve: int
) -> None:
    """Also where it is heard before the volume was found again."""
    book = await after_boot(builders.incident(state=State.VERIFYING))
    now = image(ve)
    view = view_of(**{f"ve{ve}": now})
    intake = Intake(
        book._store,
        book,
        cast("Any", SimpleNamespace(view=view)),
        EventStream(book._store),
    )
    attributed = Attribution(
        filesystem=view.describe(now), ves=view.affected(now.devno), superblock=now
    )
    before = taken(book)
    intake.report(builders.event(), attributed)
    await intake.settle()
    joined = book.find(view.describe(now), Domain.DAMAGE)
    assert joined is not None
    assert (joined.incident_id == before.incident_id) is (ve == 101)
    assert joined.ves == (f"lxc:ve{ve}",)


@pytest.mark.parametrize(
    ("owner", "now", "goes_on"),
    [
        ("ve101", image(101, Devno(7, 9)), True),
        ("ve102", image(101, Devno(7, 9)), False),
        ("ve102", image(102), False),
    ],
    ids=["mounted-again", "given-away", "number-reused"],
)
async def test_a_plan_that_a_boot_has_cut_off_goes_on_with_its_own_volume_only(
    owner: str, now: Superblock, *, goes_on: bool
) -> None:
    incident = builders.incident(state=State.ACTING).on_clock("first", 0).on_clock("second", 0)
    told: list[Superblock] = []
    context: Any = SimpleNamespace(
        incident=incident,
        inventory=SimpleNamespace(view=view_of(**{owner: now})),
        filesystem_is_now=told.append,
    )
    scope._find_after_boot(context)
    assert told == ([now] if goes_on else [])


@pytest.mark.parametrize(("kind", "found"), [("disk", True), ("loop", False)])
def test_a_disk_is_taken_for_the_one_of_its_name(kind: str, *, found: bool) -> None:
    """It is trusted later then, and not sooner; what a loop device is called means nothing."""
    known = builders.filesystem(
        devno=Devno(8, 0), device="sda", fstype="block", uuid=None, image=None, image_inode=None
    )
    before = builders.incident(filesystem=replace(known, boot="another"), device_errors=3)
    now = BlockDevice(devno=Devno(8, 16), name="sda", kind=kind, disk_sequence=3)
    again = taken_up(NodeView(devices={now.devno: now}), before)
    assert (again is not None) is found
    if again is not None:
        assert (again.filesystem.key, again.device_errors) == ("8:16/3", 3)
        assert "taken for" in again.log[-1][1]


@pytest.mark.parametrize(("inode", "kept"), [(77, "root"), (78, None)], ids=["same", "other"])
def test_an_approval_is_not_for_another_file_at_the_same_path(inode: int, kept: str | None) -> None:
    before = builders.incident(approved_by="root")
    assert before.filesystem.image_inode == ("8:1", 77)
    now = image(101)
    now = replace(now, backing=replace(now.backing, image_inode=inode))
    assert moved(before, now, "").approved_by == kept


ANONYMOUS = Devno(0, 45)
BTRFS = builders.filesystem(devno=ANONYMOUS, fstype="btrfs", disk_sequence=None)


def btrfs(path: str, inode: int) -> Superblock:
    now = image(101)
    backing = replace(now.backing, image=path, image_inode=inode)
    return replace(now, devno=ANONYMOUS, fstype="btrfs", disk_sequence=None, backing=backing)


@pytest.mark.parametrize(
    ("path", "inode", "same"),
    [("/vz/ve101.raw", 77, True), ("/vz/ve101.raw", 99, False), ("/vz/moved.raw", 77, True)],
    ids=["itself", "reinstalled", "renamed"],
)
def test_a_number_that_is_given_away_at_once_says_nothing(
    path: str, inode: int, *, same: bool
) -> None:
    view = view_of(ve101=btrfs(path, inode))
    assert (view.attached(BTRFS) is not None) is same
    assert view.gone_over(BTRFS) is not same
    assert view.attached(mounted_again.unmounted(BTRFS)) is None


@pytest.mark.parametrize("fstype", ["overlay", "nfs4"])
def test_whoever_has_got_the_number_of_a_btrfs_is_not_concerned(fstype: str) -> None:
    web = VeId("docker:web")
    inside = NamespaceKey(9)
    mount = replace(superblock(5, (inside, "/")), devno=ANONYMOUS, fstype=fstype)
    of_web: dict[str, Any] = {"overlays": {ANONYMOUS: mount}}
    if fstype == "nfs4":
        served = RemoteFilesystem(
            devno=ANONYMOUS, fstype=fstype, source="nas:/export", mounts=mount.mounts
        )
        of_web = {"remote": {ANONYMOUS: served}}
    known = ve("docker", "web")
    view = NodeView(ves={web: known}, owners={inside: web}, **of_web)
    assert view.users[ANONYMOUS].ves == (web,)
    found = builders.incident(filesystem=BTRFS)
    deciding: Any = SimpleNamespace(_inventory=SimpleNamespace(view=view))
    for one in (found, replace(found, filesystem=mounted_again.unmounted(BTRFS))):
        assert Decider._as_of_now(deciding, one).ves == found.ves
    book: Any = SimpleNamespace(open_incidents=lambda: [found])
    assert scoping.scope(view, book, found).gone_over


@pytest.mark.parametrize(
    ("heard", "ves", "joins"),
    [
        ({"image_inode": ("8:1", 77)}, ("lxc:ve101",), True),
        ({"image_inode": None}, (), True),
        ({"image_inode": ("8:1", 99)}, ("lxc:ve101",), False),
        ({"image_inode": ("8:1", 77)}, ("lxc:ve102",), False),
        ({"image": "/vz/ve102.raw"}, ("lxc:ve101",), False),
    ],
    ids=["itself", "by-its-path", "another-file", "another-ve", "another-path"],
)
def test_what_is_heard_of_an_image_that_is_put_down(
    heard: dict[str, Any], ves: tuple[str, ...], *, joins: bool
) -> None:
    known = builders.incident(filesystem=mounted_again.unmounted(IMAGE))
    about = builders.filesystem(devno=Devno(7, 8), uuid=None, disk_sequence=90, **heard)
    found = mounted_again.find(NodeView(), [known], about, Domain.DAMAGE, ves)
    assert found is (known if joins else None)


@pytest.mark.parametrize("mounted", [False, True], ids=["nowhere", "not-named-yet"])
@pytest.mark.parametrize(
    ("before", "now", "joins"),
    [
        ((LVM, 42), (LVM, 42), True),
        ((LVM, 42), (LVM, 43), False),
        ((LVM, 42), (LVM_NOW, 42), False),
        (SDA3, SDA3, True),
        (LOOP, LOOP, False),
    ],
    ids=["itself", "attached-anew", "another", "disk-without-a-count", "loop-without-a-count"],
)
def test_what_is_heard_of_a_device_whose_filesystem_is_put_down(
    before: tuple[Devno, int | None], now: tuple[Devno, int | None], *, joins: bool, mounted: bool
) -> None:
    about = replace(VOLUME, devno=before[0], disk_sequence=before[1])
    known = builders.incident(filesystem=mounted_again.unmounted(about))
    line = replace(about, devno=now[0], disk_sequence=now[1], uuid=None)
    unnamed = replace(volume(now[0]), uuid=None)
    view = NodeView(superblocks={now[0]: unnamed} if mounted else {})
    found = mounted_again.find(view, [known], line, Domain.DAMAGE, ("lxc:ve101",))
    assert found is (known if joins else None)


def test_an_approval_stays_with_the_ve() -> None:
    """Its disk may be another VE's by now, at the same path."""
    known = builders.incident(filesystem=mounted_again.unmounted(IMAGE), approved_by="root")
    for name in ("ve101", "ve102"):
        again = mounted_again.mounted_since(view_of(**{name: image(101)}), known)
        assert (again is not None) is (name == "ve101")


async def test_what_was_put_down_is_found_again_after_a_boot_too(after_boot) -> None:
    left = builders.incident(filesystem=mounted_again.unmounted(VOLUME), state=State.WAITING)
    book = await after_boot(left)
    view = view_of(ve101=volume(LVM_NOW))
    await swept(book, view, [])
    assert taken(book).filesystem == view.describe(view.superblocks[LVM_NOW])
