"""What is over, and what has only just begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine import closer as closer_module
from fswatchd.engine.closer import NS, Closer
from fswatchd.engine.history import boottime_ns
from fswatchd.events import Domain, Health
from fswatchd.incidents import Incident
from fswatchd.incidents import State as IncidentState
from fswatchd.inventory.model import Backing, BlockDevice, Superblock
from fswatchd.inventory.view import NodeView
from fswatchd.repair import verify
from fswatchd.store.store import Store
from tests.unit import builders
from tests.unit.inventory.test_lookup import superblock, ve


class Book:
    """What was closed."""

    def __init__(self, incident: Incident) -> None:
        self.incident = incident
        self.closed: list[str] = []

    def get(self, _incident_id: str) -> Incident:
        return self.incident

    def close(self, incident: Incident, *_: object) -> None:
        self.closed.append(incident.incident_id)


class State:
    """A filesystem that is as it was at the last look, until somebody looks again."""

    def __init__(self, at_the_next_look: Health) -> None:
        self._now, self._next = Health.OK, at_the_next_look

    def check(self, _devno: Devno) -> None:
        self._now = self._next

    def health(self, _devno: Devno) -> Health:
        return self._now


def look(incident: Incident, health: Health = Health.OK) -> bool:
    """Whether the incident is closed."""
    superblock = SimpleNamespace(devno=builders.LOOP3)
    inventory = SimpleNamespace(
        view=SimpleNamespace(attached=lambda _: superblock), refresh=refreshed
    )
    book = Book(incident)
    closer = Closer(
        cast("Any", book),
        cast("Any", inventory),
        cast("Any", State(health)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    asyncio.run(closer._look_for_recovery(incident))
    return bool(book.closed)


def unconfirmed() -> Incident:
    incident = builders.incident(builders.event("kmsg"), healthy_s=0.001)
    # A machine may have been started just now.
    return replace(incident, recent=((boottime_ns() - NS, "kmsg", 1),), confirmed=False)


@pytest.mark.parametrize("has_events", [True, False])
def test_an_incident_whose_first_event_has_not_joined_yet_is_not_closed(
    *, has_events: bool
) -> None:
    incident = unconfirmed()
    assert look(incident if has_events else replace(incident, recent=())) is has_events


@pytest.mark.parametrize(("health", "closes"), [(Health.OK, True), (Health.SHUTDOWN, False)])
def test_nothing_is_a_false_alarm_on_the_word_of_an_old_look(
    health: Health, *, closes: bool
) -> None:
    """The kernel writes that it shuts a filesystem down before it does."""
    assert look(unconfirmed(), health) is closes


@pytest.mark.parametrize(("kind", "errors"), [("loop", 0), ("device", 5)])
def test_errors_of_an_attachment_are_no_errors_of_the_next_one(kind: str, errors: int) -> None:
    """What a loop device reports came from beneath it; a disk that is back is the same disk."""
    inode = (Devno(8, 1), 77) if kind == "loop" else (None, None)
    again = Superblock(
        devno=builders.LOOP3,
        fstype="ext4",
        device="loop3",
        disk_sequence=43,
        mounts=(),
        backing=Backing(kind=kind, image_devno=inode[0], image_inode=inode[1]),
        uuid=builders.filesystem().uuid,
    )
    known = {} if kind == "loop" else {"image": None, "image_inode": None}
    before = builders.incident(filesystem=builders.filesystem(**known), device_errors=5)
    put: list[Incident] = []
    mine = ve("lxc", "ve101")
    view = NodeView(
        superblocks={again.devno: again},
        ves={mine.ve_id: mine},
        device_owners={again.devno: mine.ve_id},
    )
    closer = Closer(
        cast("Any", SimpleNamespace(get=lambda _: before, put=put.append)),
        cast("Any", SimpleNamespace(view=view, refresh=refreshed)),
        cast("Any", State(Health.OK)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    closer._state._now = Health.DAMAGED  # type: ignore[attr-defined]
    asyncio.run(closer._look_for_recovery(before))
    (moved,) = put
    assert (moved.filesystem.disk_sequence, moved.device_errors) == (43, errors)


def test_whoever_has_got_the_inode_of_a_deleted_image_is_not_that_image() -> None:
    other = Superblock(
        devno=builders.LOOP3,
        fstype="ext4",
        device="loop3",
        disk_sequence=43,
        mounts=(),
        backing=Backing(
            kind="loop", image="/vz/ve102.raw", image_devno=Devno(8, 1), image_inode=77
        ),
        uuid="99999999-2222-3333-4444-555555555555",
    )
    before, put = builders.incident(), []
    closer = Closer(
        cast("Any", SimpleNamespace(get=lambda _: before, put=put.append)),
        cast("Any", SimpleNamespace(view=NodeView(superblocks={other.devno: other}))),
        cast("Any", State(Health.OK)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    closer._state._now = Health.DAMAGED  # type: ignore[attr-defined]
    asyncio.run(closer._look_for_recovery(before))
    assert put == []


class Sweep:
    """A real book with incidents on loop3 and loop4; `during` happens at the first write probe."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, *found: Incident) -> None:
        self.book = IncidentBook(store, "hn1")
        self.during: Callable[[], object] = lambda: None
        self.probed: list[Devno] = []
        monkeypatch.setattr(verify, "healthy", self._healthy)
        both = [replace(superblock(minor), disk_sequence=42) for minor in (3, 4)]
        view = NodeView(superblocks={one.devno: one for one in both})
        state = SimpleNamespace(
            errors=lambda _: 0, check=lambda _: None, health=lambda _: Health.OK
        )
        self.closer = Closer(
            self.book,
            cast("Any", SimpleNamespace(view=view, refresh=refreshed, problems={})),
            cast("Any", state),
            forget_volume=lambda _: None,
            poke=lambda _: None,
            has_room=self._has_room,
            device_fault=cast("Any", None),
        )
        for one in found:
            self.book.put(one)

    async def _healthy(self, _inventory: object, _state: object, probed: Superblock) -> None:
        self._probe(probed)

    async def _has_room(self, asked: Superblock) -> bool:
        self._probe(asked)
        return True

    def _probe(self, one: Superblock) -> None:
        self.probed.append(one.devno)
        if len(self.probed) == 1:
            self.during()

    async def look(self, *found: Incident) -> None:
        """As `run` does it with those that were open when the sweep began."""
        for one in found:
            await self.closer._look_at(one.incident_id)

    def begin_repair(self, incident: Incident) -> None:
        self.book.put(replace(incident, state=IncidentState.ACTING, requested_by="root"))

    def acting(self, incident: Incident) -> bool:
        now = self.book.get(incident.incident_id)
        return now is not None and now.state is IncidentState.ACTING


