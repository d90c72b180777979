"""From events to incidents, with a real store."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine import intake
from fswatchd.engine.attribution import Attribution
from fswatchd.engine.intake import Intake
from fswatchd.engine.stream import EventStream
from fswatchd.events import Domain, EventClass, Lost
from fswatchd.incidents import Outcome, State
from fswatchd.inventory.model import Backing, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block, loop, proc
from fswatchd.kernel.logclock import LogClock
from fswatchd.store.store import Store
from tests.unit.builders import event, filesystem, incident
from tests.unit.inventory.test_lookup import INSIDE, superblock, ve, view


class Running:
    """A daemon's intake, book and store on one database file."""

    def __init__(self, path) -> None:
        self.store = Store(path)
        self.book = IncidentBook(self.store, "hn1")
        inventory = SimpleNamespace(view=NodeView(), refresh=self._refresh)
        self.intake = Intake(self.store, self.book, inventory, EventStream(self.store))

    async def start(self) -> Running:
        await self.store.open()
        await self.book.load()
        await self.intake.catch_up()
        return self

    async def _refresh(self, **_: object) -> None: ...

    async def stored(self, cursor: int) -> None:
        """Wait until the event with this cursor is in the database."""
        while not (await self.store.events_between(cursor - 1, cursor, 1)).rows:
            await asyncio.sleep(0)


@pytest.fixture
async def path(tmp_path) -> AsyncIterator[object]:
    return tmp_path / "fswatchd.db"


DAY_NS = 86400 * 10**9
LOOP3: dict[str, Any] = {"device": "loop3", "devno": Devno(7, 3)}
LOOP4: dict[str, Any] = {"device": "loop4", "devno": Devno(7, 4)}


def nameless(source: str, klass: str = "corruption", **more: object):
    """An event whose device nobody mounts, and so nobody has to look for."""
    return event(source, klass, devno=None, device=None, **more)


async def test_what_was_stored_but_not_joined_before_a_crash_joins_at_the_next_start(
    path, monkeypatch
) -> None:
    monkeypatch.setattr(intake, "_DIGEST_S", 60)
    killed = await Running(path).start()
    killed.intake.event(nameless("fanotify", count=3))
    killed.intake.event(nameless("state", "io_error"))
    await killed.stored(2)
    (before,) = killed.book.open_incidents()
    assert before.sources == ("fanotify",)
    await killed.store.close()

    again = await Running(path).start()
    (incident,) = again.book.open_incidents()
    assert incident.incident_id == before.incident_id
    assert incident.sources == ("fanotify", "state")
    assert incident.counts == {"fanotify": 3, "state": 1}
    assert incident.klass is EventClass.IO_ERROR
    assert incident.confirmed
    await again.store.close()


async def test_an_incident_is_never_seen_without_the_event_that_has_opened_it(
    path, monkeypatch
) -> None:
    monkeypatch.setattr(intake, "_DIGEST_S", 60)
    running = await Running(path).start()
    seen: list[tuple[EventClass, bool, int]] = []
    running.book.subscribe(
        lambda _, after: seen.append((after.klass, after.confirmed, after.counts["fanotify"]))
    )
    running.intake.event(nameless("fanotify", count=3))
    assert seen == [(EventClass.CORRUPTION, True, 3)]
    await running.intake.settle()
    assert seen == [(EventClass.CORRUPTION, True, 3)]
    await running.store.close()


async def test_what_had_joined_does_not_join_twice(path) -> None:
    first = await Running(path).start()
    first.intake.event(nameless("fanotify", count=3))
    await first.intake.settle()
    first.book.flush()
    await first.store.close()

    again = await Running(path).start()
    (incident,) = again.book.open_incidents()
    assert incident.counts == {"fanotify": 3}
    await again.store.close()


