"""Lines of xfs_healer, laid out as in the comment at the head of its event reporting (xfsprogs 7.2,
healer/), and what a tenant's file names can make of them."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.events import EventClass
from fswatchd.kernel import mountinfo, proc, xfs_health
from fswatchd.sources import xfs_healer
from fswatchd.sources import xfs_health as xfs_health_source
from fswatchd.sources.xfs_health import XfsHealthSource
from tests.collected import Collected
from tests.unit.inventory.test_lookup import superblock

UNIT = "xfs_healer@srv-vz.service"


@pytest.mark.parametrize(
    ("line", "klass"),
    [
        ("/srv/vz agno 0x5 bnobt, rmapbt: sick", "corruption"),
        ("/srv/vz ino 13 gen 0x3 bmbtd: corrupt", "corruption"),
        ("/srv/vz/private/a bmbtd: sick", "corruption"),
        ("/srv/vz ino 13 gen 0x3 pos 4096 len 4096: directio_write failed", "io_error"),
        ("/srv/vz datadev daddr 0x13 bbcount 0x5: media error", "io_error"),
        (
            "/srv/vz: filesystem shut down due to log I/O error, ondisk metadata corruption",
            "shutdown",
        ),
        (
            "/srv/vz ino 13 gen 0x3 directory: Repair unsuccessful; offline repair required.",
            "corruption",
        ),
        (
            "/srv/vz: Seems correct but cross-referencing failed; offline repair recommended.",
            "corruption",
        ),
        ("/srv/vz/x: healthy bmbtd: sick", "corruption"),
    ],
)
def test_what_is_wrong(line: str, klass: str) -> None:
    found = xfs_healer.read(UNIT, line)
    assert found is not None
    assert (found.mountpoint, found.klass) == ("/srv/vz", EventClass(klass))


@pytest.mark.parametrize(
    "line",
    [
        "/srv/vz: monitoring started",
        "/srv/vz: filesystem unmounted",
        "/srv/vz agno 0x5 bnobt: healthy",
        "/srv/vz ino 13 gen 0x3 directory: Repairs successful.",
        "/srv/vz: Full repairs in progress.",
        "/srv/vz/is: sick/name bmbtd: healthy",
        "/other agno 0x5 bnobt: sick",
        "Automatically repairing per autofsck directive.",
        "",
    ],
)
def test_what_is_nothing(line: str) -> None:
    assert xfs_healer.read(UNIT, line) is None


def test_events_that_it_has_lost_are_counted() -> None:
    found = xfs_healer.read(UNIT, "/srv/vz: 32 events lost")
    assert found is not None
    assert (found.klass, found.lost) == (EventClass.LOST, 32)


@pytest.mark.parametrize("unit", ["ssh.service", "xfs_healer_start.service", "x_healer@a.service"])
def test_nobody_else_is_listened_to(unit: str) -> None:
    assert xfs_healer.read(unit, "/srv/vz agno 0x5 bnobt: sick") is None


@pytest.mark.parametrize(
    ("instance", "path"),
    [("srv-vz", "/srv/vz"), ("-", "/"), (r"srv-a\x2db\x20c", "/srv/a-b c"), (r"\xc3\xa9", "/é")],
)
def test_the_instance_is_the_mount_point(instance: str, path: str) -> None:
    """As systemd-escape(1) makes it."""
    found = xfs_healer.read(f"xfs_healer@{instance}.service", f"{path} agno 0x5 bnobt: sick")
    assert found is not None
    assert found.mountpoint == path


@given(st.text(), st.text())
def test_no_line_makes_it_fail(instance: str, line: str) -> None:
    xfs_healer.read(f"xfs_healer@{instance}.service", line)


XFS = replace(superblock(3, (4711, "/")), fstype="xfs")
"""As it was seen first: where a service has it, not where the node has."""


def on_the_node(monkeypatch: pytest.MonkeyPatch, point: str = "/srv/vz", root: str = "/") -> None:
    """The node has mounted it there now."""
    mount = replace(XFS.mounts[0].mount, devno=XFS.devno, point=point, root=root)
    monkeypatch.setattr(mountinfo, "read", lambda _: [mount])


async def heard(monkeypatch: pytest.MonkeyPatch, tmp_path, number: int) -> Collected:
    """What a source whose XFS answers so to XFS_IOC_HEALTH_MONITOR makes of a line."""

    def refused(_root: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(xfs_health, "monitor", refused)
    sink = Collected()
    source = XfsHealthSource(sink)
    await source.start()
    directory = os.open(tmp_path, os.O_PATH)
    source.watch(XFS, directory)
    os.close(directory)
    for line in ("/srv/vz agno 0x5 bnobt: sick", "/srv/vz: 32 events lost"):
        found = xfs_healer.read(UNIT, line)
        assert found is not None
        source.healer_says(found)
    await source.stop()
    return sink


async def test_its_word_is_an_event_that_confirms_nothing(monkeypatch, tmp_path) -> None:
    on_the_node(monkeypatch)
    sink = await heard(monkeypatch, tmp_path, errno.EEXIST)
    (event,) = sink.events
    assert (event.device, event.klass, event.confirms) == ("loop3", EventClass.CORRUPTION, False)
    assert [loss.count for loss in sink.losses] == [32]


@pytest.mark.parametrize(("point", "root"), [("/srv/vz/a", "/"), ("/srv/vz", "/a")])
async def test_another_mount_is_not_meant(monkeypatch, tmp_path, point: str, root: str) -> None:
    on_the_node(monkeypatch, point, root)
    sink = await heard(monkeypatch, tmp_path, errno.EEXIST)
    assert sink.events == sink.losses == []


@pytest.mark.parametrize(("of_the_node", "heard_of"), [(True, 1), (False, 0)])
async def test_what_is_unmounted_by_now_is_meant_by_where_the_node_had_it(
    monkeypatch, tmp_path, of_the_node: bool, heard_of: int
) -> None:
    """And not by where a VE has something at a path of that name."""
    monkeypatch.setattr(mountinfo, "read", lambda _: [])
    node = proc.mount_namespace_inode("self") or 0
    place = (node if of_the_node else node + 1, "/srv/vz")
    monkeypatch.setitem(globals(), "XFS", replace(superblock(3, place), fstype="xfs"))
    sink = await heard(monkeypatch, tmp_path, errno.EEXIST)
    assert len(sink.events) == len(sink.losses) == heard_of


async def test_who_finds_us_at_its_filesystem_gets_it(monkeypatch, tmp_path) -> None:
    on_the_node(monkeypatch)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    monkeypatch.setattr(xfs_health, "monitor", lambda _: reader)
    monkeypatch.setattr(xfs_health_source, "is_started_for_all", lambda: False)
    source = XfsHealthSource(Collected())
    await source.start()
    directory = os.open(tmp_path, os.O_PATH)
    source.watch(XFS, directory)
    os.close(directory)
    for line, ours in (
        ("/srv/other: XFS health monitoring already running.", True),
        ("/srv/vz a/file: XFS health monitoring already running.", True),
        ("/srv/vz: XFS health monitoring already running.", False),
    ):
        found = xfs_healer.read(UNIT.replace("vz", "other") if "other" in line else UNIT, line)
        if found is not None:
            source.healer_says(found)
        assert source.status.detail.startswith("1 filesystems") is ours
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")  # the monitor is closed
    assert "start it again" in source.status.detail
    os.close(writer)
    await source.stop()


@pytest.mark.parametrize(("healed", "whole"), [(True, True), (True, False), (False, True)])
async def test_what_gets_a_healer_is_left_to_it(
    monkeypatch, tmp_path, healed: bool, whole: bool
) -> None:
    on_the_node(monkeypatch, root="/" if whole else "/a")
    asked: list[int] = []

    def monitor(root: int) -> int:
        asked.append(root)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(xfs_health, "monitor", monitor)
    monkeypatch.setattr(xfs_health_source, "is_started_for_all", lambda: healed)
    source = XfsHealthSource(Collected())
    await source.start()
    directory = os.open(tmp_path, os.O_PATH)
    source.watch(XFS, directory)
    os.close(directory)
    assert bool(asked) is not (healed and whole)
    assert ("left to xfs_healer" in source.status.detail) is (healed and whole)
    await source.stop()


@pytest.mark.parametrize("of_the_node", [True, False])
def test_a_starter_is_one_of_the_nodes_processes(monkeypatch, of_the_node: bool) -> None:
    # The kernel keeps the first 15 bytes of a name (TASK_COMM_LEN).
    monkeypatch.setattr(proc, "command_name", lambda pid: "xfs_healer_star" if pid == 7 else "sh")
    monkeypatch.setattr(proc, "pids", lambda: iter([1, 7]))
    monkeypatch.setattr(proc, "is_of_the_node", lambda pid: pid == 7 and of_the_node)
    assert xfs_healer.is_started_for_all() is of_the_node
