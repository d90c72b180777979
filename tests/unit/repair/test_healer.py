"""An XFS that xfs_healer watches is left to it, for its time and no longer."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.kernel import proc
from fswatchd.repair import healer
from fswatchd.sources import xfs_healer
from fswatchd.steps import Next

POINT = "/fswatchd-test/ve101"
NS = 1_000_000_000


def superblock(fstype: str = "xfs", point: str = POINT, namespace: int | None = None) -> Any:
    mine = proc.mount_namespace_inode("self") if namespace is None else namespace
    place = SimpleNamespace(namespace=mine, mount=SimpleNamespace(point=point))
    return SimpleNamespace(fstype=fstype, device="loop7", mounts=(place,))


def context(*story: str, age_s: float = 1.0) -> Any:
    opened_ns = time.time_ns() - int(age_s * NS)
    log = tuple((opened_ns, text) for text in story)
    return SimpleNamespace(incident=SimpleNamespace(opened_ns=opened_ns, log=log))


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> int:
    """This process, as if it were the healer of the mount point and root's."""
    mine, name, words = os.getpid(), proc.command_name, proc.arguments
    monkeypatch.setattr(
        proc, "command_name", lambda pid: "xfs_healer" if pid == mine else name(pid)
    )
    monkeypatch.setattr(
        proc, "arguments", lambda pid: ["xfs_healer", POINT] if pid == mine else words(pid)
    )
    monkeypatch.setattr(proc, "user", lambda pid: 0 if pid == mine else 1000)
    return mine


def test_it_is_left_to_the_healer(running: int) -> None:
    assert healer.watching(superblock()) == running
    ending = healer.stand_back(context(), superblock())
    assert ending is not None
    assert ending.result.next is Next.WAIT
    assert f"process {running}" in ending.result.detail
    assert healer.has_healed(context(f"waits: {ending.result.detail}"))


@pytest.mark.parametrize(
    "found",
    [
        superblock("ext4"),
        superblock(point="/elsewhere"),
        superblock(namespace=1),
    ],
    ids=["ext4", "another place", "another namespace"],
)
def test_not_what_it_does_not_watch(running: int, found: Any) -> None:
    assert healer.stand_back(context(), found) is None


def test_not_where_nobody_watches() -> None:
    assert healer.stand_back(context(), superblock()) is None
    assert healer.stand_back(context(), None) is None


def test_not_a_process_of_a_tenant_by_that_name(
    running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "user", lambda _: 1000)
    assert healer.stand_back(context(), superblock()) is None
    monkeypatch.setattr(proc, "user", lambda _: 0)
    monkeypatch.setattr(proc, "is_of_the_node", lambda _: False)
    assert healer.stand_back(context(), superblock()) is None


def test_not_longer_than_its_time(running: int) -> None:
    assert healer.stand_back(context(age_s=299), superblock()) is not None
    assert healer.stand_back(context(age_s=301), superblock()) is None


def test_not_after_it_has_given_up(running: int) -> None:
    line = xfs_healer.read("xfs_healer@mnt.service", "/mnt: offline repair required.")
    assert line is not None
    assert healer.stand_back(context(f"journal: {line.detail}"), superblock()) is None
    healed = xfs_healer.read("xfs_healer@mnt.service", "/mnt: sick")
    assert healed is not None
    assert healer.stand_back(context(f"journal: {healed.detail}"), superblock()) is not None