@pytest.mark.parametrize(
    ("written_us", "behind_ns", "told"),
    [(4_999_999, 0, 1), (5_000_001, 0, 2), (4_000_001, 10**9, 2), (3_999_999, 10**9, 1)],
)
async def test_a_line_from_before_the_repair_that_is_read_late_is_no_relapse(
    path, monkeypatch: pytest.MonkeyPatch, written_us: int, behind_ns: int, told: int
) -> None:
    """By the log's clock, which NTP does not correct: it may be a second behind."""
    clock = LogClock()
    clock.wrote("a", behind_ns, behind_ns)
    clock.read("a", 0)
    monkeypatch.setattr(intake, "log_clock", clock)
    running = await Running(path).start()
    heard: list[str] = []
    running.intake.subscribe(heard.append)
    running.intake.event(nameless("fanotify"))
    await running.intake.settle()
    (incident,) = running.book.open_incidents()
    running.book.put(incident.reached("repaired", 5_000_000_000))
    line = "Aborting journal on device loop3-8."
    running.intake.event(nameless("journal", "readonly", record=f"{written_us}:{line}"))
    await running.intake.settle()
    assert len(heard) == told
    (incident,) = running.book.open_incidents()
    assert "journal" in incident.sources
    await running.store.close()


@pytest.mark.parametrize(("heard_ns", "told"), [(4_999_999_999, 1), (5_000_000_000, 2)])
async def test_what_was_heard_before_the_repair_and_handled_after_it_is_no_relapse(
    path, heard_ns: int, told: int
) -> None:
    """A scrub meets the damage that it mends: the counter that it has moved says nothing new."""
    running = await Running(path).start()
    heard: list[str] = []
    running.intake.subscribe(heard.append)
    running.intake.event(nameless("fanotify"))
    await running.intake.settle()
    (incident,) = running.book.open_incidents()
    running.book.put(incident.reached("repaired", 5_000_000_000))
    running.intake.event(nameless("state", mono_ns=heard_ns))
    await running.intake.settle()
    assert len(heard) == told
    (incident,) = running.book.open_incidents()
    assert "state" in incident.sources
    await running.store.close()


@pytest.mark.parametrize(("heard_ns", "told"), [(6_999_999_999, 1), (7_000_000_000, 2)])
async def test_what_was_heard_before_the_second_repair_is_no_relapse(
    path, heard_ns: int, told: int
) -> None:
    """An operator has had the same volume repaired once more."""
    running = await Running(path).start()
    heard: list[str] = []
    running.intake.subscribe(heard.append)
    running.intake.event(nameless("fanotify"))
    await running.intake.settle()
    (incident,) = running.book.open_incidents()
    first = incident.reached("repaired", 5_000_000_000)
    running.book.put(first.with_new_plan(()).reached("repaired", 7_000_000_000))
    running.intake.event(nameless("state", mono_ns=heard_ns))
    await running.intake.settle()
    assert len(heard) == told
    await running.store.close()


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("is_over", [False, True])
async def test_a_repair_of_an_earlier_boot_swallows_no_line_of_this_one(
    path, monkeypatch: pytest.MonkeyPatch, *, booted: bool, is_over: bool
) -> None:
    """The node had been up for 400 days when it was repaired."""
    with monkeypatch.context() as patch:
        if booted:
            patch.setattr(proc, "boot_id", lambda: "an earlier boot")
        before = Running(path)
    await before.start()
    repaired = incident().on_clock(*before.book.clock()).reached("repaired", 400 * DAY_NS)
    before.book.put(replace(repaired, state=State.VERIFYING))
    before.book.flush()
    await before.store.close()

    running = await Running(path).start()
    heard: list[str] = []
    running.intake.subscribe(heard.append)
    (known,) = running.book.open_incidents()
    assert known.timeline == {"repaired": 400 * DAY_NS}
    found = known.filesystem
    if is_over:
        running.book.close(known, Outcome.REPAIRED, "healthy")
        found = filesystem(disk_sequence=43)  # of whoever has the number now
    line = event("kmsg", "corruption", record=f"{10**6}:EXT4-fs error (loop3): of this boot")
    running.intake.report(line, Attribution(filesystem=found))
    await running.intake.settle()
    assert (heard != []) is booted
    await running.store.close()


