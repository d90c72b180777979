"""What only the kernel's state tells, on real filesystems, and what only looks like it."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Health
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.inventory.scan import MountinfoScanner
from fswatchd.kernel import block, fs, loop
from fswatchd.kernel.syscalls import reconfigure_superblock
from fswatchd.sources.fanotify import FanotifySource
from fswatchd.sources.state import StateSource
from tests.collected import Memory, NothingLost
from tests.system import rules
from tests.system.conftest import wait_until

ONLY_STATE = "\n".join(f"{n} = false" for n in ("fanotify", "kmsg", "journal", "uevent", "quota"))
PATTERN = b"what was written is what must be read " * 4096


class Scratch:
    """A filesystem on an image of its own, mounted on the node."""

    def __init__(self, work: Path, kind: str, size: int, options: str = "", make: str = "") -> None:
        self.image, self.point = work / f"{kind}.img", work / f"mnt-{kind}"
        with self.image.open("xb") as file:
            file.truncate(size)
        command = {"ext4": "mke2fs -q -t ext4", "xfs": "mkfs.xfs -q", "btrfs": "mkfs.btrfs -q"}
        argv = [*command[kind].split(), *make.split(), str(self.image)]
        subprocess.run(argv, check=True, capture_output=True)
        self.point.mkdir()
        self.mount(options)

    def mount(self, options: str = "") -> None:
        chosen = ",".join(["loop", *([options] if options else [])])
        argv = ["mount", "-o", chosen, str(self.image), str(self.point)]
        subprocess.run(argv, check=True)

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.point)], check=True)

    @property
    def device(self) -> str:
        status = self.image.stat()
        (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
        return device

    def forget_file(self, path: Path) -> None:
        """Write it out, so that the next read is one of the disk."""
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)

    def overwrite_file(self, path: Path) -> None:
        """Damage the first bytes of a file where they lie in the image."""
        self.forget_file(path)
        with self.image.open("r+b") as image, mmap.mmap(image.fileno(), 0) as data:
            places = [found.start() for found in re.finditer(PATTERN[:4096], data)]
            assert places
            for place in places:
                data[place : place + 8] = b"\0" * 8


@pytest.fixture
def make(work: Path) -> Iterator[Callable[..., Scratch]]:
    def scratch(kind: str, size: int = 64 << 20, options: str = "", make: str = "") -> Scratch:
        return Scratch(work, kind, size, options, make)

    return scratch


def fs_shutdown(point: Path) -> None:
    """The kernel stops the filesystem, as it does by itself after an error that it cannot take."""
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fs.shutdown(fd)  # XFS_IOC_GOINGDOWN has the same number and meaning
    finally:
        os.close(fd)


@asynccontextmanager
async def watching(scratch: Scratch, memory: Memory | None = None) -> AsyncIterator[tuple]:
    """The source itself on the one filesystem: (source, superblock, sink)."""
    inventory, sink = Inventory([]), NothingLost()
    source = StateSource(sink, inventory, Memory() if memory is None else memory)
    await source.start()
    try:
        await inventory.refresh()
        points = str(scratch.point)
        (superblock,) = [
            found
            for found in inventory.view.superblocks.values()
            if any(place.mount.point == points for place in found.mounts)
        ]
        source.watch(superblock)
        yield source, superblock, sink
    finally:
        await source.stop()
        await inventory.close()


async def asked(source: StateSource, superblock: Superblock) -> None:
    """Look, and wait until the helper has been asked what only it can find out."""
    source.check(superblock.devno)
    for probe in source._watched[superblock.devno].probes:
        source._report(superblock, await probe.ask())


async def until(question: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not question():
            await asyncio.sleep(0.01)


def events(daemon, scratch: Scratch) -> list[dict]:
    """Those of this filesystem: others may be at work on the same machine."""
    found = daemon.client.get("/v1/events", since=0)["events"]
    name = os.path.basename(scratch.device)
    return [event for event in found if os.path.basename(event["device"] or "") == name]


def start(daemon) -> None:
    daemon.configure(mode="observe", rules=rules.TELL, sources=ONLY_STATE)
    daemon.start()


class TestExt4:
    @pytest.fixture
    def scratch(self, make) -> Scratch:
        # As in the drill: without checksums the kernel compares bitmap and group descriptor, and
        # without prefetching it has not read the bitmap before it is damaged.
        return make(
            "ext4",
            options="errors=remount-ro,no_prefetch_block_bitmaps",
            make="-O ^metadata_csum,^uninit_bg,^resize_inode -g 256",
        )

    def damage_bitmaps(self, scratch: Scratch) -> None:
        found = subprocess.run(["dumpe2fs", scratch.device], capture_output=True, text=True)
        size = int(re.search(r"Block size:\s+(\d+)", found.stdout)[1])
        fd = os.open(scratch.device, os.O_RDWR)
        try:
            for number in re.findall(r"Block bitmap at (\d+)", found.stdout)[-16:]:
                os.pwrite(fd, b"\xff" * 8, int(number) * size + 16)
            os.fsync(fd)
        finally:
            os.close(fd)
        block.drop_buffers(scratch.device)

    def load_bitmaps(self, scratch: Scratch) -> None:
        """Reading this file loads the bitmaps of all groups (fs/ext4/mballoc.c)."""
        Path(f"/proc/fs/ext4/{os.path.basename(scratch.device)}/mb_groups").read_text()

    def test_the_error_of_a_block_group_is_found_by_the_timer_alone(self, daemon, scratch) -> None:
        start(daemon)
        self.damage_bitmaps(scratch)
        self.load_bitmaps(scratch)
        (event,) = wait_until(lambda: events(daemon, scratch))
        assert (event["source"], event["class"], event["confirms"]) == ("state", "corruption", True)

    async def test_group_descriptors_that_are_right_are_nothing(self, scratch) -> None:
        async with watching(scratch) as (source, superblock, sink):
            self.load_bitmaps(scratch)
            source.check(superblock.devno)
        assert sink.events == []


class TestReadOnly:
    @pytest.mark.parametrize(("kind", "size"), [("ext4", 64), ("xfs", 400), ("btrfs", 200)])
    async def test_a_remount_that_somebody_asked_for_is_nothing(self, make, kind, size) -> None:
        scratch = make(kind, size << 20)
        async with watching(scratch) as (source, superblock, sink):
            scratch.remount("ro")
            await asked(source, superblock)
            health = source.health(superblock.devno)
            scratch.remount("rw")
            await asked(source, superblock)
        assert sink.events == []
        assert health is not Health.READONLY

    async def test_a_superblock_that_somebody_has_made_read_only_alone_is_nothing(
        self, make
    ) -> None:
        """As `umount /` does in a VE that stops: no mount says that it was asked for."""
        scratch = make("btrfs", 200 << 20)
        async with watching(scratch) as (source, superblock, sink):
            fd = os.open(scratch.point, os.O_PATH)
            reconfigure_superblock(fd, "ro")
            os.close(fd)
            await asked(source, superblock)
        assert sink.events == []

    async def test_btrfs_that_the_kernel_has_stopped(self, make, work) -> None:
        """The host beneath it is full: a transaction cannot be written and is aborted."""
        host = work / "full"
        host.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(host)], check=True)
        scratch = Scratch(host, "btrfs", 200 << 20, make="-m single -d single")
        async with watching(scratch) as (source, superblock, sink):
            for number in range(10):
                with suppress(OSError):
                    (scratch.point / f"file{number}").write_bytes(os.urandom(8 << 20))
                subprocess.run(["sync", "-f", str(scratch.point)], check=False)
            await asked(source, superblock)
            await asked(source, superblock)
            health = source.health(superblock.devno)
        (event,) = [e for e in sink.events if e.klass is EventClass.READONLY]
        assert event.confirms
        assert health is Health.READONLY


class TestBtrfs:
    @pytest.fixture
    def scratch(self, make) -> Scratch:
        made = make("btrfs", 200 << 20, make="-m single -d single")
        (made.point / "file").write_bytes(PATTERN)
        return made

    def damage(self, scratch: Scratch) -> None:
        scratch.overwrite_file(scratch.point / "file")
        with pytest.raises(OSError, match="Input/output error"):
            (scratch.point / "file").read_bytes()

    def test_data_that_fails_its_checksum_is_corruption(self, daemon, scratch) -> None:
        start(daemon)
        self.damage(scratch)
        event = wait_until(lambda: events(daemon, scratch))[0]
        assert (event["source"], event["class"]) == ("state", "corruption")
        assert event["confirms"]
        assert "corruption_errs 0 -> " in event["detail"]

    async def test_data_that_is_right_is_nothing(self, scratch) -> None:
        async with watching(scratch) as (source, superblock, sink):
            assert (scratch.point / "file").read_bytes() == PATTERN
            source.check(superblock.devno)
            assert source.errors(superblock.devno) == 0
        assert sink.events == []

    async def test_what_happened_before_is_told_once(self, scratch) -> None:
        self.damage(scratch)
        memory = Memory()
        async with watching(scratch, memory) as (source, superblock, sink):
            source.check(superblock.devno)
        assert [event.klass for event in sink.events] == [EventClass.CORRUPTION]
        async with watching(scratch, memory) as (_, _, sink):
            pass
        assert sink.events == []

    async def test_a_subvolume_alone_is_watched_too(self, scratch) -> None:
        """Every subvolume has a device number of its own, which is not the superblock's."""
        subprocess.run(
            ["btrfs", "subvolume", "create", str(scratch.point / "sub")],
            check=True,
            capture_output=True,
        )
        (scratch.point / "sub/file").write_bytes(PATTERN)
        subprocess.run(["umount", str(scratch.point)], check=True)
        scratch.mount("subvol=sub")
        async with watching(scratch) as (source, superblock, sink):
            self.damage(scratch)
            source.check(superblock.devno)
        assert superblock.uuid
        assert EventClass.CORRUPTION in {event.klass for event in sink.events}


