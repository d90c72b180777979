"""kill -9 in the middle of a repair: it is taken up or undone, and nothing stays frozen."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fswatchd.kernel import cgroup, loop, proc
from tests.system import rules
from tests.system.conftest import wait_until


def start(daemon, ve, **config) -> None:
    daemon.configure(**({"rules": rules.repair()} | config))
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)


def wait_for_detail(daemon, text: str) -> None:
    """Until the running step says that it does `text`; looks as often as it can."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for incident in daemon.incidents():
            for step in incident["steps"]:
                if text in (step["detail"] or ""):
                    return
    pytest.fail(f"no step ever said {text!r}")


def guards() -> list[int]:
    """Processes that hold a freeze."""
    found = []
    for pid in proc.pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"fswatchd.helpers.guard" in line:
            found.append(pid)
    return found


def guards_of(daemon) -> list[int]:
    """Those that this daemon has started."""

    def parent(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]

    return [pid for pid in guards() if parent(pid) == str(daemon.pid)]


def nothing_left(ve, *kept: str) -> None:
    """No clone, preview or scratch file beside the image, and one loop device on it."""
    allowed = re.compile("|".join([re.escape(ve.image.name), *kept]))
    left = [p.name for p in ve.image.parent.iterdir() if not allowed.fullmatch(p.name)]
    assert left == []
    assert len(loop.holders(*ve.inode)) == 1
    wait_until(lambda: not guards(), what="the end of all guards")


KEPT = r".*\.damaged-\d{8}-\w{5}"


@pytest.mark.parametrize(
    "phase", ["preview: checking the clone", "repairing the clone", "proving the clone"]
)
def test_killed_while_the_ve_still_runs(daemon, make_ve, phase: str) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    start(daemon, ve)
    ve.damage_directory()
    wait_for_detail(daemon, phase)
    daemon.kill()
    assert ve.wait_for_write(10), "the guard has not thawed"
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert "restarted in the middle" in daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def test_killed_together_with_its_guard_the_next_start_thaws(daemon, make_ve) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    start(daemon, ve)
    ve.damage_directory()
    wait_for_detail(daemon, "repairing the clone")
    os.kill(daemon.pid, signal.SIGSTOP)
    for pid in guards_of(daemon):
        os.kill(pid, signal.SIGKILL)
    daemon.kill()
    assert not ve.wait_for_write(1), "it was not frozen at all"
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def test_a_guard_that_is_killed_leaves_nothing_frozen(daemon, make_ve) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    start(daemon, ve)
    before = (ve.inode, set(cgroup.pids(ve.cgroup)))
    ve.damage_directory()
    wait_for_detail(daemon, "repairing the clone")
    (guard,) = guards_of(daemon)
    os.kill(guard, signal.SIGKILL)
    incident = daemon.wait_for_incident("needs-operator", "closed")
    assert "the clone is stale" in daemon.why(incident["id"])
    assert ve.wait_for_write(5), "it is still frozen"
    assert (ve.inode, set(cgroup.pids(ve.cgroup))) == before
    assert guards_of(daemon) == []
    nothing_left(ve)


def test_a_service_stop_thaws_the_tasks_that_a_plan_has_frozen(daemon, make_ve) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    freeze = '[[rule.step]]\ndo = "freeze"\n'
    start(daemon, ve, rules=rules.repair().replace("[[rule.step]]", f"{freeze}[[rule.step]]", 1))
    ve.damage_directory()
    wait_for_detail(daemon, "preview: checking the clone")
    assert cgroup.is_frozen(ve.cgroup)
    daemon.stop()
    assert not cgroup.is_frozen(ve.cgroup)
    assert ve.wait_for_write()


def test_what_was_open_is_begun_once_by_a_daemon_that_starts(daemon, make_ve) -> None:
    """What it decides while it starts is nothing that an earlier one has left half-way."""
    ve = make_ve(size=1 << 30, files=400)
    start(daemon, ve, mode="observe")
    ve.damage_directory()
    asked = daemon.wait_for_incident()["id"]
    wait_until(lambda: "node observe" in daemon.why(asked), what="a decision to do nothing")
    daemon.stop()
    daemon.configure(rules=rules.repair())
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert incident["outcome"] == "repaired", why
    assert "restarted in the middle" not in why
    assert why.count("kept before anything is done") == 1, why
    assert ve.wait_for_write()
    nothing_left(ve, KEPT)


def killed_in(daemon, ve, flag: Path) -> None:
    """Kill the daemon as soon as a command of the VE has begun."""
    ve.damage_directory()
    wait_until(flag.exists, 30, "the command to begin")
    daemon.kill()


