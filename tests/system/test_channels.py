"""Uevents, container events and XFS health against the real kernel, and against forgers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.events import EventClass
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import loop
from fswatchd.sources.uevent import UeventSource
from fswatchd.sources.uevent_meaning import Uevent
from fswatchd.sources.vzevent import VzEventSource
from fswatchd.sources.xfs_health import XfsHealthSource
from tests.collected import Collected

NETLINK_KOBJECT_UEVENT = 15


async def until(question: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not question():
            await asyncio.sleep(0.01)


def mounted(work: Path, kind: str = "ext4", size: int = 64 << 20) -> tuple[Path, str]:
    """An image, mounted on the node; (image, name of its device)."""
    image, point = work / f"{kind}.img", work / f"mnt-{kind}"
    with image.open("xb") as file:
        file.truncate(size)
    make = {"ext4": ["mke2fs", "-q", "-t", "ext4"], "xfs": ["mkfs.xfs", "-q"]}[kind]
    subprocess.run([*make, str(image)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    status = image.stat()
    (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
    return image, os.path.basename(device)


async def superblock_on(inventory: Inventory, device: str) -> Superblock:
    await inventory.refresh()
    found = inventory.superblock_of_name(device)
    assert found is not None
    return found


class TestUevent:
    @asynccontextmanager
    async def listening(self, device: str) -> AsyncIterator[tuple[UeventSource, Collected, list]]:
        inventory, sink, looks = Inventory([]), Collected(), []
        source = UeventSource(
            sink, lambda d: inventory.view.superblock_on(d), lambda: looks.append(1)
        )
        found = await superblock_on(inventory, device)
        await source.start()
        source.watch(found)
        try:
            yield source, sink, looks
        finally:
            await source.stop()
            await inventory.close()

    async def test_a_device_that_shrinks_beneath_its_filesystem(self, work) -> None:
        image, device = mounted(work)
        async with self.listening(device) as (_, sink, _):
            os.truncate(image, 32 << 20)
            subprocess.run(["losetup", "-c", f"/dev/{device}"], check=True)
            await until(lambda: sink.events)
        (found,) = sink.events
        assert (found.klass, found.confirms) == (EventClass.IO_ERROR, False)
        assert found.device == device

    async def test_a_device_that_grows_is_no_fault(self, work) -> None:
        image, device = mounted(work)
        async with self.listening(device) as (_, sink, looks):
            os.truncate(image, 128 << 20)
            subprocess.run(["losetup", "-c", f"/dev/{device}"], check=True)
            await until(lambda: looks)
        assert sink.events == []

    @pytest.mark.parametrize("action", ["remove", "change", "offline"])
    async def test_an_event_that_somebody_asked_for_is_no_fault(self, work, action) -> None:
        """As `udevadm trigger` does; the kernel marks it with SYNTH_UUID."""
        _, device = mounted(work)
        async with self.listening(device) as (_, sink, looks):
            Path(f"/sys/block/{device}/uevent").write_text(action)
            await until(lambda: looks)
        assert sink.events == []

    async def test_an_event_of_another_process_is_not_believed(self, work) -> None:
        _, device = mounted(work)
        number = Path(f"/sys/block/{device}/dev").read_text().strip().split(":")
        words = {
            "ACTION": "remove",
            "DEVPATH": f"/devices/virtual/block/{device}",
            "SUBSYSTEM": "block",
            "DISK_RO": "1",
            "MAJOR": number[0],
            "MINOR": number[1],
            "SEQNUM": "99999999",
        }
        text = f"remove@{words['DEVPATH']}\0" + "".join(f"{k}={v}\0" for k, v in words.items())
        async with self.listening(device) as (source, sink, _):
            assert source._socket is not None
            taken: list[Uevent] = []
            source.handle = taken.append  # type: ignore[method-assign]
            port, _ = source._socket.getsockname()
            with socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT
            ) as forger:
                assert forger.sendto(text.encode(), (0, 1)) == len(text)
                assert forger.sendto(text.encode(), (port, 0)) == len(text)
            # A true one behind the forged ones: when it is heard, they have been read.
            Path(f"/sys/block/{device}/uevent").write_text("change")
            await until(lambda: [event for event in taken if event.name == device])
        (found,) = [event for event in taken if event.name == device]
        assert found.action == "change"
        assert sink.events == []


class TestVzEvent:
    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[VzEventSource, Collected, list]]:
        """On the uevents' protocol, which has the same form, the same sender, and exists here."""
        sink, looks = Collected(), []
        source = VzEventSource(sink, lambda: looks.append(1), NETLINK_KOBJECT_UEVENT)
        await source.start()
        assert source.status.state == "ok", source.status.detail
        try:
            yield source, sink, looks
        finally:
            await source.stop()

    async def test_where_the_kernel_does_not_know_it_it_says_so(self) -> None:
        source = VzEventSource(Collected(), lambda: None)
        await source.start()
        if not Path("/proc/vz").exists():
            assert source.status.state == "unavailable"
            assert source.status.detail == "this is no Virtuozzo kernel"
        await source.stop()

    async def test_an_event_of_another_process_is_not_believed(self) -> None:
        async with self.listening() as (source, _, looks):
            taken: list[bytes] = []
            handle = source.handle
            source.handle = lambda data: (taken.append(data), handle(data))  # type: ignore[method-assign]
            with socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT
            ) as forger:
                forger.sendto(b"ve-start@101", (0, 1))
            Path("/sys/block/loop0/uevent").write_text("change")
            await until(lambda: any(b"loop0" in data for data in taken))
        assert not any(data.startswith(b"ve-start") for data in taken)
        assert looks == []

    async def test_after_a_flood_it_says_so_looks_again_and_goes_on(self) -> None:
        async with self.listening() as (source, sink, looks):
            assert source._socket is not None
            source._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(500):
                Path("/sys/block/loop0/uevent").write_text("change")
            await until(lambda: sink.losses)
            assert looks
            taken: list[bytes] = []
            source.handle = taken.append  # type: ignore[method-assign]
            Path("/sys/block/loop0/uevent").write_text("change")
            await until(lambda: taken)
        assert source.status.lost >= 1


async def test_the_health_monitor_listens_or_says_why_not(work) -> None:
    _, device = mounted(work, "xfs", 400 << 20)
    inventory, sink = Inventory([]), Collected()
    source = XfsHealthSource(sink)
    await source.start()
    inventory.subscribe(on_superblock=source.watch)
    try:
        await superblock_on(inventory, device)
        if tuple(map(int, os.uname().release.split(".")[:2])) >= (7, 0):
            assert source.status.state == "ok"
            assert source.status.detail != "no XFS was seen yet"
        else:
            assert source.status.state == "unavailable"
            assert "Linux 7.0" in source.status.detail
    finally:
        await source.stop()
        await inventory.close()
    assert sink.events == []
