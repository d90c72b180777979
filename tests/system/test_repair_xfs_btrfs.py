"""XFS and btrfs on a real kernel: what is cured, and what is left alone and said why."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from fswatchd.drill import inside
from fswatchd.kernel import cgroup
from tests.system import rules
from tests.system.conftest import wait_until
from tests.zoo.btrfs import DAMAGES

XFS_SIZE = 320 << 20
OFFLINE = rules.repair("offline", **{"match.class": '"*"'})


def start(daemon, ve, **config) -> None:
    daemon.configure(**({"rules": rules.repair()} | config))
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)


def xfs_db(device: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["xfs_db", "-r", *words, device], capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def trash_directory(ve) -> None:
    """Random bytes over the block of a directory that nobody has read yet."""
    inode = ve.ask("stat", path="/victim")[0]["inode"]
    place = re.search(r"daddr is (\d+)", xfs_db(ve.device, f"inode {inode}", "dblock 0", "daddr"))
    assert place
    ve.overwrite(int(place[1]) * 512, os.urandom(4096))


def test_a_damaged_xfs_that_still_writes_is_repaired_as_its_preview_says(daemon, make_ve) -> None:
    ve = make_ve(fstype="xfs", size=XFS_SIZE)
    start(daemon, ve)
    trash_directory(ve)
    inode = ve.inode
    seen = daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})
    assert (seen["clean"], seen["curable"]) == (False, True)
    assert ve.inode == inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("verifying", "closed", "needs-operator")
    assert incident["steps"][0]["result"] == "repaired", daemon.why(incident["id"])
    assert ve.inode != inode
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])


def test_damage_that_the_next_mount_would_not_show_is_known_over_a_stop(daemon, make_ve) -> None:
    """XFS keeps no record of errors: whoever forgets what was seen hears of it from a customer."""
    ve = make_ve(fstype="xfs", size=XFS_SIZE)
    start(daemon, ve)
    trash_directory(ve)
    ve.ask("list", path="/victim")
    first = daemon.wait_for_incident("open")
    ve.kill()
    wait_until(lambda: mountpoints_of(daemon) == [], timeout_s=30, what="the mount to be missed")
    ve.start()
    wait_until(lambda: mountpoints_of(daemon) == ["/"], what="it to be found again")
    (known,) = daemon.incidents("ve101")
    assert (known["id"], known["state"]) == (first["id"], "open")
    assert "only a check would tell" in daemon.why(known["id"])
    daemon.client.post("/v1/repair", {"target": "ve101"})
    ended = daemon.wait_for_incident("verifying", "closed", "needs-operator")
    assert ended["steps"][0]["result"] == "repaired", daemon.why(ended["id"])
    assert ended["id"] == first["id"]
    assert ve.wait_for_write()


def mountpoints_of(daemon) -> list[str]:
    (found,) = daemon.incidents("ve101")
    return list(found["filesystem"]["mountpoints"])


def test_a_log_that_cannot_be_replayed_is_for_a_person_and_nothing_is_touched(
    daemon, make_ve
) -> None:
    """What the kernel does not know in the superblock makes it refuse the mount, and so the log."""
    ve = make_ve(fstype="xfs", size=XFS_SIZE)
    start(daemon, ve)
    ve.ask("shutdown")
    wait_until(lambda: ve.record.write_errors, what="the shutdown")
    subprocess.run(
        ["xfs_db", "-x", "-c", "sb 0", "-c", "write -d features_log_incompat 0x40", ve.image],
        check=True,
        capture_output=True,
    )
    before, inode = ve.digest(), ve.inode
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["state"] == "needs-operator"
    text = daemon.why(incident["id"])
    assert "for a person to decide" in text, text
    assert (ve.digest(), ve.inode) == (before, inode)
    assert [path for path in ve.image.parent.iterdir() if path != ve.image] == []


def tear_the_log(image: Path) -> None:
    """Random bytes within the oldest records that count: the kernel does not replay such a log."""
    listed = subprocess.run(["xfs_logprint", "-t", image], capture_output=True, check=False).stdout
    start = re.search(rb"daddr: (\d+) length", listed)
    (tail,) = re.findall(rb"log tail: (\d+) ", listed)
    assert start
    with image.open("r+b") as file:
        for block in range(1, 65):
            file.seek((int(start[1]) + int(tail) + block) * 512)
            file.write(os.urandom(512))


def test_only_a_persons_yes_to_that_very_question_throws_a_log_away(daemon, make_ve) -> None:
    """xfs_repair -L: never by a rule, nor by a request of root, nor by a yes to something else."""
    ve = make_ve(fstype="xfs", size=XFS_SIZE)
    start(daemon, ve, mode="observe")
    wait_until(lambda: len(ve.record.acked) > 200, 60, "much in the log")
    ve.ask("shutdown")
    wait_until(lambda: ve.record.write_errors, what="the shutdown")
    tear_the_log(ve.image)
    before, inode = ve.digest(), ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    asking = daemon.wait_for_incident("waiting", "needs-operator", timeout_s=180)
    assert asking["state"] == "waiting", daemon.why(asking["id"])
    assert asking["steps"][0]["preview"]["last_resort"] == "xfs_repair -L"
    assert "throws the log away" in daemon.why(asking["id"])
    daemon.client.post("/v1/repair", {"target": "ve101"})
    wait_until(lambda: daemon.why(asking["id"]).count("asks: ") == 2, what="the question again")
    assert (ve.digest(), ve.inode) == (before, inode)
    assert cgroup.pids(ve.cgroup)
    daemon.client.post(f"/v1/incidents/{asking['id']}/approve")
    done = daemon.wait_for_incident("verifying", "closed", "needs-operator", timeout_s=180)
    assert done["steps"][0]["result"] == "repaired", daemon.why(done["id"])
    assert ve.inode != inode
    assert ve.wait_for_write()
    kept = next(path for path in ve.image.parent.iterdir() if ".damaged-" in path.name)
    assert digest(kept) == before


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names_beside(ve) -> list[str]:
    return [path.name for path in ve.image.parent.iterdir() if path != ve.image]


def test_a_damaged_xfs_is_repaired_in_place_where_the_rule_says_so(daemon, make_ve) -> None:
    ve = make_ve(fstype="xfs", size=XFS_SIZE)
    start(daemon, ve, rules=OFFLINE)
    trash_directory(ve)
    inode = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("verifying", "closed", "needs-operator", timeout_s=180)
    assert incident["steps"][0]["result"] == "repaired", daemon.why(incident["id"])
    assert (ve.inode, names_beside(ve)) == (inode, [])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])


def test_a_log_that_cannot_be_replayed_is_never_thrown_away_in_place(daemon, make_ve) -> None:
    """Nobody is asked either: nothing could be taken back. The kernel has tried, as at a start."""
    ve = make_ve(fstype="xfs", size=XFS_SIZE)
    more = '[repair]\nstart_timeout = "1s"\n'
    start(daemon, ve, rules=OFFLINE, mode="observe", more=more)
    wait_until(lambda: len(ve.record.acked) > 200, 60, "much in the log")
    ve.ask("shutdown")
    wait_until(lambda: ve.record.write_errors, what="the shutdown")
    tear_the_log(ve.image)
    inode = ve.inode[1]
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=180)
    assert incident["state"] == "needs-operator"
    assert "for a person to decide" in daemon.why(incident["id"])
    (left,) = ve.image.parent.iterdir()
    assert left.stat().st_ino == inode
    argv = ["xfs_logprint", "-t", left]
    assert b"<DIRTY>" in subprocess.run(argv, capture_output=True, check=False).stdout
    assert left == ve.image or not cgroup.pids(ve.cgroup)


def test_a_btrfs_that_is_whole_on_its_disk_is_checked_in_place_and_mounted_anew(
    daemon, make_ve
) -> None:
    """Which is what one needs whose transactions the kernel has aborted."""
    ve = make_ve(fstype="btrfs", mkfs=("-d", "single", "-m", "dup"))
    start(daemon, ve, rules=OFFLINE)
    inode = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("verifying", "closed", "needs-operator", timeout_s=180)
    assert incident["steps"][0]["result"] == "repaired", daemon.why(incident["id"])
    assert (ve.inode, names_beside(ve)) == (inode, [])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])


def test_a_damaged_btrfs_is_checked_in_place_and_given_back_as_it_was(daemon, make_ve) -> None:
    ve = make_ve(fstype="btrfs", mkfs=("-d", "single", "-m", "dup"), quiet=True)
    start(daemon, ve, rules=OFFLINE, mode="observe")
    count_links_wrong(ve.image)
    inode = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=180)
    assert incident["state"] == "needs-operator"
    assert "the volume is what it was before" in incident["steps"][0]["detail"]
    assert "btrfs has no repair that is safe" in incident["steps"][0]["detail"]
    assert (ve.inode, names_beside(ve)) == (inode, [])
    wait_until(lambda: cgroup.pids(ve.cgroup), 60, incident["steps"][0]["detail"])


def test_damaged_btrfs_metadata_are_reported_and_left_as_they_are(daemon, make_ve) -> None:
    ve = make_ve(fstype="btrfs", mkfs=("-d", "single", "-m", "dup"), quiet=True)
    start(daemon, ve)
    inode = ve.inode
    damage = next(one for one in DAMAGES if one.name == "fs-tree")
    damage.harm(Path(ve.image))
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=180)
    assert incident["state"] == "needs-operator"
    assert "btrfs has no repair that is safe" in daemon.why(incident["id"])
    assert ve.inode == inode
    assert cgroup.pids(ve.cgroup)


def count_links_wrong(image: Path) -> None:
    """A wrong number of links in one inode, with a right checksum, in both copies of its leaf."""
    argv = ["btrfs", "inspect-internal", "dump-tree", "-t", "fs", image]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    item = re.search(
        r"key \(\d+ INODE_ITEM 0\) itemoff (\d+) itemsize 160\n.*\n.* mode 100644 ", listed
    )
    assert item, listed[:2000]
    leaf = re.findall(r"^leaf (\d+) items", listed[: item.start()], re.MULTILINE)[-1]
    argv = ["btrfs-map-logical", "-l", leaf, image]
    mapped = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    with image.open("r+b") as file:
        for place in map(int, re.findall(r"mirror \d+ .*physical (\d+)", mapped)):
            file.seek(place)
            block = bytearray(file.read(16384))
            link_count = 101 + int(item[1]) + 40  # behind struct btrfs_header, in btrfs_inode_item
            block[link_count : link_count + 4] = (7).to_bytes(4, "little")
            block[:4] = crc32c(bytes(block[32:])).to_bytes(4, "little")
            file.seek(place)
            file.write(block)


def crc32c(data: bytes) -> int:
    """Castagnoli's, as btrfs has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_only_a_persons_yes_lets_btrfs_check_repair(daemon, make_ve) -> None:
    ve = make_ve(fstype="btrfs", mkfs=("-d", "single", "-m", "dup"), quiet=True)
    start(daemon, ve, mode="observe")
    count_links_wrong(ve.image)
    before, inode = ve.digest(), ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    asking = daemon.wait_for_incident("waiting", "needs-operator", timeout_s=180)
    assert asking["state"] == "waiting", daemon.why(asking["id"])
    assert asking["steps"][0]["preview"]["last_resort"] == "btrfs check --repair"
    assert (ve.digest(), ve.inode) == (before, inode)
    daemon.client.post(f"/v1/incidents/{asking['id']}/approve")
    done = daemon.wait_for_incident("verifying", "closed", "needs-operator", timeout_s=180)
    assert done["steps"][0]["result"] == "repaired", daemon.why(done["id"])
    assert ve.inode != inode
    assert ve.control.wait_for_hand(ve.name, 60)
    found = set(ve.manifest())
    assert {hashlib.sha256(inside.content(path)).hexdigest() for path in ve.paths} <= found


