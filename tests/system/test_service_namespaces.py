"""Services with mount namespaces of their own have copies of all that the node mounts for VEs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory import inventory as inventories
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.scan import MountinfoScanner, StatmountScanner
from fswatchd.inventory.view import Users
from fswatchd.kernel import loop, mounts
from fswatchd.platforms.declared import DeclaredPlatform
from tests.system.conftest import wait_until


@contextmanager
def service(propagation: str, script: str) -> Iterator[None]:
    """A process in a mount namespace of its own."""
    argv = ["unshare", "-m", "--propagation", propagation, "sh", "-c"]
    argv.append(f"{script} echo; exec sleep 1000")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"\n"
            yield
        finally:
            started.kill()


async def users(work: Path, point: Path, scanner: type) -> Users:
    seen = Inventory([DeclaredPlatform([work / "ve.d"])])
    assert isinstance(seen._reader.scanner, scanner)
    try:
        await seen.refresh()
        return seen.view.users[Devno.of(os.stat(point).st_dev)]
    finally:
        await seen.close()


@pytest.mark.parametrize("scanner", [StatmountScanner, MountinfoScanner])
@pytest.mark.parametrize(
    ("propagation", "after", "own"),
    [
        ("slave", "", True),
        ("unchanged", "", True),
        ("private", "", False),  # it keeps its copy when the node unmounts its own
        ("slave", "mount --make-rprivate {0.parent};", False),
        ("slave", "mkdir {0.parent.parent}/b; mount --bind {0} {0.parent.parent}/b;", False),
    ],
)
async def test_a_copy_that_goes_with_the_nodes_mount_is_nobodys_use(
    work: Path,
    node_mounted: Path,
    monkeypatch: pytest.MonkeyPatch,
    scanner: type,
    propagation: str,
    after: str,
    *,
    own: bool,
) -> None:
    if scanner is StatmountScanner and not mounts.supported():
        pytest.skip("needs statmount (Linux 6.8)")
    monkeypatch.setattr(inventories, "best_scanner", scanner)
    with service(propagation, after.format(node_mounted)):
        found = await users(work, node_mounted, scanner)
        assert found.ves == ("declared:ve101",)
        assert (found.foreign == ()) is own
        # What is claimed of the kernel here.
        subprocess.run(["umount", node_mounted], check=True)
        if own:
            wait_until(lambda: not attached(work), 10, "the image is released")
        else:
            assert attached(work)
    wait_until(lambda: not attached(work), 10, "nothing is left")


def attached(work: Path) -> list[str]:
    """The loop devices that show the VE's image."""
    status = (work / "ve101.img").stat()
    return loop.holders(Devno.of(status.st_dev), status.st_ino)
