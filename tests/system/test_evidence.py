"""What is kept before anything is done."""

from __future__ import annotations

import json
import os

from tests.system.conftest import fswatch
from tests.system.test_steps import start, steps_of, trigger


def test_it_shows_the_filesystem_as_it_was_before_the_first_step(daemon, make_ve, work) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "notify"', 'do = "remount"\non_failure = "continue"')
    device = os.path.basename(ve.device)
    trigger(ve)
    notify, remount = steps_of(daemon)
    (incident,) = daemon.incidents("ve101")
    file = work / "evidence.json"
    done = fswatch(daemon, "incident", incident["id"], "--evidence", str(file))
    assert done.returncode == 0, done.stderr
    kept = json.loads(file.read_text())
    assert incident["filesystem"]["uuid"] in kept["superblock"]
    assert any(f"(device {device})" in line for line in kept["kernel_lines"]), kept["problems"]
    assert int(kept["counters"][f"/sys/fs/ext4/{device}/errors_count"]) >= 1
    assert any(f"/dev/{device} " in line for line in kept["mounts"])
    assert kept["processes"]
    assert any(one["path"].startswith("/") for one in kept["files"])
    assert notify["started"] < incident["evidence"]["taken"] < remount["started"]
    assert "kept before anything is done" in daemon.why(incident["id"])
    stored = work / "state" / "evidence" / f"{incident['id']}.json"
    assert stored.stat().st_mode & 0o077 == 0
    nobody = fswatch(daemon, "incident", incident["id"], "--evidence", str(file), user="nobody")
    assert nobody.returncode != 0


def test_a_rule_that_only_tells_keeps_nothing(daemon, make_ve, work) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "notify"')
    trigger(ve)
    incident = daemon.wait_for_incident()
    assert incident["evidence"] is None
    done = fswatch(daemon, "incident", incident["id"], "--evidence", str(work / "none"))
    assert done.returncode == 64
    assert not (work / "none").exists()
