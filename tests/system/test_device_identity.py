"""A volume on a device is checked only while the device holds what the incident was about."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.inventory.model import Backing, NamespaceKey, NamespaceMount, Superblock, Ve, VeId
from fswatchd.kernel import block, extfs, loop, proc
from fswatchd.kernel.mounts import Mount
from fswatchd.repair import ve_control
from fswatchd.repair.device import DeviceIdentity
from fswatchd.repair.offline import Hold
from fswatchd.repair.scope import Target
from fswatchd.steps import StepEnded
from tests.unit.builders import filesystem

OURS = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def make_device(work: Path) -> Iterator[Callable[[str], str]]:
    """Block devices with an ext4 of the UUID."""
    held: list[int] = []

    def make(uuid: str) -> str:
        image = work / f"{len(held)}-{uuid[:4]}.img"
        with image.open("xb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mke2fs", "-q", "-U", uuid, image], check=True, capture_output=True)
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        device, device_fd = loop.attach(fd, autoclear=True)
        os.close(fd)
        held.append(device_fd)
        return device

    yield make
    for fd in held:
        os.close(fd)


def identity_of(device: str) -> DeviceIdentity:
    fd = os.open(device, os.O_RDONLY)
    try:
        sequence, uuid = block.disk_sequence_of(fd), extfs.uuid_of(fd)
    finally:
        os.close(fd)
    return DeviceIdentity(boot=proc.boot_id(), disk_sequence=sequence, uuid=uuid)


def target(device: str, identity: DeviceIdentity | None) -> Target:
    ve = Ve(
        ve_id=VeId("declared:x"),
        platform="declared",
        native_id="x",
        name="x",
        state=VeState.STOPPED,
    )
    return Target(
        filesystem=filesystem(),
        ve=ve,
        superblock=None,
        image=None,
        device=device,
        identity=identity,
    )


def digest(device: str) -> str:
    with open(device, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_the_device_of_the_incident_is_taken(make_device) -> None:
    device = make_device(OURS)
    identity = identity_of(device)
    assert identity.uuid == OURS
    assert identity.disk_sequence == block.disk_sequence(Devno.of(os.stat(device).st_rdev))
    hold = await Hold.take(target(device, identity), "20261121-abcde")
    assert hold.device not in {"", device}
    assert block.is_claimed(device), "nobody can mount it, wherever it would be shown"
    with open(hold.device, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # udev leaves alone what is locked
    await hold.release(in_place=True)
    assert not block.is_claimed(device)


async def test_after_a_boot_the_uuid_is_enough(make_device) -> None:
    device = make_device(OURS)
    identity = replace(identity_of(device), boot="another", disk_sequence=1)
    hold = await Hold.take(target(device, identity), "20261121-abcde")
    await hold.release(in_place=True)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"disk_sequence": 1}, "given to another disk"),
        ({"uuid": OTHER}, f"holds {OURS}"),
        ({"boot": "another", "disk_sequence": 1, "uuid": OTHER}, f"holds {OURS}"),
        ({"uuid": None}, "UUID is not known"),
        (None, "nothing is recorded"),
    ],
    ids=["reused", "another-filesystem", "another-boot", "unknown", "old-journal"],
)
async def test_another_disk_under_its_name_is_not_touched(make_device, known, why: str) -> None:
    device = make_device(OURS)
    before = digest(device)
    identity = replace(identity_of(device), **known) if known else None
    with pytest.raises(StepEnded, match=why):
        await Hold.take(target(device, identity), "20261121-abcde")
    assert digest(device) == before
    assert not block.is_claimed(device)


async def test_a_device_without_a_filesystem_is_not_touched(make_device) -> None:
    device = make_device(OURS)
    identity = identity_of(device)
    with open(device, "r+b") as file:
        file.write(bytes(4096))
    with pytest.raises(StepEnded, match="no filesystem that is known"):
        await Hold.take(target(device, identity), "20261121-abcde")


async def test_a_device_that_went_with_its_ve_holds_nothing(make_device) -> None:
    """Also not when its number, in use again, is another disk's by now."""
    device = make_device(OURS)
    devno = Devno.of(os.stat(device).st_rdev)
    claimed = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        now = block.disk_sequence(devno)
        assert await ve_control.wait_released(mounted(devno, now), None, 0) is not None
        assert await ve_control.wait_released(mounted(devno, 1), None, 0) is None
    finally:
        os.close(claimed)


def mounted(devno: Devno, sequence: int | None) -> Superblock:
    name = block.name_of(devno) or ""
    mount = Mount(
        mount_id=1,
        devno=devno,
        fstype="ext4",
        root="/",
        point="/",
        source="",
        superblock_options=(),
        superblock_readonly=False,
        readonly=False,
    )
    return Superblock(
        devno=devno,
        fstype="ext4",
        device=name,
        disk_sequence=sequence,
        mounts=(NamespaceMount(namespace=NamespaceKey(1), mount=mount),),
        backing=Backing(kind="device"),
    )