@pytest.mark.parametrize("uuid", [None, "99999999-2222-3333-4444-555555555555"])
async def test_what_is_mounted_says_what_a_line_about_a_bare_device_was_wrong_about(
    path, uuid: str | None
) -> None:
    """A late line about the XFS that had the device before: its tools are not for this ext4."""
    bare = filesystem(fstype="xfs", uuid=uuid, image=None, image_inode=None)
    mounted: Any = object()
    running = await Running(path).start()
    running.intake.report(event("kmsg", fstype="xfs"), Attribution(filesystem=bare))
    running.intake.report(
        event("fanotify"), Attribution(filesystem=filesystem(), superblock=mounted)
    )
    await running.intake.settle()
    (one,) = running.book.open_incidents()
    assert one.sources == ("kmsg", "fanotify")
    # What was mounted when the incident was opened is known by its UUID, and stays.
    assert one.filesystem == (bare if uuid else filesystem())
    await running.store.close()


@pytest.mark.parametrize(("written_us", "joins"), [(5, True), (10**15, False)])
async def test_a_line_from_before_the_start_about_a_device_that_is_being_repaired_belongs_to_that(
    path, written_us: int, *, joins: bool
) -> None:
    """The repair has detached the device since; a line of now is about who has its number now."""
    running = await Running(path).start()
    acting = replace(incident(), state=State.ACTING)
    running.book.put(acting)
    line = event("kmsg", "shutdown", record=f"{written_us}:EXT4-fs (loop3): shut down requested")
    running.intake.event(line)
    await running.intake.settle()
    others = [one for one in running.book.open_incidents() if one.incident_id != acting.incident_id]
    assert (others == []) is joins
    await running.store.close()


@pytest.mark.parametrize(
    ("written_us", "device", "is_new"),
    [(4_999_999, LOOP3, False), (5_000_001, LOOP3, True), (4_999_999, LOOP4, True)],
)
async def test_a_line_from_before_a_repair_that_is_read_when_all_is_over_opens_nothing(
    path, written_us: int, device: dict[str, Any], *, is_new: bool
) -> None:
    running = await Running(path).start()
    over = incident().reached("repaired", 5_000_000_000)
    running.book.put(over)
    running.book.close(over, Outcome.REPAIRED, "healthy")
    text = f"EXT4-fs error ({device['device']}): late"
    line = event("kmsg", "corruption", record=f"{written_us}:{text}", **device)
    running.intake.event(line)
    await running.intake.settle()
    assert (running.book.open_incidents() != []) is is_new
    await running.stored(1)
    joined = await running.store.events_of(over.incident_id, 0)
    assert (joined == []) is is_new
    await running.store.close()


@pytest.mark.parametrize("klass", ["corruption", "io_error", "not_responding", "recovered"])
async def test_what_was_said_before_this_boot_is_told_and_about_nothing_of_today(
    path, monkeypatch, klass: str
) -> None:
    """loop3 is mounted, somebody else's now; a server of that name does not answer now."""
    mounted: Any = SimpleNamespace(devno=Devno(7, 3))
    found = Attribution(filesystem=filesystem(), ves=(VeId("lxc:ve102"),), superblock=mounted)
    monkeypatch.setattr(intake, "attribute", lambda *_: found)
    running = await Running(path).start()
    checked: list[Devno] = []
    running.intake.state = SimpleNamespace(check_soon=checked.append)
    before = incident(event("kmsg", "not_responding"), domain=Domain.REMOTE)
    running.book.put(before)
    line = event("journal", klass, devno=None, server="nas", past=True, record="5:oops")
    running.intake.event(line)
    await running.intake.settle()
    assert running.book.open_incidents() == [before]
    assert checked == []
    await running.stored(1)
    (row,) = (await running.store.events_between(0, 1, 2)).rows
    assert (row["class"], row["severity"]) == (klass, line.severity.label)
    assert (row["device"], row["devno"], row["incident"]) == (None, None, None)
    assert json.loads(row["ves"]) == []
    assert row["detail"] == line.detail
    await running.store.close()


