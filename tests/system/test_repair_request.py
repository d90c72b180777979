"""What a person asks to be repaired is what is repaired."""

from __future__ import annotations

from pathlib import Path

from fswatchd.kernel import cgroup
from tests.system import rules
from tests.system.conftest import wait_until

# fs/ext4/ext4.h: s_checksum is the last field.
_SUPERBLOCK_CHECKSUM = 1024 + 0x3FC


def damage_superblock(path: Path) -> None:
    with path.open("r+b") as image:
        image.seek(_SUPERBLOCK_CHECKSUM)
        image.write(b"\xff\x00\xff\x00")


def test_two_stopped_ves_are_two_incidents(daemon, make_ve) -> None:
    """An open incident of one stopped VE is not what a request for another one finds."""
    first, second = make_ve(before={"start": "exit 1"}), make_ve("ve102")
    daemon.configure(rules=rules.repair(), more='[repair]\nstart_timeout = "1s"\n')
    for ve in (first, second):
        ve.declare()
        damage_superblock(ve.image)
    daemon.start()
    wait_until(lambda: len(daemon.status()["ves"]) >= 2, what="both to be known")
    daemon.client.post("/v1/repair", {"target": "ve101"})
    one = daemon.wait_for_incident("needs-operator")
    before = first.inode
    answer = daemon.client.post("/v1/repair", {"target": "ve102"})
    assert answer["id"] != one["id"]
    wait_until(lambda: cgroup.pids(second.cgroup), what="ve102 to be started")
    two = daemon.wait_for_incident("verifying", "closed", "needs-operator", ve="ve102")
    assert two["ves"] == ["declared:ve102"], daemon.why(two["id"])
    assert [i["id"] for i in daemon.incidents("ve101")] == [one["id"]]
    assert first.inode == before
    assert cgroup.pids(first.cgroup) == []
    again = daemon.client.post("/v1/repair", {"target": "ve101"})
    assert again["id"] == one["id"]


def test_what_the_freeze_writes_anew_stops_no_ve(daemon, make_ve) -> None:
    """A superblock that is damaged on the disk only: the kernel has a good one, and writes it."""
    ve = make_ve(quiet=True)
    daemon.configure(rules=rules.repair())
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    before, processes = ve.inode, cgroup.pids(ve.cgroup)
    damage_superblock(ve.image)
    assert not daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})["clean"]
    incident = daemon.client.post("/v1/repair", {"target": "ve101"})
    ended = daemon.wait_for_incident("closed", "needs-operator")
    assert (ended["id"], ended["outcome"]) == (incident["id"], "false-alarm")
    assert "written anew" in daemon.why(ended["id"])
    assert (ve.inode, cgroup.pids(ve.cgroup)) == (before, processes)
    assert ve.ask("manifest")
