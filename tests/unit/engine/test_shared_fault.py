"""What is wrong beneath several VEs is told as one incident, and ends with the fact."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd import process
from fswatchd.book import IncidentBook
from fswatchd.cause import blame
from fswatchd.devno import Devno
from fswatchd.engine.closer import Closer
from fswatchd.engine.history import boottime_ns
from fswatchd.engine.intake import Intake
from fswatchd.engine.stream import EventStream
from fswatchd.engine.substrate import Substrate
from fswatchd.events import Domain, EventClass, Health
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.inventory.model import Backing, BlockDevice, Superblock
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block
from fswatchd.repair import verify
from fswatchd.sources.state import StateSource
from fswatchd.store.store import Store
from tests.unit import builders
from tests.unit.inventory.test_lookup import NODE, superblock, ve, view
from tests.unit.inventory.test_ownership import remote

POOL, DISK = Devno(253, 9), Devno(7, 100)
FULL = "0 409600 thin-pool 1 12/1024 3199/3200 - rw queue_if_no_space - 256\n"
ROOM = FULL.replace("3199/", "100/")
SOME_BASE = Devno(8, 50)


class Node:
    """Thin volumes dm-1, dm-2… of ve101, ve102… in one pool, or partitions of one loop device.

    What sysfs, dmsetup and the image say is what the test says.
    """

    def __init__(self, store: Store, *, ves: int = 2, on: Devno = POOL) -> None:
        self.attributes: dict[tuple[Devno, str], str] = {(POOL, "dm/uuid"): "LVM-x-tpool"}
        self.pool, self.short_by, self.healthy = ROOM, 0, True
        names = [f"ve{101 + n}" for n in range(ves)]
        self.filesystems = [thin(number) for number in range(1, ves + 1)]
        lower = {
            POOL: BlockDevice(devno=POOL, name="dm-9", kind="dm"),
            DISK: BlockDevice(
                devno=DISK,
                name="loop100",
                kind="loop",
                backing=Backing(
                    kind="loop", image="/vz/disk", image_devno=Devno(8, 1), image_inode=7
                ),
            ),
            SOME_BASE: BlockDevice(devno=SOME_BASE, name="sdd2", kind="partition"),
        }
        volumes = [
            BlockDevice(devno=one.devno, name=one.device, kind="dm", lower=(on,))
            for one in self.filesystems
        ]
        made = view(
            *(ve("lxc", name) for name in names),
            superblocks=tuple(self.filesystems),
            devices={**lower, **{one.devno: one for one in volumes}},
            device_owners={
                one.devno: f"lxc:{name}" for one, name in zip(volumes, names, strict=True)
            },
        )
        self.inventory = SimpleNamespace(view=made, problems={})
        self.book = IncidentBook(store, "hn1")
        intake = Intake(store, self.book, cast("Any", self.inventory), EventStream(store))
        self.state = StateSource(
            intake, cast("Any", None), cast("Any", SimpleNamespace(unwritten=0))
        )
        self.substrate = Substrate(cast("Any", self.inventory), self.state, self.book)
        self.intake = intake
        self.closer = Closer(
            self.book,
            cast("Any", self.inventory),
            self.state,
            forget_volume=lambda _: None,
            poke=lambda _: None,
            has_room=self._has_room,
            device_fault=self.substrate.device_fault,
        )

    async def _has_room(self, _: object) -> bool:
        return True

    async def suffers(self, number: int = 0) -> tuple[Incident, Any]:
        """An incident of one of the filesystems, and who is to blame for it."""
        found = self.filesystems[number]
        described = self.inventory.view.describe(found)
        incident = builders.incident(
            incident_id=f"of-{found.device}", filesystem=described, ves=(f"lxc:ve{101 + number}",)
        )
        self.book.put(incident)
        cause = blame(await self.substrate.beneath(incident))
        await self.intake.settle()
        return incident, cause

    def told(self) -> list[Incident]:
        """The incidents that were opened for what lies beneath."""
        return [one for one in self.book.open_incidents() if not one.incident_id.startswith("of-")]

    async def sweep(self) -> None:
        """The closer looks at all once."""
        for incident in self.book.open_incidents():
            await self.closer._look_at(incident.incident_id)
        self.substrate._pools.clear()


def thin(number: int) -> Superblock:
    devno = Devno(253, number)
    one = superblock(number, (NODE, f"/vz/{number}"))
    return replace(one, devno=devno, device=f"dm-{number}", backing=Backing(kind="device"))


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    nodes: list[Node] = []

    async def dmsetup(argv: tuple[str, ...], **_: Any) -> process.Completed:
        assert argv[:3] == ("dmsetup", "status", "--noflush")
        output = nodes[-1].pool
        return process.Completed(
            argv=argv, returncode=0, output=output, duration_s=0.0, timed_out=False
        )

    async def healthy(*_: object, **__: object) -> str | None:
        return None if nodes[-1].healthy else "a write fails"

    monkeypatch.setattr(process, "run", dmsetup)
    monkeypatch.setattr(verify, "healthy", healthy)
    monkeypatch.setattr(
        block, "attribute", lambda devno, name: nodes[-1].attributes.get((devno, name))
    )
    monkeypatch.setattr(block, "image_short_by", lambda *_: nodes[-1].short_by)
    monkeypatch.setattr(block, "disk_sequence", lambda _: None)

    def made(**options: Any) -> Node:
        nodes.append(Node(store, **options))
        return nodes[-1]

    yield made
    await store.close()


async def test_a_full_pool_beneath_two_ves_is_one_incident_that_names_both(make) -> None:
    node = make()
    node.pool = FULL
    for number in (0, 1):
        _, cause = await node.suffers(number)
        assert (cause.kind, cause.name) == ("space", "/dev/dm-9")
        (told,) = node.told()
        assert cause.incident == told.incident_id
    assert told.classes == {EventClass.SPACE}
    assert (told.filesystem.device, told.confirmed) == ("dm-9", True)
    assert set(told.ves) == {"lxc:ve101", "lxc:ve102"}
    assert told.device_errors == 0
    assert told.filesystem.fstype == "dm-thin"


async def test_what_the_kernel_says_of_the_pool_is_of_the_same_incident(make, monkeypatch) -> None:
    monkeypatch.setattr(block, "devno_of", lambda name: Devno.parse(name))
    node = make()
    node.intake.event(
        builders.event(
            "kmsg", "space", device="253:9", devno=None, fstype="dm-thin", confirms=False
        )
    )
    await node.intake.settle()
    (of_line,) = node.told()
    assert (of_line.filesystem.device, of_line.confirmed) == ("dm-9", False)
    node.pool = FULL
    await node.suffers()
    (told,) = node.told()
    assert (told.incident_id, told.confirmed) == (of_line.incident_id, True)
    assert set(told.sources) == {"kmsg", "state"}


async def test_it_ends_with_the_room_and_not_before(make) -> None:
    node = make()
    node.pool = FULL
    await node.suffers()
    (told,) = node.told()
    await node.sweep()
    assert node.told() == [told]
    node.pool = ROOM
    await node.sweep()
    assert node.told() == []


@pytest.mark.parametrize(("status", "ends"), [(ROOM, True), (FULL, False)])
async def test_room_that_a_program_was_to_make_is_looked_for(make, status: str, ends: bool) -> None:
    node = make()
    node.pool = FULL
    await node.suffers()
    (told,) = node.told()
    node.book.put(replace(told, state=State.VERIFYING, healthy_s=0.0))
    node.substrate._pools.clear()
    node.pool = status
    await node.sweep()  # from here on it is watched
    await node.sweep()
    assert [one.state for one in node.told()] == ([] if ends else [State.NEEDS_OPERATOR])


@pytest.mark.parametrize(
    ("attribute", "value", "klass"),
    [
        ("ro", "1", EventClass.READONLY),
        ("md/degraded", "1", EventClass.DEGRADED),
        ("device/state", "offline", EventClass.DEVICE_LOST),
        (None, "", EventClass.IO_ERROR),
    ],
)
async def test_so_is_each_thing_that_can_be_read_of_a_device(
    make, attribute: str | None, value: str, klass: EventClass
) -> None:
    node = make(on=DISK, ves=3)
    if attribute is None:
        node.short_by = 4096
    else:
        node.attributes[DISK, attribute] = value
    _, cause = await node.suffers()
    (told,) = node.told()
    assert (cause.kind, cause.name, cause.incident) == ("device", "/dev/loop100", told.incident_id)
    assert told.classes == {klass}
    assert len(told.ves) == 3
    await node.suffers(1)
    assert len(node.told()) == 1
    await node.sweep()
    assert len(node.told()) == 1
    node.short_by = 0
    node.attributes.pop((DISK, attribute or ""), None)
    await node.sweep()
    assert node.told() == []


async def test_beneath_one_ve_it_stays_the_incident_of_that(make) -> None:
    node = make(on=DISK, ves=1)
    node.short_by = 4096
    _, cause = await node.suffers()
    assert (cause.name, cause.incident) == ("/dev/loop100", None)
    assert node.told() == []


async def test_what_lies_elsewhere_is_not_looked_at_and_not_blamed(make) -> None:
    node = make()
    node.pool, node.short_by = ROOM, 4096  # of loop100, which nothing here rests on
    _, cause = await node.suffers()
    assert cause is None
    assert node.told() == []


@pytest.mark.parametrize(
    "name",
    ["dm/suspended", "device/state", "ro of what is only read", "ro beneath what only reads"],
)
async def test_what_is_as_it_should_be_is_no_fault(make, name: str) -> None:
    """LVM suspends a device whenever it changes it; a path is blocked while it is sought; an
    external origin is read-only; so is a disk from which only read-only filesystems are mounted."""
    node = make(on=DISK)
    if name == "dm/suspended":
        node.attributes[DISK, name] = "1"
    elif name == "device/state":
        node.attributes[DISK, name] = "blocked"
    elif name == "ro of what is only read":
        node.attributes[SOME_BASE, "ro"] = "1"
        devices = dict(node.inventory.view.devices)
        first = devices[Devno(253, 1)]
        based = replace(first, lower=(DISK, SOME_BASE), bases=(SOME_BASE,))
        second = replace(devices[Devno(253, 2)], lower=(DISK, SOME_BASE), bases=(SOME_BASE,))
        devices |= {based.devno: based, second.devno: second}
        node.inventory.view = replace(node.inventory.view, devices=devices)
    else:
        node.attributes[DISK, "ro"] = "1"
        readonly = {one.devno: as_readonly(one) for one in node.filesystems}
        node.inventory.view = replace(node.inventory.view, superblocks=readonly)
    await node.suffers()
    assert node.told() == []


def as_readonly(found: Superblock) -> Superblock:
    places = tuple(
        replace(place, mount=replace(place.mount, superblock_readonly=True))
        for place in found.mounts
    )
    return replace(found, mounts=places)


async def test_a_device_that_nothing_rests_on_for_now_is_not_well_by_that(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make()
    node.pool = FULL
    await node.suffers()
    (told,) = node.told()
    node.inventory.view = NodeView()
    monkeypatch.setattr("fswatchd.engine.closer._MISSING_S", 0.0)
    monkeypatch.setattr(block, "name_of", lambda _: "dm-9")
    await node.sweep()
    await node.sweep()
    assert told.incident_id in [one.incident_id for one in node.told()]
    monkeypatch.setattr(block, "name_of", lambda _: None)
    await node.sweep()
    await node.sweep()
    assert node.told() == []


def of_its_device(node: Node, *events: Any) -> Incident:
    """What dm-1 suffers from its device."""
    described = node.inventory.view.describe(node.filesystems[0])
    found = builders.incident(*events, filesystem=described, incident_id="of-dm-1")
    found = replace(found, recent=((boottime_ns(), "state", 1),))
    node.book.put(found)
    return found


READ = builders.event("state", "degraded")


@pytest.mark.parametrize(
    ("events", "fault", "healthy", "closes"),
    [
        pytest.param((READ,), False, True, True, id="the fact has gone"),
        pytest.param((READ,), True, True, False, id="the fact has not"),
        pytest.param((READ,), False, False, False, id="it is not well itself"),
        pytest.param(
            (READ, builders.event("fanotify")), False, True, False, id="it has met an error"
        ),
        pytest.param(
            (READ, builders.event("kmsg", "io_error")),
            False,
            True,
            False,
            id="the kernel told of one",
        ),
    ],
)
async def test_a_filesystem_that_only_its_device_was_wrong_with_recovers_with_it(
    make, events: tuple[Any, ...], *, fault: bool, healthy: bool, closes: bool
) -> None:
    node = make(on=DISK)
    node.healthy = healthy
    node.attributes[DISK, "md/degraded"] = "1" if fault else "0"
    found = of_its_device(node, *events)
    node.state.health = lambda _: Health.OK  # type: ignore[method-assign]
    await node.sweep()
    now = node.book.get(found.incident_id)
    assert (now is None) is closes
    if closes:
        (saved,) = await node.book._store.incidents()
        assert saved.outcome is Outcome.RECOVERED


async def test_a_member_that_btrfs_misses_is_not_back_because_all_others_are_well(make) -> None:
    node = make(on=DISK)
    node.filesystems[0] = replace(node.filesystems[0], fstype="btrfs")
    mounted = {one.devno: one for one in node.filesystems}
    node.inventory.view = replace(node.inventory.view, superblocks=mounted)
    found = of_its_device(node, READ)
    await node.sweep()
    assert node.book.get(found.incident_id) is not None


class OnHost:
    """ve101 on an image that lies on a host filesystem, beside another one that is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, book: Any, *, full: str) -> None:
        self.reported: list[str] = []
        host, other = superblock(0, (NODE, "/vz")), superblock(1, (NODE, "/other"))
        above = replace(superblock(3, (NODE, "/vz/ve101")), device="loop3")
        image = Backing(kind="loop", image="/vz/a", image_devno=host.devno, image_inode=5)
        seen = view(
            ve("lxc", "ve101"),
            superblocks=(host, other, above),
            devices={
                above.devno: BlockDevice(
                    devno=above.devno, name="loop3", kind="loop", backing=image
                )
            },
        )
        self.of = {one.devno: one for one in (host, other, above)}
        self.full: int | None = {"host": host.devno, "other": other.devno}[full].minor
        inventory = SimpleNamespace(view=seen, opened=self.opened)
        state = SimpleNamespace(
            check=lambda _: None,
            health=lambda _: Health.OK,
            report=lambda found, *_: self.reported.append(found.device),
        )
        monkeypatch.setattr(os, "fstatvfs", self.statvfs)
        monkeypatch.setattr(block, "attribute", lambda *_: None)
        monkeypatch.setattr(block, "image_short_by", lambda *_: 0)
        self.substrate = Substrate(cast("Any", inventory), cast("Any", state), book)
        filesystem = seen.describe(above)
        self.incident = builders.incident(filesystem=filesystem, incident_id="of-loop3")

    @asynccontextmanager
    async def opened(self, found: Superblock) -> AsyncIterator[int]:
        yield found.devno.minor

    def statvfs(self, fd: int) -> SimpleNamespace:
        free = 0 if fd == self.full else 1 << 20
        return SimpleNamespace(
            f_frsize=4096, f_blocks=1 << 21, f_bavail=free, f_files=1000, f_favail=900
        )


