"""A filesystem that does not answer hangs nobody who looks for another one."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.helpers.client import Helper
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import namespaces
from fswatchd.kernel.syscalls import mount
from tests.system.ves import mount_new_ext4

_HELPER = "fswatchd.helpers.mounts"


@pytest.fixture
def filesystem(work: Path) -> Path:
    """An ext4, mounted."""
    mount_new_ext4(work / "a.img", work / "a")
    return work / "a"


@pytest.fixture
def silent(filesystem: Path) -> Iterator[int]:
    """A FUSE server, mounted over the ext4, that answers nothing, not even FUSE_INIT."""
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    mount("silent", str(filesystem), "fuse", 0, options)
    yield server
    os.close(server)  # which ends the connection, and so whoever waits
    subprocess.run(["umount", "-l", filesystem], check=True)


def devno_of(point: Path) -> Devno:
    return Devno.of(point.stat().st_dev)


async def ask(helper: Helper, point: Path, devno: Devno, within: str = "/proc/self/ns/mnt") -> None:
    namespace = os.open(within, os.O_RDONLY)
    try:
        message = {"path": str(point), "devno": str(devno)}
        _, fds = await helper.request(message, (namespace,), timeout_s=5)
    finally:
        os.close(namespace)
    for fd in fds:
        os.close(fd)


async def test_what_answers_is_opened(filesystem: Path) -> None:
    helper = Helper(_HELPER)
    try:
        await ask(helper, filesystem, devno_of(filesystem))
    finally:
        await helper.close()


async def test_a_user_namespace_that_has_locked_what_is_mounted_below_hides_nothing(
    filesystem: Path,
) -> None:
    """As systemd-nspawn makes its containers, with users of their own (systemd-nspawn@.service)."""
    (filesystem / "below").mkdir()
    mount("none", str(filesystem / "below"), "tmpfs", 0, None)
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo; read end"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    helper = Helper(_HELPER)
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # the namespace is there
        await ask(helper, filesystem, devno_of(filesystem), f"/proc/{child.pid}/ns/mnt")
    finally:
        await helper.close()
        child.stdin.close()
        child.wait()
        child.stdout.close()
        subprocess.run(["umount", filesystem / "below"], check=True)


async def test_what_does_not_answer_is_seen_to_be_another(
    filesystem: Path, request: pytest.FixtureRequest
) -> None:
    devno = devno_of(filesystem)
    server = request.getfixturevalue("silent")
    helper = Helper(_HELPER)
    try:
        with pytest.raises(OSError, match=f"instead of {devno}"):
            await ask(helper, filesystem, devno)
    finally:
        assert server > 0
        await helper.close(kill=True)


async def test_another_mount_of_it_is_opened_instead(
    filesystem: Path, work: Path, request: pytest.FixtureRequest
) -> None:
    (work / "b").mkdir()
    subprocess.run(["mount", "--bind", filesystem, work / "b"], check=True)
    devno = devno_of(filesystem)
    request.getfixturevalue("silent")
    inventory = Inventory([])
    try:
        await inventory.refresh()
        async with inventory.opened(inventory.view.superblocks[devno]) as fd:
            assert fd > 0
    finally:
        await inventory.close()


def test_who_mounts_or_renames_elsewhere_does_not_make_it_fail(
    filesystem: Path, work: Path
) -> None:
    """As platforms do all the time; a lookup in the cache is given up then."""
    line = "while :; do mv {0}/x {0}/y; mv {0}/y {0}/x; mount --bind {0} {0}; umount {0}; done"
    (work / "busy" / "x").mkdir(parents=True)
    child = subprocess.Popen(["sh", "-c", line.format(work / "busy")], stderr=subprocess.DEVNULL)
    devno = devno_of(filesystem)
    own_proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    try:
        for _ in range(20_000):
            os.close(namespaces.open_mount(str(filesystem), devno, own_proc))
    finally:
        os.close(own_proc)
        child.kill()
        child.wait()
        while subprocess.run(["umount", work / "busy"], capture_output=True).returncode == 0:
            pass


async def test_what_cannot_be_reached_is_not_tried_at_every_look(
    filesystem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devno = devno_of(filesystem)
    mount("none", str(filesystem), "tmpfs", 0, None)
    inventory, tried = Inventory([]), []
    open_it = inventory._open

    async def counted(superblock: Superblock) -> tuple[int, dict[str, Any]]:
        tried.append(superblock.devno)
        return await open_it(superblock)

    monkeypatch.setattr(inventory, "_open", counted)
    try:
        for _ in range(20):
            await inventory.refresh()
        assert 1 <= tried.count(devno) < 15
        subprocess.run(["umount", filesystem], check=True)
        subprocess.run(["mount", "--bind", filesystem, filesystem], check=True)
        async with asyncio.timeout(60):
            while not inventory.view.superblocks[devno].uuid:
                await inventory.refresh()
    finally:
        await inventory.close()
        subprocess.run(["umount", filesystem], check=True)
