"""Thin pools and project quotas beneath a filesystem, by what dmsetup and statfs(2) say."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd import process
from fswatchd.cause import Layer, blame, fault_of_device
from fswatchd.devno import Devno
from fswatchd.engine.substrate import Substrate
from fswatchd.events import EventClass
from fswatchd.inventory.model import Backing, BlockDevice
from fswatchd.kernel import block
from tests.unit.inventory.test_lookup import NODE, superblock, view

POOL = BlockDevice(devno=Devno(253, 3), name="dm-3", kind="dm")
LAYER = Layer(kind="device", name="/dev/dm-3")
OPTIONS = "discard_passdown queue_if_no_space"


class Dmsetup:
    """Answers as dmsetup does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: str, *, uuid: str) -> None:
        self.output, self.code, self.timed_out = output, 0, False
        self.asked: list[tuple[str, ...]] = []
        monkeypatch.setattr(process, "run", self.run)
        monkeypatch.setattr(block, "attribute", lambda *_: uuid)

    async def run(self, argv: tuple[str, ...], **_: Any) -> process.Completed:
        self.asked.append(argv)
        return process.Completed(
            argv=argv,
            returncode=self.code,
            output=self.output,
            duration_s=0.0,
            timed_out=self.timed_out,
        )


def looked() -> Substrate:
    nothing: Any = None
    return Substrate(nothing, nothing, nothing)


async def test_a_pool_without_room_is_to_blame_for_want_of_space(monkeypatch) -> None:
    status = f"0 409600 thin-pool 1 12/1024 3199/3200 - rw {OPTIONS} - 256\n"
    dmsetup = Dmsetup(monkeypatch, status, uuid="LVM-abc-tpool")
    looks = looked()
    cause = blame([await looks._as_pool(POOL, LAYER)])
    assert cause is not None
    assert (cause.kind, cause.name) == ("space", "/dev/dm-3")
    assert dmsetup.asked == [("dmsetup", "status", "--noflush", "-j", "253", "-m", "3")]
    await looks._as_pool(POOL, LAYER)
    assert len(dmsetup.asked) == 1


async def test_a_pool_that_has_failed_is_to_blame_itself(monkeypatch) -> None:
    Dmsetup(monkeypatch, "0 409600 thin-pool Fail\n", uuid="")
    cause = blame([await looked()._as_pool(POOL, LAYER)])
    assert cause is not None
    assert cause.kind == "device"


@pytest.mark.parametrize(
    ("output", "code"), [(f"0 8 thin-pool 1 12/1024 10/3200 - rw {OPTIONS}", 0), ("", 1), ("x", 0)]
)
async def test_a_pool_with_room_and_no_answer_blame_nothing(
    monkeypatch, output: str, code: int
) -> None:
    dmsetup = Dmsetup(monkeypatch, output, uuid="LVM-abc-tpool")
    dmsetup.code = code
    assert blame([await looked()._as_pool(POOL, LAYER)]) is None


@pytest.mark.parametrize("uuid", ["LVM-abc", "CRYPT-LUKS2-x", "mpath-3600"])
async def test_what_can_be_no_pool_is_not_asked_about(monkeypatch, uuid: str) -> None:
    dmsetup = Dmsetup(monkeypatch, "", uuid=uuid)
    assert await looked()._as_pool(POOL, LAYER) == LAYER
    assert dmsetup.asked == []


PATHS = "0 409600 multipath 2 0 0 0 1 1 A 0 2 0 8:16 {} 0 8:32 {} 1\n"


@pytest.mark.parametrize(
    ("states", "failed", "fault"),
    [("AA", 0, None), ("AF", 1, None), ("FF", 2, EventClass.DEVICE_LOST)],
)
async def test_a_device_is_to_blame_without_any_path_and_not_without_one_of_two(
    monkeypatch: pytest.MonkeyPatch, states: str, failed: int, fault: EventClass | None
) -> None:
    dmsetup = Dmsetup(monkeypatch, PATHS.format(*states), uuid="mpath-3600")
    looks = looked()
    layer = await looks._with_paths(POOL, LAYER)
    assert layer.failed_paths == failed
    assert fault_of_device(layer) is fault
    assert (blame([layer]) is None) is (fault is None)
    await looks._with_paths(POOL, LAYER)
    assert len(dmsetup.asked) == 1


@pytest.mark.parametrize(("states", "well"), [("AA", True), ("AF", False), ("FF", False)])
async def test_a_device_has_recovered_when_all_of_its_paths_are_back(
    monkeypatch: pytest.MonkeyPatch, states: str, *, well: bool
) -> None:
    Dmsetup(monkeypatch, PATHS.format(*states), uuid="mpath-3600")
    looks = looked()

    async def found(device: BlockDevice) -> Layer:
        return await looks._with_paths(device, LAYER)

    monkeypatch.setattr(looks, "_device", found)
    assert (await looks.device_fault(POOL) is None) is well


@pytest.mark.parametrize("uuid", ["LVM-abc-tpool", "CRYPT-LUKS2-x", ""])
async def test_what_has_no_paths_is_not_asked_about_them(
    monkeypatch: pytest.MonkeyPatch, uuid: str
) -> None:
    dmsetup = Dmsetup(monkeypatch, PATHS.format("A", "F"), uuid=uuid)
    assert await looked()._with_paths(POOL, LAYER) == LAYER
    assert dmsetup.asked == []


class Host:
    """The XFS that holds ve101's image, in a directory that may have a quota."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **directory: int) -> None:
        self.whole = SimpleNamespace(
            f_frsize=4096, f_blocks=1 << 20, f_bavail=1 << 19, f_files=1000, f_favail=900
        )
        room = SimpleNamespace(**(vars(self.whole) | directory))
        monkeypatch.setattr(os, "fstatvfs", lambda _: self.whole)
        monkeypatch.setattr(os, "statvfs", lambda path: room if path == "/vz/private" else None)
        self.view = view(superblocks=(replace(superblock(0, (NODE, "/vz")), fstype="xfs"),))

    @asynccontextmanager
    async def opened(self, _: object) -> AsyncIterator[int]:
        yield 0

    async def look(self) -> Layer | None:
        image = {"image": "/vz/private/ve101.raw", "image_devno": Devno(7, 0), "image_inode": 5}
        device = BlockDevice(
            devno=Devno(7, 1), name="loop1", kind="loop", backing=Backing(kind="loop", **image)
        )
        inventory: Any = self
        return await Substrate(inventory, inventory, inventory)._quota(device)


async def test_a_quota_that_is_used_up_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 50 MiB, as statfs(2) of a directory with a project shows it."""
    layer = await Host(monkeypatch, f_blocks=12800, f_bavail=0).look()
    assert layer is not None
    cause = blame([layer])
    assert cause is not None
    assert (cause.kind, cause.name) == ("space", "the quota of /vz/private")


async def test_a_quota_with_room_blames_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = await Host(monkeypatch, f_blocks=128000, f_bavail=64000).look()
    assert layer is not None
    assert blame([layer]) is None


async def test_a_directory_without_a_quota_is_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await Host(monkeypatch).look() is None