def of_device_only(**more: Any) -> Incident:
    return builders.incident(builders.event("state", "readonly"), **more)


def short_of_room(**more: Any) -> Incident:
    return builders.incident(builders.event("state", "space"), domain=Domain.SPACE, **more)


def waited_for_room(**more: Any) -> Incident:
    cause = {"kind": "space", "object": "xfs /vz", "text": "", "until": "2100-01-01T00:00:00Z"}
    return builders.incident(builders.event("state", "readonly"), cause=cause, **more)


@pytest.mark.parametrize("made", [of_device_only, short_of_room, waited_for_room])
async def test_what_is_repaired_since_the_probe_began_is_not_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch, made: Callable[[], Incident]
) -> None:
    found = made()
    sweep = Sweep(store, monkeypatch, found)
    await sweep.look(found)
    assert sweep.book.get(found.incident_id) is None  # so it is when nobody repairs it
    again = Sweep(store, monkeypatch, found)
    again.during = lambda: again.begin_repair(found)
    await again.look(found)
    assert again.probed
    assert again.acting(found)


async def test_what_is_repaired_while_another_one_is_probed_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed, other = of_device_only(), replace(unconfirmed(), incident_id="20261121-other")
    other = replace(other, filesystem=builders.filesystem(devno=Devno(7, 4), image=None))
    sweep = Sweep(store, monkeypatch, probed, other)
    sweep.during = lambda: sweep.begin_repair(other)
    running = asyncio.create_task(sweep.closer.run())
    while sweep.book.get(probed.incident_id) is not None:
        await asyncio.sleep(0)
    sweep.closer.wake()
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sweep.acting(other)


