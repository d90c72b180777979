"""The classic way: stop, check in place with an undo file, start."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.kernel import block, cgroup, loop
from tests.system import rules


def start(daemon, *ves, **config) -> None:
    daemon.configure(**({"rules": rules.repair("offline")} | config))
    for ve in ves:
        ve.declare()
        ve.start()
    daemon.start()
    daemon.wait_until_known(*(ve.name for ve in ves))


def test_damage_is_repaired_in_place_and_the_undo_file_kept(daemon, make_ve, work) -> None:
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    assert [path.name for path in ve.image.parent.iterdir()] == [ve.image.name]
    assert list((work / "state" / "undo").iterdir())


def test_what_e2fsck_cannot_cure_is_put_back_bit_by_bit(daemon, make_ve) -> None:
    """A feature from the future: e2fsck refuses, and the VE gets back what it had."""
    ve = make_ve()
    start(daemon, ve, more='[repair]\nstart_timeout = "1s"\n')
    before = ve.inode
    ve.overwrite(1024 + 0x60, (0x80000242).to_bytes(4, "little"))
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("test")
    incident = daemon.wait_for_incident("needs-operator", "closed", timeout_s=120)
    assert incident["state"] == "needs-operator", daemon.why(incident["id"])
    assert ve.image.exists()
    assert ve.inode == before
    assert "what it was before" in incident["steps"][0]["detail"]
    assert [path.name for path in ve.image.parent.iterdir()] == [ve.image.name]


def test_a_ve_is_not_stopped_while_its_volume_could_not_be_unmounted(daemon, make_ve) -> None:
    """Somebody outside the VE holds a file of it open: the superblock would outlive the VE."""
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    (init, *_) = cgroup.pids(ve.cgroup)
    with open(f"/proc/{init}/root/data/000/file-000000", "rb"):
        ve.damage_directory()
        incident = daemon.wait_for_incident("waiting")
        assert f"(pid {os.getpid()}) has /data/000/file-000000 open" in daemon.why(incident["id"])
        assert ve.wait_for_write()
        assert init in cgroup.pids(ve.cgroup)
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=90)
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.lost() == ([], [])


def test_a_volume_that_stays_in_use_after_the_stop_is_not_checked(daemon, make_ve) -> None:
    """What holds a file of it is nobody's whom one could see: the superblock outlives the VE.

    The VE is not started beside it: its image would be mounted a second time.
    """
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    (init, *_) = cgroup.pids(ve.cgroup)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with open(f"/proc/{init}/root/data/000/file-000000", "rb") as held:
            socket.send_fds(ours, [b"x"], [held.fileno()])  # on its way, in no process
        ve.damage_directory()
        incident = daemon.wait_for_incident("needs-operator", timeout_s=90)
        assert len(loop.holders(*before)) == 1
        assert cgroup.pids(ve.cgroup) == []
    assert "still mounted" in incident["steps"][0]["detail"]
    assert "left stopped" in incident["steps"][0]["detail"]
    assert ve.inode == before


def test_repair_by_hand_of_a_healthy_ve_stops_nobody(daemon, make_ve) -> None:
    ve = make_ve()
    daemon.configure(mode="observe")
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    before = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed")
    assert incident["outcome"] == "false-alarm"
    assert ve.inode == before
    assert ve.record.read_errors == []


def test_writes_that_nobody_counts_are_not_taken_for_none(work) -> None:
    image = work / "image"
    image.write_bytes(bytes(1 << 20))
    fd = os.open(image, os.O_RDWR)
    device, held = loop.attach(fd, autoclear=True)
    os.close(fd)
    devno = Devno.of(os.stat(device).st_rdev)
    try:
        Path(f"/sys/block/{os.path.basename(device)}/queue/iostats").write_text("0")
        assert block.sectors_written(devno) is None
        block.count_writes(devno)
        before = block.sectors_written(devno)
        assert before is not None
        os.pwrite(held, b"x" * 4096, 0)
        os.fsync(held)
        assert block.sectors_written(devno) == before + 8
    finally:
        block.count_writes(devno)
        os.close(held)
