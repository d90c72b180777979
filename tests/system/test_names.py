"""Names that a tenant may give to what the kernel shows in lines: cgroups and mount points."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import NamespaceKey
from fswatchd.inventory.scan import MountinfoScanner
from fswatchd.kernel import cgroup, mountinfo, proc
from fswatchd.platforms import scope
from fswatchd.platforms.every import EveryPlatform
from tests.system.conftest import wait_until

# Whatever ends a line for Python, but for the newline, and a byte that is no UTF-8.
ODD = os.fsdecode(b"-a\rb\x0bc\x0cd\x1ce\xc2\x85f\xe2\x80\xa8g\xff")
MOUNTS = (
    'mount -t tmpfs none "$1" && mkdir "$1/$2" && mount -t tmpfs none "$1/$2" && exec sleep 1000'
)


@pytest.fixture
def tenant(work: Path) -> Iterator[int]:
    """A process in a cgroup of such a name, in a mount namespace with a mount of such a name."""
    directory = cgroup.hierarchies()[0] / f"{work.name}{ODD}"
    directory.mkdir()
    inside = ["unshare", "-m", "--propagation", "private", "sh", "-c", MOUNTS, "-", str(work), ODD]
    child = subprocess.Popen(inside)
    try:
        (directory / "cgroup.procs").write_text(str(child.pid))
        wait_until(lambda: proc.command_name(child.pid) == "sleep")
        yield child.pid
    finally:
        child.kill()
        child.wait()
        with suppress(OSError):
            directory.rmdir()


def test_the_cgroup_of_a_process_is_what_it_is(work: Path, tenant: int) -> None:
    group = f"/{work.name}{ODD}"
    assert proc.cgroups(tenant)[""] == group
    assert cgroup.pids(group) == [tenant]


async def test_nobody_is_lost_to_every_driver(work: Path, tenant: int) -> None:
    every = EveryPlatform([work / "ve.d"])
    inventory = Inventory(every.drivers, unclaimed=scope.describe, unlisted=scope.unlisted)
    try:
        await inventory.refresh(forget=True)
        inventory.watch_directories()
        assert not [text for text in inventory.problems.values() if "Error(" in text]
    finally:
        for asked in every.asked:
            await asked.close()
        await inventory.close()


def test_the_mounts_beside_it_are_still_seen_without_statmount(work: Path, tenant: int) -> None:
    found = {mount.point for mount in mountinfo.read(tenant)}
    assert {str(work), f"{work}/{ODD}", "/"} <= found
    scanner = MountinfoScanner()
    namespace = NamespaceKey(proc.mount_namespace_inode(tenant) or 0)
    assert "/" in {place.mount.point for place in scanner.scan()[namespace]}
    assert scanner.unread() == ""