def told_once(klass: str, **more: Any) -> Incident:
    """By a device or a storage, of itself, as a uevent: nothing that can be read tells the end."""
    return builders.incident(builders.event("uevent", klass), **more)


@pytest.mark.parametrize(
    "made",
    [
        lambda: told_once("degraded"),
        lambda: told_once("space", domain=Domain.SPACE),
    ],
    ids=["an NVMe's health", "a storage's pool"],
)
async def test_what_was_told_once_is_not_over_because_a_write_succeeds(
    store: Store, monkeypatch: pytest.MonkeyPatch, made: Callable[[], Incident]
) -> None:
    found = made()
    sweep = Sweep(store, monkeypatch, found)
    await sweep.look(found)
    assert sweep.book.get(found.incident_id) is not None


async def test_a_path_that_is_back_can_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of loop3, which lies on a device with several paths here."""
    monkeypatch.setattr(closer_module, "is_multipath", lambda _: True)
    found = told_once("degraded")
    sweep = Sweep(store, monkeypatch, found)
    fault: list[str | None] = ["1 of its paths have failed", None]

    async def device_fault(_: object) -> str | None:
        return fault.pop(0)

    sweep.closer._device_fault = device_fault
    view = sweep.closer._inventory.view
    device = BlockDevice(devno=Devno(7, 3), name="dm-3", kind="dm")
    sweep.closer._inventory.view = replace(view, devices={device.devno: device})
    await sweep.look(found)
    assert sweep.book.get(found.incident_id) is not None
    await sweep.look(found)
    assert sweep.book.get(found.incident_id) is None


async def refreshed() -> None:
    """Everything is as it was."""


def ended(
    monkeypatch: pytest.MonkeyPatch,
    found: Incident,
    *mounted: Superblock,
    health: Health = Health.UNKNOWN,
    known: bool = True,
    of_ve: Superblock | None = None,
) -> tuple[list[str], list[Incident]]:
    """What a sweep closes, and what it puts, after everything has been missing for long."""
    monkeypatch.setattr(closer_module, "_MISSING_S", 0.0)

    async def healthy(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(verify, "healthy", healthy)
    book, put = Book(found), cast("list[Incident]", [])
    cast("Any", book).put = put.append
    view = NodeView(superblocks={one.devno: one for one in mounted})
    if known:
        mine = ve("lxc", "ve101")
        images = {one.backing.inode_key: mine.ve_id for one in mounted if one.backing.inode_key}
        devices = {of_ve.devno: mine.ve_id} if of_ve else {}
        owners = {"image_owners": images, "device_owners": devices}
        view = replace(view, ves={mine.ve_id: mine}, **owners)
    closer = Closer(
        cast("Any", book),
        cast("Any", SimpleNamespace(view=view, refresh=refreshed, problems={})),
        cast("Any", State(health)),
        forget_volume=lambda _: None,
        poke=lambda _: None,
        has_room=cast("Any", None),
        device_fault=cast("Any", None),
    )
    closer._state._now = health  # type: ignore[attr-defined]
    asyncio.run(closer._look_for_recovery(found))
    return book.closed, put


def quiet(klass: str, **more: Any) -> Incident:
    """Confirmed, and its last error some time ago."""
    found = builders.incident(builders.event("state", klass), healthy_s=0.001, **more)
    return replace(found, recent=((boottime_ns() - NS, "state", 1),))


@pytest.mark.parametrize(("denied", "closes"), [("root", False), (None, True)])
def test_a_no_holds_while_the_ve_is_stopped(
    monkeypatch: pytest.MonkeyPatch, denied: str | None, *, closes: bool
) -> None:
    closed, _ = ended(monkeypatch, quiet("space", denied_by=denied, domain=Domain.SPACE))
    assert bool(closed) is closes


@pytest.mark.parametrize("confirmed", [True, False])
def test_damage_is_not_over_because_its_ve_is_stopped(
    monkeypatch: pytest.MonkeyPatch, *, confirmed: bool
) -> None:
    found = quiet("corruption", filesystem=builders.filesystem(mountpoints=("/",)))
    found = replace(found, confirmed=confirmed)
    closed, (kept,) = ended(monkeypatch, found)
    assert closed == []
    assert kept.filesystem.unmounted
    assert kept.filesystem.mountpoints == ()
    assert "not over by that" in kept.log[-1][1]
    assert ended(monkeypatch, kept) == ([], [])  # it is said once


@pytest.mark.parametrize(
    ("mounted", "closes"),
    [
        ("11111111-2222-3333-4444-555555555555", False),
        ("22222222-2222-3333-4444-555555555555", True),
    ],
    ids=["itself", "another"],
)
def test_it_is_over_when_its_ve_has_another_volume_in_its_place(
    monkeypatch: pytest.MonkeyPatch, mounted: str, *, closes: bool
) -> None:
    backing = Backing(kind="loop", image="/vz/ve101.raw", image_devno=Devno(8, 1), image_inode=79)
    again = replace(superblock(3), uuid=mounted, disk_sequence=50, backing=backing)
    closed, _ = ended(monkeypatch, quiet("corruption"), again, health=Health.DAMAGED)
    assert bool(closed) is closes


@pytest.mark.parametrize(("inode", "closes"), [(77, False), (79, True)], ids=["itself", "restored"])
def test_a_mount_that_had_failed_is_over_when_something_is_mounted_from_there(
    monkeypatch: pytest.MonkeyPatch, inode: int, *, closes: bool
) -> None:
    """Of what could not be mounted nobody knows the UUID."""
    known = builders.filesystem(uuid=None)
    backing = Backing(kind="loop", image=known.image, image_devno=Devno(8, 1), image_inode=inode)
    again = replace(superblock(3), uuid="a", disk_sequence=50, backing=backing)
    found = quiet("mount_failure", filesystem=known)
    assert not ended(monkeypatch, found)[0]
    closed, _ = ended(monkeypatch, found, again, health=Health.DAMAGED)
    assert bool(closed) is closes
    assert ended(monkeypatch, found, again, health=Health.UNKNOWN)[0]


@pytest.mark.parametrize(("uuid", "closes"), [(None, False), ("another", True)])
def test_a_logical_volume_with_a_new_filesystem_is_another_one(
    monkeypatch: pytest.MonkeyPatch, uuid: str | None, *, closes: bool
) -> None:
    known = builders.filesystem(device="dm-3", devno=Devno(253, 3), image=None, image_inode=None)
    again = Superblock(
        devno=Devno(253, 3),
        fstype="ext4",
        device="dm-3",
        disk_sequence=50,
        mounts=(),
        backing=Backing(kind="device"),
        uuid=uuid or known.uuid,
    )
    found = quiet("corruption", filesystem=known)
    assert not ended(monkeypatch, found)[0]
    closed, _ = ended(monkeypatch, found, again, health=Health.DAMAGED, of_ve=again)
    assert bool(closed) is closes


def test_damage_of_what_belongs_to_no_ve_any_more_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, quiet("corruption"), known=False)[0]


@pytest.mark.parametrize("boot_s", [0.0, 600.0])
def test_nobody_waits_longer_than_a_boot_for_a_ve_that_was_destroyed(
    monkeypatch: pytest.MonkeyPatch, boot_s: float
) -> None:
    monkeypatch.setattr(closer_module, "_COMES_BACK_S", boot_s)
    closed, _ = ended(monkeypatch, quiet("corruption", denied_by="root"), known=False)
    assert bool(closed) is (boot_s == 0)


def test_what_names_a_device_that_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = builders.filesystem(devno=None, device="sdz1", image=None, image_inode=None)
    assert ended(monkeypatch, quiet("io_error", filesystem=gone))[0]
    fresh = replace(quiet("io_error", filesystem=gone), healthy_s=3600.0)
    assert not ended(monkeypatch, fresh)[0]


@pytest.mark.parametrize("sequence", [42, 43], ids=["as-it-was", "mounted-anew"])
@pytest.mark.parametrize(
    ("klass", "health", "closes"),
    [
        ("shutdown", Health.UNKNOWN, True),
        ("shutdown", Health.OK, True),
        ("shutdown", Health.SHUTDOWN, False),
        ("corruption", Health.UNKNOWN, False),
    ],
)
def test_a_stop_is_over_with_it_and_damage_is_not(
    monkeypatch: pytest.MonkeyPatch, sequence: int, klass: str, health: Health, *, closes: bool
) -> None:
    again = replace(
        superblock(3),
        disk_sequence=sequence,
        uuid=builders.filesystem().uuid,
        backing=Backing(kind="loop", image_devno=Devno(8, 1), image_inode=77),
    )
    closed, put = ended(monkeypatch, quiet(klass), again, health=health)
    assert bool(closed) is closes
    if klass == "corruption" and sequence == 43:
        assert "only a check would tell" in put[-1].log[-1][1]


DM3 = builders.filesystem(device="dm-3", devno=Devno(253, 3), image=None, image_inode=None)
PUT_DOWN = replace(DM3, unmounted=True)


def logical_volume(**more: Any) -> Superblock:
    """That of ve101, on the very device that it was on before."""
    values: dict[str, Any] = {
        "devno": Devno(253, 3),
        "fstype": "ext4",
        "device": "dm-3",
        "disk_sequence": DM3.disk_sequence,
        "mounts": (),
        "backing": Backing(kind="device"),
        "uuid": DM3.uuid,
    }
    return Superblock(**(values | more))


@pytest.mark.parametrize("uuid", [DM3.uuid, None], ids=["named", "not-named-yet"])
@pytest.mark.parametrize("health", [Health.OK, Health.DAMAGED])
def test_what_was_put_down_is_looked_at_anew_on_the_very_same_device(
    monkeypatch: pytest.MonkeyPatch, health: Health, uuid: str | None
) -> None:
    """Its owner may have repaired it: nothing else does then."""
    again = logical_volume(uuid=uuid)
    closed, put = ended(
        monkeypatch, quiet("corruption", filesystem=PUT_DOWN), again, health=health, of_ve=again
    )
    if uuid is None:
        assert (closed, put) == ([], [])
    elif health is Health.OK:
        assert (len(closed), put) == (1, [])
    else:
        assert closed == []
        assert not put[0].filesystem.unmounted
        closed, put = ended(monkeypatch, put[0])
        assert put[0].filesystem.unmounted  # and once more, when it is put down again


@pytest.mark.parametrize("kind", ["device", "image", "image-twice"])
def test_nothing_is_over_while_what_is_mounted_may_be_it(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A look has not named it yet; or two may be it."""
    if kind == "device":
        known, mounted = DM3, [logical_volume(disk_sequence=60, uuid=None)]
    else:
        known = builders.filesystem(unmounted=True)
        inode, uuid = (79, None) if kind == "image" else (77, known.uuid)
        backing = Backing(
            kind="loop", image=known.image, image_devno=Devno(8, 1), image_inode=inode
        )
        again = replace(superblock(4), uuid=uuid, disk_sequence=50, backing=backing)
        mounted = [again, replace(again, devno=Devno(7, 5))][: 1 + (kind == "image-twice")]
    found = quiet("corruption", filesystem=known)
    closed, _ = ended(monkeypatch, found, *mounted, of_ve=mounted[0])
    assert closed == []