@pytest.mark.parametrize(("full", "blamed"), [("host", True), ("other", False)])
async def test_a_full_filesystem_is_blamed_by_what_lies_on_it_and_by_nobody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: str, *, blamed: bool
) -> None:
    book = IncidentBook(Store(tmp_path / "none.db"), "hn1")
    node = OnHost(monkeypatch, book, full=full)
    cause = blame(await node.substrate.beneath(node.incident))
    assert (cause is not None) is blamed
    assert node.reported == (["loop0"] if blamed else [])


async def test_a_host_that_has_room_again_is_full_for_nobody_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The incident of it is over then; who suffered from it is decided about in the same moment."""
    book = IncidentBook(Store(tmp_path / "none.db"), "hn1")
    node = OnHost(monkeypatch, book, full="host")
    host = next(one for one in node.of.values() if one.devno.minor == node.full)
    await node.substrate.beneath(node.incident)
    assert await node.substrate.has_room(host) is False
    node.reported.clear()
    node.full = None
    assert await node.substrate.has_room(host) is True
    assert blame(await node.substrate.beneath(node.incident)) is None
    assert node.reported == []


async def test_a_server_that_is_lost_is_the_cause_of_all_that_has_its_image_there(
    tmp_path: Path,
) -> None:
    nas = remote((NODE, "/vz"), source="nas:/vz", devno=Devno(0, 50))
    filer = remote((NODE, "/more"), source="filer:/vz", devno=Devno(0, 51))
    above = {n: superblock(n, (NODE, f"/vz/{n}")) for n in (1, 2, 3)}
    on = {1: nas, 2: nas, 3: filer}
    devices = {
        one.devno: BlockDevice(
            devno=one.devno,
            name=one.device,
            kind="loop",
            backing=Backing(
                kind="loop", image=f"/vz/{n}.raw", image_devno=on[n].devno, image_inode=n
            ),
        )
        for n, one in above.items()
    }
    seen = view(
        *(ve("lxc", f"ve10{n}") for n in above),
        superblocks=tuple(above.values()),
        devices=devices,
        remote={one.devno: one for one in (nas, filer)},
        image_owners={(on[n].devno, n): f"lxc:ve10{n}" for n in above},
    )
    book = IncidentBook(Store(tmp_path / "none.db"), "hn1")
    lost = builders.incident(
        builders.event("kmsg", "not_responding", fstype="nfs"),
        incident_id="server",
        filesystem=builders.filesystem(devno=None, device=None, fstype="nfs", server="nas"),
        domain=Domain.REMOTE,
    )
    book._open[lost.incident_id] = lost
    state = SimpleNamespace(check=lambda _: None, health=lambda _: Health.OK)
    substrate = Substrate(cast("Any", SimpleNamespace(view=seen)), cast("Any", state), book)
    for n, one in above.items():
        incident = builders.incident(filesystem=seen.describe(one), incident_id=f"of-{n}")
        cause = blame(await substrate.beneath(incident))
        if on[n] is filer:
            assert cause is None
        else:
            assert cause is not None
            assert (cause.incident, cause.text) == ("server", "it does not answer")
            assert set(cause.ves) == {"lxc:ve101", "lxc:ve102"}