@pytest.mark.parametrize(
    ("written_us", "device", "is_of_another"),
    [
        (149, "loop3", True),
        (149, "loop3p1", True),
        (151, "loop3", False),
        (149, "loop4", False),  # nobody knows since when: as it is now
        (10**15, "loop3", False),  # of now, whatever a clock says
    ],
)
async def test_a_line_from_before_the_device_was_attached_is_not_about_what_it_has_now(
    path, monkeypatch, written_us: int, device: str, *, is_of_another: bool
) -> None:
    """A start of the daemon within one boot: the log has what was written while it was away."""
    told = [b"6,9,150,-;loop3: detected capacity change from 0 to 131072\n SUBSYSTEM=block\n"]
    monkeypatch.setattr(intake.kmsg, "buffer", lambda: iter(told))
    ves = (VeId("lxc:ve102"),)
    found = Attribution(filesystem=filesystem(device=device), ves=ves, superblock=cast("Any", 1))
    monkeypatch.setattr(intake, "attribute", lambda *_: found)
    running = await Running(path).start()
    text = f"EXT4-fs error (device {device}): oops"
    line = event("kmsg", device=device, devno=None, detail=text, record=f"{written_us}:{text}")
    running.intake.event(line)
    await running.intake.settle()
    await running.stored(1)
    (row,) = (await running.store.events_between(0, 1, 2)).rows
    if is_of_another:
        assert running.book.open_incidents() == []
        assert (row["device"], row["incident"], json.loads(row["ves"])) == (None, None, [])
        assert row["detail"] == f"before {device} was attached as it is now: {text}"
    else:
        (one,) = running.book.open_incidents()
        assert (one.ves, row["incident"]) == (ves, one.incident_id)
        assert (row["device"], row["detail"]) == (device, text)
    await running.store.close()


async def test_a_log_that_cannot_be_read_keeps_no_line_from_its_device(path, monkeypatch) -> None:
    def refused() -> list[bytes]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(intake.kmsg, "buffer", refused)
    running = await Running(path).start()
    running.intake.event(event("journal", record="5:EXT4-fs error (device loop3)"))
    await running.intake.settle()
    (one,) = running.book.open_incidents()
    assert one.filesystem.device == "loop3"
    await running.store.close()


async def test_losses_that_come_faster_than_everything_is_read_are_one_more_reading(path) -> None:
    running = await Running(path).start()
    readings: list[asyncio.Event] = []

    async def refresh(**_: object) -> None:
        readings.append(asyncio.Event())
        await readings[-1].wait()

    running.intake._inventory.refresh = refresh
    for reason in ("overflow", "again", "and again"):
        running.intake.lost(Lost(source="kmsg", since_ns=1, until_ns=2, reason=reason))
        while not readings:
            await asyncio.sleep(0)
    assert len(readings) == len(running.intake._tasks) == 1
    readings[0].set()
    while len(readings) == 1:
        await asyncio.sleep(0)
    readings[1].set()
    await running.intake.settle()
    assert len(readings) == 2
    running.intake.lost(Lost(source="kmsg", since_ns=1, until_ns=2, reason="later"))
    while len(readings) == 2:
        await asyncio.sleep(0)
    readings[2].set()
    await running.intake.settle()
    await running.store.close()


async def _cannot_refresh(**_: object) -> None:
    raise OSError(24, "Too many open files")


async def test_an_event_whose_place_cannot_be_looked_for_is_kept_all_the_same(path) -> None:
    """Its record counts as read: a second witness of it would be taken for a copy."""
    running = await Running(path).start()
    running.intake._inventory.refresh = _cannot_refresh
    record = "7000000:EXT4-fs error (device loop3)"
    running.intake.event(event("kmsg", record=record))
    running.intake.event(event("journal", record=record))
    await running.intake.settle()
    (found,) = running.book.open_incidents()
    assert (found.sources, found.ves, found.filesystem.device) == (("kmsg",), (), "loop3")
    await running.stored(1)
    await running.store.close()