def test_a_btrfs_that_no_look_has_named_is_not_said_to_be_unmounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = Devno(0, 45)
    known = builders.filesystem(devno=number, fstype="btrfs", disk_sequence=None)
    unnamed = logical_volume(devno=number, fstype="btrfs", disk_sequence=None, uuid=None)
    found = quiet("corruption", filesystem=known)
    assert ended(monkeypatch, found, unnamed, of_ve=unnamed) == ([], [])
    other = replace(unnamed, uuid="another")
    _, (kept,) = ended(monkeypatch, found, other, of_ve=other)
    assert kept.filesystem.unmounted


def test_a_repair_that_was_asked_for_of_an_unmounted_image_is_not_done_to_a_mounted_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = builders.filesystem(devno=None, device=None, disk_sequence=None, image_inode=None)
    found = quiet("corruption", filesystem=known, requested_by="root", forced=True)
    assert ended(monkeypatch, found) == ([], [])
    backing = Backing(kind="loop", image=known.image, image_devno=Devno(8, 1), image_inode=77)
    again = replace(superblock(4), uuid=known.uuid, backing=backing)
    closed, (put,) = ended(monkeypatch, found, again)
    assert closed == []
    assert (put.requested_by, put.forced, put.filesystem.devno) == (None, False, again.devno)
    assert "ask again" in put.log[-1][1]
