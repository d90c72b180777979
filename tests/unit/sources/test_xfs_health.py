"""The source on a pipe that carries events as the monitor of Linux 7.0 does."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fswatchd.events import EventClass
from fswatchd.kernel import xfs_health
from fswatchd.kernel.xfs_health import Domain, Type
from fswatchd.sources.xfs_health import XfsHealthSource
from tests.collected import Collected
from tests.unit.inventory.test_lookup import NODE, superblock
from tests.unit.kernel.test_xfs_health import event

XFS = replace(superblock(3, (NODE, "/mnt")), fstype="xfs")


class Monitored:
    """A source that reads from `write`'s other end."""

    def __init__(self) -> None:
        self.sink = Collected()
        self.source = XfsHealthSource(self.sink)
        self.reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    async def write(self, data: bytes) -> None:
        os.write(self._writer, data)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def hang_up(self) -> None:
        os.close(self._writer)
        self._writer = -1

    async def stop(self) -> None:
        await self.source.stop()
        if self._writer >= 0:
            os.close(self._writer)

    @property
    def reader_is_open(self) -> bool:
        try:
            os.fstat(self.reader)
        except OSError:
            return False
        return True


@pytest.fixture
async def monitored() -> AsyncIterator[Monitored]:
    made = Monitored()
    await made.source.start()
    made.source.attach(XFS, made.reader)
    yield made
    await made.stop()


@pytest.mark.parametrize(
    ("data", "klass", "number"),
    [
        (event(Domain.AG, Type.SICK, "II", 1, 2), "corruption", errno.EUCLEAN),
        (event(Domain.INODE, Type.CORRUPT, "IIQ", 1, 2, 3), "corruption", errno.EUCLEAN),
        (event(Domain.MOUNT, Type.SHUTDOWN, "I", 1), "shutdown", errno.ESHUTDOWN),
        (event(Domain.DATADEV, Type.MEDIA_ERROR, "QQ", 1, 8), "io_error", errno.EIO),
        (event(Domain.FILERANGE, Type.BUFREAD, "QQQII", 0, 1, 1, 1, 61), "io_error", 61),
        (event(Domain.FILERANGE, Type.BUFWRITE, "QQQII", 0, 1, 1, 1, 28), "io_error", 28),
        (event(Domain.FILERANGE, Type.DIOREAD, "QQQII", 0, 1, 1, 1, 0), "io_error", errno.EIO),
        (event(Domain.FILERANGE, Type.DIOWRITE, "QQQII", 0, 1, 1, 1, 0), "io_error", errno.EIO),
        (event(Domain.FILERANGE, Type.DATALOST, "QQQII", 0, 1, 1, 1, 0), "data_loss", errno.EIO),
        (event(Domain.FS, Type.HEALTHY, "I", 1), "recovered", None),
    ],
)
async def test_what_it_tells(monitored, data, klass, number) -> None:
    await monitored.write(data)
    (found,) = monitored.sink.events
    assert (found.klass, found.errno, found.confirms) == (EventClass(klass), number, True)
    assert found.devno == XFS.devno


@pytest.mark.parametrize("kind", [Type.RUNNING, 99])
async def test_what_is_nothing(monitored, kind) -> None:
    await monitored.write(event(Domain.MOUNT, kind))
    assert monitored.sink.events == monitored.sink.losses == []
    assert monitored.reader_is_open


async def test_what_the_kernel_has_dropped_is_a_loss(monitored) -> None:
    await monitored.write(event(Domain.MOUNT, Type.LOST, "Q", 512))
    (found,) = monitored.sink.losses
    assert (found.count, monitored.source.status.lost) == (512, 512)


async def test_bytes_that_are_no_events_are_a_loss_and_not_the_end(monitored) -> None:
    await monitored.write(b"nonsense")
    assert len(monitored.sink.losses) == 1
    await monitored.write(event(Domain.MOUNT, Type.SHUTDOWN, "I", 1))
    assert len(monitored.sink.events) == 1


async def test_it_ends_with_the_filesystem(monitored) -> None:
    await monitored.write(event(Domain.AG, Type.SICK, "II", 1, 2) + event(0, Type.UNMOUNT))
    assert len(monitored.sink.events) == 1
    assert not monitored.reader_is_open
    assert monitored.source.status.detail == "0 filesystems"


async def test_it_ends_with_its_descriptor(monitored) -> None:
    monitored.hang_up()
    await monitored.settle()
    assert not monitored.reader_is_open


async def test_it_ends_when_the_superblock_is_gone(monitored) -> None:
    monitored.source.forget(XFS)
    assert not monitored.reader_is_open


@pytest.mark.parametrize(
    ("number", "state", "words"),
    [
        (errno.ENOTTY, "unavailable", "Linux 7.0"),
        (errno.EEXIST, "ok", "loop3 is held by xfs_healer"),
        (errno.EPERM, "ok", "CAP_SYS_ADMIN"),
    ],
)
async def test_where_it_cannot_have_the_monitor_it_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path, number: int, state: str, words: str
) -> None:
    def refused(_root: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(xfs_health, "monitor", refused)
    source = XfsHealthSource(Collected())
    await source.start()
    directory = os.open(tmp_path, os.O_PATH)
    source.watch(XFS, directory)
    os.close(directory)
    assert source.status.state == state
    assert words in source.status.detail
    source.forget(XFS)
    await source.stop()


async def test_other_filesystems_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xfs_health, "monitor", lambda _: pytest.fail("asked"))
    source = XfsHealthSource(Collected())
    await source.start()
    source.watch(superblock(3, (NODE, "/mnt")), -1)
    await source.stop()