class TestXfs:
    @pytest.fixture
    def scratch(self, make) -> Scratch:
        return make("xfs", 400 << 20)

    def shut_down(self, scratch: Scratch) -> None:
        fs_shutdown(scratch.point)

    def test_a_shutdown_is_found_by_the_timer_alone(self, daemon, scratch) -> None:
        start(daemon)
        self.shut_down(scratch)
        (event,) = wait_until(lambda: events(daemon, scratch), 40)
        assert (event["class"], event["confirms"]) == ("shutdown", True)

    def test_one_that_was_shut_down_before_is_found_at_the_start(self, daemon, scratch) -> None:
        self.shut_down(scratch)
        start(daemon)
        (event,) = wait_until(lambda: events(daemon, scratch))
        assert event["class"] == "shutdown"

    async def test_one_that_is_well_is_nothing(self, scratch) -> None:
        answers = []

        class Asking(Inventory):
            async def root_error(self, superblock: Superblock) -> int:
                answers.append(await super().root_error(superblock))
                return answers[-1]

        inventory, sink = Asking([]), NothingLost()
        source = StateSource(sink, inventory, Memory())
        await source.start()
        try:
            await inventory.refresh()
            for superblock in inventory.view.superblocks.values():
                if any(p.mount.point == str(scratch.point) for p in superblock.mounts):
                    source.watch(superblock)
            await until(lambda: answers)
        finally:
            await source.stop()
            await inventory.close()
        assert answers == [0]
        assert sink.events == []