async def test_what_was_missed_is_read_when_it_can_be_read_again(path, monkeypatch) -> None:
    monkeypatch.setattr(intake, "_AGAIN_S", (0.0, 0.0))
    running = await Running(path).start()
    tries: list[bool] = []
    checked = asyncio.Event()

    async def refresh(**_: object) -> None:
        tries.append(len(tries) < 2)
        if tries[-1]:
            await _cannot_refresh()

    async def check_all() -> None:
        if not tries[-1]:
            checked.set()

    running.intake._inventory.refresh = refresh
    running.intake.state = SimpleNamespace(check_all=check_all)
    running.intake.lost(Lost(source="kmsg", since_ns=1, until_ns=2, reason="overflow"))
    await asyncio.wait_for(checked.wait(), 30)
    await running.intake.settle()
    assert tries == [True, True, False]
    await running.store.close()


async def test_one_loss_after_the_other_does_not_take_all_the_time(path, monkeypatch) -> None:
    """Reading everything may itself be why something is lost."""
    clock, begun = SimpleNamespace(now=1000.0), list[float]()
    running = await Running(path).start()

    async def refresh(**_: object) -> None:
        begun.append(clock.now)
        clock.now += 2.0

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    running.intake._inventory.refresh = refresh
    timed = SimpleNamespace(monotonic=lambda: clock.now)
    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(intake, "time", timed)
            patched.setattr(intake.asyncio, "sleep", sleep)
            running.intake.lost(Lost(source="fswatchd", since_ns=1, until_ns=2, reason="stall"))
            await running.intake.settle()
    assert begun == [1000.0, 1008.0, 1016.0]
    await running.store.close()


async def test_the_end_does_not_wait_for_what_cannot_be_read(path) -> None:
    running = await Running(path).start()
    running.intake._inventory.refresh = _cannot_refresh
    running.intake.lost(Lost(source="kmsg", since_ns=1, until_ns=2, reason="overflow"))
    await asyncio.wait_for(running.intake.settle(), 30)
    assert running.intake._again is None
    await running.store.close()


async def test_the_all_clear_of_one_is_not_that_of_another(path) -> None:
    running = await Running(path).start()
    hard, below = "has reached the hard limit of space", "is below the soft limit of space again"
    for said in (f"user 1000 {hard}", f"user 2000 {hard}"):
        running.intake.event(nameless("quota", "quota", detail=said))
    await running.stored(2)
    (incident,) = running.book.open_incidents()
    running.intake._digest_all()
    for number, left in ((2000, 1), (3000, 1), (1000, 0)):
        running.intake.event(nameless("quota", "recovered", detail=f"user {number} {below}"))
        running.intake._digest_all()
        assert len(running.book.open_incidents()) == left
    await running.store.close()
    assert incident.limits == ("user 1000 hard space",)


async def test_lines_about_what_nobody_here_knows_share_a_look_at_the_node(path) -> None:
    """A disk of somebody else's that floods the log: what has to be decided needs looks too."""
    running = await Running(path).start()
    looks, goes_on = 0, asyncio.Event()

    async def refresh(**_: object) -> None:
        nonlocal looks
        looks += 1
        await goes_on.wait()

    running.intake._inventory.refresh = refresh
    for number in range(60):
        running.intake.event(event("kmsg", "io_error", record=f"{number}:x", **LOOP3))
        await asyncio.sleep(0)
    assert looks == 1
    goes_on.set()
    await running.intake.settle()
    assert looks == 2  # those that came during the first one are looked for once more
    (opened,) = running.book.open_incidents()
    assert opened.counts == {"kmsg": 60}
    for number in range(60, 120):
        running.intake.event(event("kmsg", "io_error", record=f"{number}:x", **LOOP3))
    await running.intake.settle()
    assert looks == 2  # what belongs to an open incident needs none
    running.intake.event(event("kmsg", "io_error", record="200:x", **LOOP4))
    await running.intake.settle()
    assert looks == 3
    assert len(running.book.open_incidents()) == 2
    await running.store.close()