SCRUB_FIRST = rules.repair("clone", **{"match.class": '"*"'}).replace(
    "[[rule.step]]",
    '[[rule.step]]\ndo = "fsck"\nstrategy = "online"\non_failure = "continue"\n[[rule.step]]',
    1,
)


def spoil(ve, path: str, copies: int) -> None:
    """Other bytes in so many copies of a file's data, under checksums that stay as they were."""
    data, content = Path(ve.image).read_bytes(), inside.content(path)[:4096]
    places = [p for p in range(0, len(data), 4096) if data[p : p + len(content)] == content]
    assert len(places) == 2, places
    for place in places[:copies]:
        ve.overwrite(place, os.urandom(len(content)))


@pytest.mark.parametrize("copies", [1, 2])
def test_a_scrub_is_the_first_rung_and_what_it_cannot_mend_is_no_false_alarm(
    daemon, make_ve, copies: int
) -> None:
    ve = make_ve(fstype="btrfs", mkfs=("-d", "dup", "-m", "dup"), quiet=True)
    start(daemon, ve, rules=SCRUB_FIRST, mode="observe")
    spoil(ve, ve.paths[200], copies)
    inode = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=180)
    results = [step["result"] for step in incident["steps"][:2]]
    if copies == 1:
        assert incident["outcome"] == "repaired", daemon.why(incident["id"])
        assert results[0] == "mended"
        assert len(ve.manifest()) >= len(ve.paths)
    else:
        assert incident["state"] == "needs-operator", daemon.why(incident["id"])
        assert results == ["damaged", "data lost"]
        assert "uncorrectable errors" in incident["steps"][1]["detail"]
    assert ve.inode == inode
    assert cgroup.pids(ve.cgroup)