def test_a_line_about_a_btrfs_device_and_its_counters_are_one_incident(daemon, make) -> None:
    """The superblock's own number is no block device's; the line names the device."""
    scratch = make("btrfs", 200 << 20, make="-m single -d single")
    (scratch.point / "file").write_bytes(PATTERN)
    daemon.configure(mode="observe", rules=rules.TELL)
    daemon.start()
    scratch.forget_file(scratch.point / "file")
    os.truncate(scratch.image, 1 << 20)
    with pytest.raises(OSError, match="Input/output error"):
        (scratch.point / "file").read_bytes()
    wait_until(lambda: {"kmsg", "state"} <= {e["source"] for e in events(daemon, scratch)})
    assert len({event["incident"] for event in events(daemon, scratch)} - {None}) == 1


async def test_a_filesystem_that_could_not_be_reached_is_tried_again_at_the_next_look(make) -> None:
    scratch = make("ext4")
    refusals = [BlockingIOError(11, "Resource temporarily unavailable")]

    class Busy(Inventory):
        async def _open(self, superblock: Superblock) -> tuple[int, dict]:
            ours = any(place.mount.point == str(scratch.point) for place in superblock.mounts)
            if ours and refusals:
                raise refusals.pop()
            return await super()._open(superblock)

    reached: list[str] = []
    inventory = Busy([])
    inventory.subscribe(on_superblock=lambda superblock, _: reached.append(superblock.device))
    name = os.path.basename(scratch.device)
    try:
        await inventory.refresh()
        assert name not in reached
        await inventory.refresh()
        await inventory.refresh()
    finally:
        await inventory.close()
    assert reached.count(name) == 1