@pytest.mark.parametrize("attached_anew", [False, True])
async def test_what_was_mounted_a_moment_ago_is_found_by_the_look(
    path, monkeypatch: pytest.MonkeyPatch, *, attached_anew: bool
) -> None:
    """A mount that fails gives its loop device back at once, and another VE may have it then."""
    running = await Running(path).start()
    found = superblock(3, (INSIDE, "/"))
    assert found.disk_sequence is not None
    heard_of = found.disk_sequence - attached_anew
    monkeypatch.setattr(block, "disk_sequence", lambda _: heard_of)

    async def refresh(**_: object) -> None:
        running.intake._inventory.view = view(superblocks=(found,))

    running.intake._inventory.refresh = refresh
    running.intake.event(event("kmsg", "io_error", record="1:x", **LOOP3))
    await running.intake.settle()
    (opened,) = running.book.open_incidents()
    assert bool(opened.filesystem.mountpoints) is not attached_anew
    await running.store.close()


IMAGE = (Devno(8, 1), 77)
STOPPED = view(
    ve("lxc", "ve101"),
    image_owners={IMAGE: VeId("lxc:ve101")},
    image_paths={IMAGE: "/vz/ve101.raw"},
)


@pytest.mark.parametrize(
    ("known", "joins"),
    [
        (incident(state=State.WAITING), True),
        (incident(filesystem=filesystem(image="/vz/ve102.raw")), False),
        (incident(state=State.NEEDS_OPERATOR), False),
        (incident(filesystem=filesystem(), domain=Domain.SPACE), False),
    ],
    ids=["itself", "another-image", "handed-over", "another-fault"],
)
async def test_a_mount_that_fails_is_told_of_the_image_that_was_put_down(
    path, monkeypatch: pytest.MonkeyPatch, known, *, joins: bool
) -> None:
    """Its loop device is given back at once, before anybody could look twice."""
    attached = [
        loop.LoopStatus(
            device="loop4", backing_devno=IMAGE[0], backing_inode=IMAGE[1], offset=0, flags=0
        )
    ]

    def status(device: str, _patience_s: float) -> loop.LoopStatus:
        if not attached:
            raise OSError(errno.ENXIO, device)
        return attached[0]

    async def refresh(**_: object) -> None:
        attached.clear()

    monkeypatch.setattr(loop, "status", status)
    running = await Running(path).start()
    running.intake._inventory.view = STOPPED
    running.intake._inventory.refresh = refresh
    running.book.put(known)
    running.intake.event(event("kmsg", "mount_failure", record="1:x", **LOOP4))
    await running.intake.settle()
    others = [i for i in running.book.open_incidents() if i.incident_id != known.incident_id]
    assert attached == []
    if joins:
        assert others == []
        assert EventClass.MOUNT_FAILURE in running.book.open_incidents()[0].classes
    else:
        (opened,) = others
        assert (opened.ves, opened.filesystem.image) == (("lxc:ve101",), "/vz/ve101.raw")
    await running.store.close()


@pytest.mark.parametrize(
    ("uuid", "state", "joins"),
    [
        ("11111111-2222-3333-4444-555555555555", State.OPEN, True),
        ("11111111-2222-3333-4444-555555555555", State.NEEDS_OPERATOR, False),
        ("22222222-2222-3333-4444-555555555555", State.OPEN, False),
    ],
    ids=["itself", "handed-over", "reinstalled"],
)
async def test_an_error_of_a_volume_that_was_mounted_again_joins_what_was_known_of_it(
    path, uuid: str, state: State, *, joins: bool
) -> None:
    backing = Backing(kind="loop", image="/vz/ve101.raw", image_devno=IMAGE[0], image_inode=79)
    again = replace(superblock(4, (INSIDE, "/")), uuid=uuid, backing=backing)
    running = await Running(path).start()
    running.intake._inventory.view = view(ve("lxc", "ve101"), superblocks=(again,))
    known = incident(state=state)
    running.book.put(known)
    running.intake.event(event("kmsg", record="1:x", **LOOP4))
    await running.intake.settle()
    found = running.book.find(running.intake._inventory.view.describe(again), Domain.DAMAGE)
    assert found is not None
    assert (found.incident_id == known.incident_id) is joins
    await running.store.close()
