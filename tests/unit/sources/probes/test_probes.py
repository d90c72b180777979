"""Probes on trees laid out as sysfs is: the words and numbers are those of its ABI documents."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Health
from fswatchd.helpers.client import HelperError
from fswatchd.inventory.model import Backing, Superblock
from fswatchd.kernel import block
from fswatchd.sources.probes import Seen
from fswatchd.sources.probes.btrfs import BtrfsProbe, parse_error_stats
from fswatchd.sources.probes.ext4 import Ext4Probe
from fswatchd.sources.probes.f2fs import F2fsProbe
from fswatchd.sources.probes.loop import LoopProbe
from fswatchd.sources.probes.md import MdProbe
from fswatchd.sources.probes.options import OptionsProbe
from fswatchd.sources.probes.xfs import XfsProbe
from tests.collected import Memory
from tests.unit.inventory.test_lookup import NODE, superblock

UUID = "11111111-2222-3333-4444-555555555555"


def write(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")


def no_device(*_: object) -> NoReturn:
    raise OSError(errno.ENODEV, "No such device")


def classes(found: list) -> list[EventClass]:
    return [finding.klass for finding in found]


class FakeMounts:
    """The answers of an inventory."""

    def __init__(self) -> None:
        self.options: tuple[str, ...] | None = ()
        self.answer: int | Exception = 0

    def current_options(self, _: Superblock) -> tuple[str, ...] | None:
        return self.options

    def at_once(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def root_error(self, _: Superblock) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    btrfs_error = root_error


class TestExt4:
    @pytest.fixture
    def directory(self, tmp_path) -> Path:
        path = tmp_path / "fs/ext4/loop3"
        write(path, errors_count=0, last_error_time=0, last_error_errcode=5, last_error_func="x")
        return path

    def probe(self, tmp_path: Path, memory: Memory | None = None) -> Ext4Probe:
        return Ext4Probe(superblock(3, (NODE, "/")), Seen(memory or Memory(), "v"), tmp_path)

    @pytest.mark.parametrize(
        ("code", "klass"), [(5, "corruption"), (2, "io_error"), (6, "space"), (8, "readonly")]
    )
    def test_errors_are_told_by_their_code(self, tmp_path, directory, code, klass) -> None:
        probe = self.probe(tmp_path)
        assert (probe.look(), probe.health) == ([], Health.OK)
        write(directory, errors_count=3, last_error_errcode=code)
        (found,) = probe.look()
        assert (found.klass, found.count) == (EventClass(klass), 3)
        assert (probe.look(), probe.errors, probe.health) == ([], 3, Health.SUSPECT)
        probe.close()

    def test_a_counter_that_e2fsck_has_set_back_is_no_error(self, tmp_path, directory) -> None:
        write(directory, errors_count=3)
        probe = self.probe(tmp_path)
        assert len(probe.look()) == 1
        write(directory, errors_count=0)
        assert (probe.look(), probe.errors) == ([], 0)
        probe.close()

    def test_nothing_to_read_proves_nothing(self, tmp_path) -> None:
        probe = self.probe(tmp_path)
        assert (probe.look(), probe.errors, probe.health) == ([], None, Health.UNKNOWN)

    def test_one_that_was_unmounted_is_lost_and_nothing_is_known_of_it(
        self, tmp_path, directory, monkeypatch
    ) -> None:
        """As sysfs answers: what is mounted next has another file of the same name."""
        probe = self.probe(tmp_path)
        probe.look()
        assert (probe.lost, probe.health) == (False, Health.OK)
        with monkeypatch.context() as gone:
            gone.setattr(os, "pread", no_device)
            assert probe.look() == []
        assert (probe.lost, probe.health) == (True, Health.UNKNOWN)
        probe.close()


class TestBtrfs:
    CLEAN = "write_errs 0\nread_errs 0\nflush_errs 0\ncorruption_errs 0\ngeneration_errs 0"

    def devices(self, tmp_path: Path, *stats: str, missing: int = 0) -> None:
        for number, text in enumerate(stats, 1):
            write(
                tmp_path / "fs/btrfs" / UUID / "devinfo" / str(number),
                error_stats=text,
                missing=1 if number <= missing else 0,
            )

    @pytest.fixture(autouse=True)
    def made(self) -> Iterator[list[BtrfsProbe]]:
        self.probes: list[BtrfsProbe] = []
        yield self.probes
        for probe in self.probes:
            probe.close()

    def probe(self, tmp_path: Path, memory: Memory | None = None) -> BtrfsProbe:
        found = replace(superblock(3, (NODE, "/")), uuid=UUID)
        self.mounts = FakeMounts()
        seen = Seen(Memory() if memory is None else memory, "v")
        probe = BtrfsProbe(found, self.mounts, seen, tmp_path)
        self.probes.append(probe)
        return probe

    @pytest.mark.parametrize(
        ("counter", "klass"),
        [
            ("write_errs", "io_error"),
            ("read_errs", "io_error"),
            ("flush_errs", "io_error"),
            ("corruption_errs", "corruption"),
            ("generation_errs", "corruption"),
        ],
    )
    def test_each_counter_has_its_class(self, tmp_path, counter, klass) -> None:
        self.devices(tmp_path, self.CLEAN, self.CLEAN)
        probe = self.probe(tmp_path)
        assert probe.look() == []
        self.devices(tmp_path, self.CLEAN, self.CLEAN.replace(f"{counter} 0", f"{counter} 2"))
        (found,) = probe.look()
        assert (found.klass, found.count, found.text) == (klass, 2, f"{counter} 0 -> 2")
        assert (probe.look(), probe.errors, probe.health) == ([], 2, Health.SUSPECT)

    def test_clean_counters_are_no_proof_of_health(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN)
        probe = self.probe(tmp_path)
        probe.look()
        assert probe.health is Health.UNKNOWN

    def test_the_past_is_told_once(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN.replace("read_errs 0", "read_errs 7"))
        memory = Memory()
        assert classes(self.probe(tmp_path, memory).look()) == [EventClass.IO_ERROR]
        assert self.probe(tmp_path, memory).look() == []
        memory.clear()
        assert classes(self.probe(tmp_path, memory).look()) == [EventClass.IO_ERROR]

    def test_counters_that_were_set_back_start_again(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN.replace("read_errs 0", "read_errs 7"))
        probe = self.probe(tmp_path)
        probe.look()
        self.devices(tmp_path, self.CLEAN)
        assert probe.look() == []
        self.devices(tmp_path, self.CLEAN.replace("read_errs 0", "read_errs 1"))
        assert classes(probe.look()) == [EventClass.IO_ERROR]

    def test_a_device_that_is_missing_and_back(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN, self.CLEAN)
        probe = self.probe(tmp_path)
        probe.look()
        self.devices(tmp_path, self.CLEAN, self.CLEAN, missing=1)
        assert classes(probe.look()) == [EventClass.DEGRADED]
        self.devices(tmp_path, self.CLEAN, self.CLEAN)
        assert classes(probe.look()) == [EventClass.RECOVERED]

    def test_a_device_that_is_added_later_is_counted_too(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN)
        probe = self.probe(tmp_path)
        probe.look()
        self.devices(tmp_path, self.CLEAN, self.CLEAN.replace("write_errs 0", "write_errs 1"))
        found = [finding for _ in range(40) for finding in probe.look()]
        assert classes(found) == [EventClass.IO_ERROR]

    def test_a_device_that_is_removed_breaks_nothing(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN, self.CLEAN)
        probe = self.probe(tmp_path)
        probe.look()
        shutil.rmtree(tmp_path / "fs/btrfs" / UUID / "devinfo/2")
        assert [finding for _ in range(40) for finding in probe.look()] == []

    def test_what_was_remembered_of_another_kind_of_filesystem_is_nothing(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN)
        assert self.probe(tmp_path, Memory(v=[3, 1700000000])).look() == []

    async def test_read_only_because_its_transaction_was_aborted(self, tmp_path) -> None:
        self.devices(tmp_path, self.CLEAN)
        probe = self.probe(tmp_path)
        self.mounts.answer = errno.EROFS
        assert await probe.ask() == []
        self.mounts.options = ("ro",)
        assert classes(await probe.ask()) == [EventClass.READONLY]
        assert await probe.ask() == []
        probe.look()
        assert probe.health is Health.READONLY
        self.mounts.options = ()
        assert await probe.ask() == []
        assert probe.health is Health.UNKNOWN

    @pytest.mark.parametrize("answer", [0, OSError(errno.ENOENT, "gone"), TimeoutError()])
    async def test_read_only_because_somebody_wanted_it(self, tmp_path, answer) -> None:
        self.devices(tmp_path, self.CLEAN)
        probe = self.probe(tmp_path)
        self.mounts.options, self.mounts.answer = ("ro",), answer
        assert await probe.ask() == []
        assert probe.health is Health.UNKNOWN

    @given(st.text(max_size=200))
    def test_no_text_breaks_the_parser(self, text: str) -> None:
        assert all(value >= 0 for value in parse_error_stats(text).values())

    def test_a_device_without_counters(self) -> None:
        assert parse_error_stats("invalid") == {}


class TestF2fs:
    @pytest.mark.parametrize(
        ("sb_status", "cp_status", "wanted", "health"),
        [
            ("1", "45", [], Health.UNKNOWN),
            ("5", "45", ["corruption"], Health.SUSPECT),
            ("41", "45", ["shutdown"], Health.SHUTDOWN),
            ("1", "4d", ["readonly"], Health.READONLY),
            ("1", "55", ["corruption"], Health.SUSPECT),
            ("nonsense", "", [], Health.UNKNOWN),
        ],
    )
    def test_flags(self, tmp_path, sb_status, cp_status, wanted, health) -> None:
        write(tmp_path / "fs/f2fs/loop3/stat", sb_status=sb_status, cp_status=cp_status)
        probe = F2fsProbe(superblock(3, (NODE, "/")), tmp_path)
        assert classes(probe.look()) == wanted
        assert probe.look() == []
        assert probe.health is health


class TestMd:
    def array(self, tmp_path: Path, degraded: int, state: str) -> None:
        write(tmp_path / "block/md0/md", degraded=degraded, array_state=state)

    def probe(self, tmp_path: Path, memory: Memory | None = None) -> MdProbe:
        return MdProbe("md0", Seen(Memory() if memory is None else memory, "v#md0"), tmp_path)

    def test_an_array_that_loses_devices_and_is_rebuilt(self, tmp_path) -> None:
        self.array(tmp_path, 0, "active")
        probe = self.probe(tmp_path)
        assert probe.look() == []
        self.array(tmp_path, 1, "active")
        assert classes(probe.look()) == [EventClass.DEGRADED]
        assert probe.look() == []
        self.array(tmp_path, 0, "clean")
        assert classes(probe.look()) == [EventClass.RECOVERED]
        probe.close()

    def test_an_array_that_has_failed(self, tmp_path) -> None:
        self.array(tmp_path, 0, "broken")
        probe = self.probe(tmp_path)
        assert classes(probe.look()) == [EventClass.DEVICE_LOST]
        assert probe.look() == []
        probe.close()

    def test_a_degraded_array_is_told_once_also_after_a_restart(self, tmp_path) -> None:
        self.array(tmp_path, 1, "clean")
        memory = Memory()
        for wanted in ([EventClass.DEGRADED], []):
            probe = self.probe(tmp_path, memory)
            assert classes(probe.look()) == wanted
            probe.close()

    def test_an_array_that_was_stopped_is_lost(self, tmp_path, monkeypatch) -> None:
        self.array(tmp_path, 0, "active")
        probe = self.probe(tmp_path)
        with monkeypatch.context() as gone:
            gone.setattr(os, "pread", no_device)
            assert probe.look() == []
        assert probe.lost
        probe.close()

    @pytest.mark.parametrize("state", ["clean", "readonly", "read-auto", "active-idle", "inactive"])
    def test_other_states_are_no_faults(self, tmp_path, state) -> None:
        self.array(tmp_path, 0, state)
        probe = self.probe(tmp_path)
        assert probe.look() == []
        probe.close()


class TestOptions:
    def test_the_kernels_own_flags(self) -> None:
        mounts = FakeMounts()
        probe = OptionsProbe(superblock(3, (NODE, "/")), mounts)
        assert probe.look() == []
        mounts.options = ("emergency_ro",)
        assert classes(probe.look()) == [EventClass.READONLY]
        assert (probe.look(), probe.health) == ([], Health.READONLY)
        mounts.options = ("emergency_ro", "shutdown")
        assert classes(probe.look()) == [EventClass.SHUTDOWN]
        assert probe.health is Health.SHUTDOWN

    @pytest.mark.parametrize("options", [("ro",), ("errors=remount-ro",), None])
    def test_what_is_no_word_of_the_kernel(self, options) -> None:
        mounts = FakeMounts()
        mounts.options = options
        probe = OptionsProbe(superblock(3, (NODE, "/")), mounts)
        assert (probe.look(), probe.health) == ([], Health.UNKNOWN)


class TestXfs:
    async def test_an_answer_of_eio_is_a_shutdown_once(self) -> None:
        found = superblock(3, (NODE, "/"))
        mounts = FakeMounts()
        probe = XfsProbe(found, mounts)
        assert await probe.ask() == []
        mounts.answer = errno.EIO
        assert classes(await probe.ask()) == [EventClass.SHUTDOWN]
        assert await probe.ask() == []
        assert probe.health is Health.SHUTDOWN

    @pytest.mark.parametrize(
        "answer", [errno.EACCES, OSError(errno.EIO, "the way there"), HelperError("no answer")]
    )
    async def test_anything_else_is_no_shutdown(self, answer) -> None:
        found = superblock(3, (NODE, "/"))
        mounts = FakeMounts()
        mounts.answer = answer
        assert await XfsProbe(found, mounts).ask() == []

    async def test_one_that_hangs_is_not_asked_again_at_once(self) -> None:
        found = superblock(3, (NODE, "/"))
        mounts = FakeMounts()
        mounts.answer = HelperError("no answer")
        probe = XfsProbe(found, mounts)
        await probe.ask()
        mounts.answer = errno.EIO
        assert await probe.ask() == []
        found_later = [await probe.ask() for _ in range(10)]
        assert sum(map(len, found_later)) == 1


class TestLoop:
    @pytest.fixture
    def cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Superblock]:
        """An image as long as its device of 8 sectors."""
        image = tmp_path / "image"
        image.write_bytes(bytes(4096))
        status = image.stat()
        backing = Backing(
            kind="loop",
            image=str(image),
            image_devno=Devno.of(status.st_dev),
            image_inode=status.st_ino,
        )
        monkeypatch.setattr(block, "sectors", lambda _: 8)
        return image, replace(superblock(3, (NODE, "/")), backing=backing)

    def test_an_image_that_was_cut_is_told_once(self, cut: tuple[Path, Superblock]) -> None:
        image, found = cut
        probe = LoopProbe(found)
        assert probe.look() == []
        image.write_bytes(bytes(3584))
        assert classes(probe.look()) == [EventClass.IO_ERROR]
        assert probe.look() == []
        image.write_bytes(bytes(1024))
        assert classes(probe.look()) == [EventClass.IO_ERROR]

    def test_a_longer_image_or_another_file_of_that_name_is_no_fault(
        self, cut: tuple[Path, Superblock]
    ) -> None:
        image, found = cut
        probe = LoopProbe(found)
        image.write_bytes(bytes(8192))
        assert probe.look() == []
        image.rename(image.with_name("moved"))
        image.write_bytes(bytes(512))
        assert probe.look() == []