@pytest.mark.parametrize("kind", ["xfs", "ext4"])
async def test_one_whose_first_mount_is_gone_is_watched_on_at_its_others(
    make, work: Path, kind: str
) -> None:
    """As it is staged on the node, and then moved to where its VE has it."""
    scratch = make(kind, 320 << 20)
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    async with watching(scratch) as (source, superblock, sink):
        inventory = source._mounts
        subprocess.run(["mount", "--bind", scratch.point, elsewhere], check=True)
        await inventory.refresh()
        subprocess.run(["umount", scratch.point], check=True)
        changes = await inventory.refresh()
        assert superblock.devno not in {one.devno for one in changes.appeared}
        assert inventory.current_options(superblock) is not None
        await asked(source, superblock)
        assert not [event for event in sink.events if event.klass is EventClass.SHUTDOWN]
        fs_shutdown(elsewhere)
        await asked(source, superblock)
        told = {event.klass for event in sink.events}
        assert told & {EventClass.SHUTDOWN, EventClass.READONLY}, sink.events


async def test_one_that_is_mounted_again_with_the_same_numbers_is_watched_again(make) -> None:
    """As before Linux 6.12: no look shows it, but its mark and its counter's file are gone."""
    scratch = make("ext4")
    inventory, sink = Inventory([], MountinfoScanner()), NothingLost()
    state, marks = StateSource(sink, inventory, Memory()), FanotifySource(sink, lambda _: ())

    def watch(superblock: Superblock, fd: int) -> None:
        state.watch(superblock)
        marks.watch(superblock, fd)

    def again() -> None:
        subprocess.run(["umount", str(scratch.point)], check=True)
        subprocess.run(["mount", device, str(scratch.point)], check=True)

    await state.start()
    await marks.start()
    inventory.subscribe(on_superblock=watch)
    device = scratch.device
    kept = os.open(device, os.O_RDONLY)
    devno = Devno.of(os.stat(device).st_rdev)
    try:
        again()
        for _ in range(20):
            await inventory.refresh()
            before = inventory.view.superblocks[devno]
            again()
            changes = await inventory.refresh()
            if devno not in {found.devno for found in changes.appeared}:
                break  # nobody else has taken the id of the mount in between
        assert inventory.view.superblocks[devno] is before
        state.check(devno)
        assert (state.lost() & {devno}, marks.unmarked() & {devno}) == ({devno}, {devno})
        assert await inventory.announce(before)
        state.check(devno)
        assert devno not in state.lost() | marks.unmarked()
    finally:
        os.close(kept)
        await state.stop()
        await marks.stop()
        await inventory.close()
