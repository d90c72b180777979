"""What a repair would change is shown before, bounded by the rule, and then happens so."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from fswatchd.kernel import cgroup
from fswatchd.repair import e2fsck, tools
from tests.system import rules
from tests.system.conftest import fswatch, wait_until


@pytest.fixture
def damaged(make_ve, work):
    """A running VE that writes nothing, with a directory whose names the journal still knows."""

    def make(**options):
        ve = make_ve(quiet=True, **options)
        point = work / "prepare"
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", ve.image, point], check=True)
        (point / "journaled").mkdir()
        for number in range(40):
            (point / "journaled" / f"file-{number:02d}").write_text(f"content {number}")
        subprocess.run(["umount", point], check=True)
        ve.start()
        inode = ve.ask("stat", path="/journaled")[0]["inode"]
        blocks: list[str] = []
        argv = ["debugfs", "-R", f"blocks <{inode}>", ve.device]
        while not blocks:
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            blocks = done.stdout.split()
        ve.overwrite(int(blocks[0]) * ve.block_size(), os.urandom(ve.block_size()))
        return ve

    return make


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_dry_run_names_what_would_change_and_changes_nothing(daemon, damaged) -> None:
    ve = damaged()
    daemon.configure(mode="observe", rules=rules.TELL)
    ve.declare()
    daemon.start()
    daemon.wait_until_known("ve101")
    subprocess.run(["sync", "-f", ve.image], check=True)
    before = digest(ve.image)
    answer = daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})
    assert digest(ve.image) == before
    assert cgroup.pids(ve.cgroup)
    assert not answer["clean"]
    assert answer["curable"]
    assert answer["kinds"]["unattached inode"] == answer["moved"] == 40, answer["output"]
    assert answer["named"] == 40
    assert "/journaled/file-07" in answer["named_files"]
    assert (answer["lost_files"], answer["dropped"], answer["unnamed"]) == (0, 0, 0)
    shown = fswatch(daemon, "repair", "ve101", "--dry-run")
    assert "40 names given back (from the journal)" in shown.stdout
    assert not [p for p in ve.image.parent.iterdir() if "fswatchd" in p.name]


def test_the_repair_does_what_the_preview_says_and_names_come_back(daemon, damaged) -> None:
    ve = damaged()
    ve.ask("list", path="/journaled")
    bounded = rules.repair().replace("max_write_pause", "max_lost_files = 0\nmax_write_pause")
    daemon.configure(rules=bounded)
    ve.declare()
    daemon.start()
    daemon.wait_until_known("ve101")
    shown = daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})
    ve.ask("list", path="/journaled")
    incident = daemon.wait_for_incident("closed", "needs-operator", "waiting")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    did = next(s for s in incident["steps"] if s["do"] == "fsck")["preview"]
    for key in ("changes", "kinds", "dropped_files", "named_files", "unnamed_files"):
        assert did[key] == shown[key], key
    names = {Path(a["path"]).name for a in ve.ask("manifest") if "journaled" in a.get("path", "")}
    assert len(names) == 40


def test_beyond_its_bound_the_step_asks_with_the_preview(daemon, make_ve) -> None:
    """Names that were never in the journal cannot come back: those files would be lost."""
    ve = make_ve()
    bounded = rules.repair().replace("max_write_pause", "max_lost_files = 99\nmax_write_pause")
    daemon.configure(rules=bounded)
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting", "closed", "needs-operator")
    assert (incident["state"], incident["waiting_for"]) == ("waiting", "approval")
    preview = next(s for s in incident["steps"] if s["do"] == "fsck")["preview"]
    assert preview["lost_files"] == 100
    assert len(preview["unnamed_files"]) == 100
    assert "100 files would be lost" in daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.wait_for_write()
    daemon.client.post(f"/v1/incidents/{incident['id']}/approve")
    wait_until(lambda: ve.inode != before, 60, "the repair")
    assert daemon.wait_for_incident("closed", "needs-operator")["outcome"] == "repaired"


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
async def test_the_others_tell_it_by_their_headings(work, fstype: str) -> None:
    image = work / "image"
    with image.open("xb") as file:
        file.truncate(320 << 20)
    subprocess.run([f"mkfs.{fstype}", "-q", image], check=True, capture_output=True)
    found, told = tools.of(fstype), []
    assert found is not None
    assert (await found.check(str(image), 60.0, told.append)).clean
    assert told == sorted(told)
    assert told[-1] > 0.7


def healthy_under_load(daemon, make_ve, fstype: str, times: int) -> None:
    ve = make_ve(size=320 << 20, fstype=fstype)
    daemon.configure(mode="observe", rules=rules.TELL)
    ve.declare()
    ve.start()
    ve.ask("churn")
    daemon.start()
    daemon.wait_until_known("ve101")
    wrong = []
    for number in range(times):
        seen = daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})
        if not seen["clean"]:
            wrong.append(f"{number}: {seen['found']}: {seen['output'][-500:]}")
    assert not wrong, "\n".join(wrong)
    assert ve.wait_for_write()
    assert not ve.record.write_errors
    assert daemon.incidents("ve101") == []


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_the_preview_of_a_healthy_filesystem_under_load_is_clean(
    daemon, make_ve, fstype: str
) -> None:
    healthy_under_load(daemon, make_ve, fstype, 4)


@pytest.mark.long
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_seventy_previews_of_a_healthy_filesystem_under_load_are_clean(
    daemon, make_ve, fstype: str
) -> None:
    healthy_under_load(daemon, make_ve, fstype, 70)


async def test_e2fsck_tells_how_far_it_is_from_inside_of_its_sandbox(work) -> None:
    image = work / "image"
    with image.open("xb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    shares: list[float] = []
    checked = await e2fsck.check(str(image), 60, shares.append)
    assert checked.clean, checked.output
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