@pytest.mark.parametrize("action", ["kill", "start"])
def test_killed_while_the_ve_is_down(daemon, make_ve, work, action: str) -> None:
    flag = work / "began"
    ve = make_ve(before={action: f"test -e {flag} || {{ touch {flag}; sleep 1; }}"})
    start(daemon, ve)
    killed_in(daemon, ve, flag)
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def test_killed_after_the_exchange_before_the_start(daemon, make_ve, work) -> None:
    """The VE is never started on the damaged image that lies beside."""
    flag = work / "began"
    ve = make_ve(before={"start": f"touch {flag}; sleep 3"})
    before = ve.inode
    start(daemon, ve)
    killed_in(daemon, ve, flag)
    assert ve.inode != before
    assert loop.holders(*before) == []
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def test_after_a_reboot_the_host_filesystem_may_have_another_device_number(
    daemon, make_ve, work
) -> None:
    """Files are known again by inode and birth: a good repair is not taken for a failed one."""
    flag = work / "began"
    ve = make_ve(before={"start": f"test -e {flag} || {{ touch {flag}; sleep 3; }}"})
    before = ve.inode
    start(daemon, ve)
    killed_in(daemon, ve, flag)
    assert ve.inode != before
    with sqlite3.connect(work / "state" / "fswatchd.db") as database:
        old, new = f'"devno":"{before[0]}"', '"devno":"0:99"'
        changed = database.execute(
            "UPDATE incident SET document = replace(document, ?1, ?2) WHERE instr(document, ?1)",
            (old, new),
        )
        assert changed.rowcount == 1
    database.close()
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def test_a_service_stop_waits_for_a_ve_that_is_down(daemon, make_ve, work) -> None:
    flag = work / "began"
    ve = make_ve(before={"start": f"test -e {flag} || {{ touch {flag}; sleep 1; }}"})
    start(daemon, ve)
    ve.damage_directory()
    wait_until(flag.exists, 30, "the start to begin")
    daemon.stop()
    assert ve.wait_for_write(1), "the VE was left stopped"


def test_killed_at_random_moments_it_always_ends_well(daemon, make_ve) -> None:
    """Five kills spread over one repair: before, during and after whatever it does then."""
    ve = make_ve(size=512 << 20, files=5000)
    start(daemon, ve)
    ve.damage_directory()
    for number in range(5):
        wait_until(lambda: daemon.incidents(), what="an incident")
        begin = time.monotonic()
        wait_until(lambda begin=begin, n=number: time.monotonic() - begin > 0.05 + 0.11 * n)
        daemon.kill()
        daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def disarm(daemon) -> None:
    daemon.client.post("/v1/disarm", {"target": "ve101", "reason": "migration"})


def untouched_until_armed(daemon, ve, before: object) -> None:
    """It waits, the VE runs as before with nothing left beside it; armed, it is repaired."""
    incident = daemon.wait_for_incident("waiting", "closed", "needs-operator")
    assert incident["waiting_for"] == "armed", daemon.why(incident["id"])
    assert "migration" in daemon.why(incident["id"])
    assert (ve.inode, set(cgroup.pids(ve.cgroup))) == before
    assert ve.wait_for_write()
    nothing_left(ve)
    daemon.client.post("/v1/arm", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])


def test_disarmed_before_the_stop_the_ve_is_not_stopped(daemon, make_ve) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    start(daemon, ve)
    before = (ve.inode, set(cgroup.pids(ve.cgroup)))
    ve.damage_directory()
    wait_for_detail(daemon, "repairing the clone")
    disarm(daemon)
    untouched_until_armed(daemon, ve, before)


def test_disarmed_and_restarted_nothing_is_taken_up(daemon, make_ve) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    start(daemon, ve)
    before = (ve.inode, set(cgroup.pids(ve.cgroup)))
    ve.damage_directory()
    wait_for_detail(daemon, "repairing the clone")
    disarm(daemon)
    daemon.kill()
    daemon.start()
    untouched_until_armed(daemon, ve, before)


def test_disarmed_while_the_ve_is_down_it_comes_back(daemon, make_ve, work) -> None:
    flag = work / "began"
    ve = make_ve(before={"kill": f"test -e {flag} || {{ touch {flag}; sleep 2; }}"})
    start(daemon, ve)
    ve.damage_directory()
    wait_until(flag.exists, 30, "the kill to begin")
    disarm(daemon)
    daemon.kill()
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    nothing_left(ve, KEPT)


def offline_until(daemon, ve, happened: Callable[[], bool]) -> None:
    start(daemon, ve, rules=rules.repair("offline"))
    ve.damage_directory()
    wait_until(happened, 30, "the offline repair to be half-way")
    daemon.kill()


def test_killed_while_e2fsck_works_in_place_nobody_can_start_the_ve(daemon, make_ve) -> None:
    ve = make_ve(size=1 << 30, files=20_000)
    aside = f"{ve.image.name}.under-repair-"

    def under_way() -> bool:
        return any(path.name.startswith(aside) for path in ve.image.parent.iterdir())

    offline_until(daemon, ve, under_way)
    assert not ve.image.exists()
    started = subprocess.run(ve.command("start"), capture_output=True, check=False)
    assert started.returncode != 0
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    nothing_left(ve)


def test_a_half_repaired_volume_that_is_still_held_cannot_be_started(daemon, make_ve) -> None:
    """What the cut-off run left attached goes on: the image does not get its name back."""
    ve = make_ve(size=1 << 30, files=20_000)
    aside = f"{ve.image.name}.under-repair-"

    def left_aside() -> Path | None:
        names = ve.image.parent.iterdir()
        return next((path for path in names if path.name.startswith(aside)), None)

    offline_until(daemon, ve, lambda: left_aside() is not None)
    half_done = left_aside()
    assert half_done is not None
    fd = os.open(half_done, os.O_RDWR)
    device, loop_fd = loop.attach(fd, autoclear=False, readonly=True)
    os.close(fd)
    try:
        daemon.start()
        incident = daemon.wait_for_incident("needs-operator", "closed", timeout_s=90)
    finally:
        os.close(loop_fd)
        loop.detach(device)
    assert "still attached" in incident["steps"][0]["detail"], daemon.why(incident["id"])
    assert not ve.image.exists()
    assert half_done.exists()
