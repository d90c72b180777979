"""`fswatch rollback --to`: a snapshot takes the place of a volume that nothing repairs safely."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fswatchd.client import ClientError
from fswatchd.drill import inside
from fswatchd.kernel import cgroup
from tests.system import rules
from tests.system.conftest import wait_until
from tests.system.test_repair_xfs_btrfs import count_links_wrong, digest, names_beside, start

BTRFS = {"fstype": "btrfs", "mkfs": ("-d", "single", "-m", "dup"), "quiet": True}


def snapshot(daemon) -> Path:
    return Path(daemon.client.post("/v1/snapshot", {"target": "ve101"})["path"])


def go_back(daemon, incident: str, to: Path, *, discard_newer: bool = True) -> dict:
    body = {"to": str(to), "discard_newer": discard_newer}
    return daemon.client.post(f"/v1/incidents/{incident}/rollback", body)


def every_file_is_there(ve) -> bool:
    found = set(ve.manifest())
    return {hashlib.sha256(inside.content(path)).hexdigest() for path in ve.paths} <= found


def found_damaged(daemon) -> dict:
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("needs-operator", "closed", "waiting", timeout_s=180)
    return dict(incident)


def test_a_btrfs_that_nothing_repairs_goes_back_to_its_snapshot(daemon, make_ve) -> None:
    ve = make_ve(**BTRFS)
    start(daemon, ve, rules=rules.repair("offline", **{"match.class": '"*"'}), mode="observe")
    kept = snapshot(daemon)
    before = digest(kept)
    count_links_wrong(ve.image)
    incident = found_damaged(daemon)
    assert incident["state"] == "needs-operator"
    command = f"fswatch rollback {incident['id']} --to {kept}"
    assert command in incident["steps"][0]["detail"]
    wait_until(lambda: cgroup.pids(ve.cgroup), 60, "the VE, given back as it was")
    damaged = ve.inode
    with pytest.raises(ClientError, match="has written since would be lost") as refused:
        go_back(daemon, incident["id"], kept, discard_newer=False)
    assert "--discard-newer" in refused.value.hint
    go_back(daemon, incident["id"], kept)
    done = daemon.wait_for_incident("closed", timeout_s=180)
    assert done["outcome"] == "dismissed", daemon.why(done["id"])
    assert ve.inode != damaged
    aside = ve.image.with_name(f"{ve.image.name}.damaged-{incident['id']}")
    assert aside.stat().st_ino == damaged[1]
    assert sorted(names_beside(ve)) == sorted([kept.name, aside.name])
    assert digest(kept) == before
    assert ve.control.wait_for_hand(ve.name, 60)
    assert every_file_is_there(ve)
    seen = daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})
    assert seen["clean"] is True


def test_a_ve_that_somebody_has_stopped_is_started_on_its_snapshot(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    kept = snapshot(daemon)
    ve.damage_directory()
    incident = daemon.wait_for_incident("open", "waiting")
    subprocess.run(ve.command("stop"), check=True)
    damaged = ve.inode
    go_back(daemon, incident["id"], kept)
    wait_until(lambda: ve.inode != damaged, 60, "the exchange")
    assert ve.wait_for_write(60)
    assert ve.lost()[0] == []


def test_a_snapshot_that_is_damaged_as_well_stops_nothing(daemon, make_ve) -> None:
    ve = make_ve(**BTRFS)
    start(daemon, ve, mode="observe")
    count_links_wrong(ve.image)
    kept = snapshot(daemon)
    incident = found_damaged(daemon)
    running, inode = cgroup.pids(ve.cgroup), ve.inode
    go_back(daemon, incident["id"], kept)

    def told() -> bool:
        return "the snapshot is damaged as well" in daemon.why(incident["id"])

    wait_until(told, 60, "why not")
    (now,) = daemon.incidents("ve101")
    assert now["state"] == "needs-operator"
    assert (cgroup.pids(ve.cgroup), ve.inode) == (running, inode)
    assert names_beside(ve) == [kept.name]


def test_what_is_no_snapshot_of_the_volume_is_refused(daemon, make_ve, work) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    ve.damage_directory()
    incident = daemon.wait_for_incident("open", "waiting")
    beside = ve.image.parent
    another = beside / "another.img"
    with another.open("xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", another], check=True, capture_output=True)
    elsewhere = work / "elsewhere.img"
    shutil.copy(another, elsewhere)
    os.mkfifo(beside / "pipe")
    (beside / "empty").touch()
    running, inode = cgroup.pids(ve.cgroup), ve.inode
    for path, why in (
        (another, "not the filesystem"),
        (elsewhere, "not in the directory"),
        (ve.image, "the volume itself"),
        (beside / "missing", "No such file"),
        (beside / "pipe", "not a regular file"),
        (beside / "empty", "no filesystem that is known"),
        (Path("relative"), "not an absolute path"),
    ):
        with pytest.raises(ClientError, match=f"not rolled back: .*{why}"):
            go_back(daemon, incident["id"], path)
    assert (cgroup.pids(ve.cgroup), ve.inode) == (running, inode)


def test_a_ve_that_is_disarmed_is_not_stopped_for_it(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    kept = snapshot(daemon)
    ve.damage_directory()
    incident = daemon.wait_for_incident("open", "waiting")
    running, inode = cgroup.pids(ve.cgroup), ve.inode
    daemon.client.post("/v1/disarm", {"target": "ve101", "reason": "moved by hand"})
    with pytest.raises(ClientError, match="disarmed"):
        go_back(daemon, incident["id"], kept)
    assert (cgroup.pids(ve.cgroup), ve.inode) == (running, inode)
    assert names_beside(ve) == [kept.name]
