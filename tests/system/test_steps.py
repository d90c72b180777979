"""Steps other than fsck, carried out by rules on a real VE."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fswatchd import process
from fswatchd.kernel import cgroup
from tests.system.conftest import wait_until

RULE = """
[[rule]]
name = "steps"
match.class = ["corruption", "readonly", "shutdown"]
mode = "auto"
cooldown = "1h"
healthy = "200ms"
{steps}
"""


def rule(*steps: str) -> str:
    return RULE.format(steps="\n".join(f"[[rule.step]]\n{step}" for step in steps))


def start(daemon, ve, *steps: str, more: str = "") -> None:
    daemon.configure(rules=rule(*steps), more=more)
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)


def trigger(ve) -> None:
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("test")


def oom_score(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@contextmanager
def oom_score_of_the_service() -> Iterator[None]:
    """What is started inside is as protected as the service is."""
    before = oom_score("self")
    try:
        Path("/proc/self/oom_score_adj").write_text("-900")
    except PermissionError:
        pytest.skip("needs CAP_SYS_RESOURCE")
    try:
        yield
    finally:
        Path("/proc/self/oom_score_adj").write_text(str(before))


def steps_of(daemon, *states: str) -> list[dict]:
    """The steps of the VE's incident once all of them have ended."""

    def ended():
        found = daemon.incidents("ve101")
        if not found or not found[0]["steps"]:
            return None
        steps = found[0]["steps"]
        return steps if all(s["state"] in {"done", "failed", "skipped"} for s in steps) else None

    try:
        return list(wait_until(ended, 30, "the end of all steps"))
    finally:
        for incident in daemon.incidents():
            print(daemon.why(incident["id"]))


def test_a_snapshot_is_consistent_and_complete(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "snapshot"')
    acked_before = list(ve.record.acked)
    trigger(ve)
    (step,) = steps_of(daemon)
    assert step["result"] == "taken", step
    (snapshot,) = [p for p in ve.image.parent.iterdir() if ".snapshot-" in p.name]
    done = subprocess.run(["e2fsck", "-fn", snapshot], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /work", snapshot], capture_output=True, text=True, check=True
    ).stdout
    assert all(os.path.basename(path) in listing for path in acked_before)
    assert ve.wait_for_write()
    assert not cgroup.is_frozen(ve.cgroup)


def test_a_snapshot_of_what_the_kernel_has_stopped(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "snapshot"')
    ve.ask("abort")
    (step,) = steps_of(daemon)
    assert step["result"] == "taken", step


def test_remount_does_not_claim_to_cure_an_abort(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "remount"\non_failure = "continue"', 'do = "notify"')
    ve.ask("abort")
    remount, notify = steps_of(daemon)
    assert (remount["state"], remount["result"]) == ("failed", "refused")
    assert "no remount brings it back" in remount["detail"]
    assert notify["state"] == "done"


def test_remount_does_not_hide_recorded_errors(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "remount"')
    trigger(ve)
    (remount,) = steps_of(daemon)
    assert remount["result"] == "refused"
    assert "errors are recorded" in remount["detail"]
    assert daemon.incidents("ve101")[0]["state"] == "needs-operator"


def test_contain_stops_writes_and_keeps_reads(daemon, make_ve, work) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "contain"', 'do = "quarantine"')
    trigger(ve)
    contain, _ = steps_of(daemon)
    assert contain["result"] == "contained", contain
    contained = time.monotonic_ns()
    wait_until(lambda: ve.record.write_errors and ve.record.write_errors[-1] > contained)
    assert ve.ask("read", path="/data/000/file-000000")[0]["bytes"] == 4096
    # Everything that was acknowledged is on the disk, not only in the memory of the live mount.
    acked, copy = list(ve.record.acked), work / "copy.img"
    subprocess.run(["cp", "--sparse=always", ve.image, copy], check=True)
    subprocess.run(["e2fsck", "-p", "-E", "journal_only", copy], check=False, capture_output=True)
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /work", copy], capture_output=True, text=True, check=True
    ).stdout
    assert acked
    assert all(f"/{os.path.basename(path)}/" in listing for path in acked)
    wait_until(lambda: not cgroup.is_frozen(ve.cgroup), what="the thaw")
    assert daemon.incidents("ve101")[0]["state"] == "needs-operator"


def test_frozen_tasks_run_again_at_the_end_of_the_plan(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "freeze"', 'do = "remount"\non_failure = "continue"')
    trigger(ve)
    freeze, _ = steps_of(daemon)
    assert freeze["result"] == "frozen"
    wait_until(lambda: not cgroup.is_frozen(ve.cgroup), what="the thaw")
    assert ve.wait_for_write()


def test_tasks_frozen_by_a_daemon_that_was_killed_run_again(daemon, make_ve) -> None:
    ve = make_ve(before={"stop": "sleep 30"})
    # A service stop waits for a plan that has begun to stop its VE: that should not take long.
    short = '[repair]\nstop_timeout = "3s"\n'
    start(daemon, ve, 'do = "freeze"', 'do = "stop"\ntimeout = "100s"', more=short)
    trigger(ve)
    wait_until(lambda: cgroup.is_frozen(ve.cgroup), what="the freeze")
    daemon.kill()
    assert cgroup.is_frozen(ve.cgroup)
    daemon.start()
    wait_until(lambda: not cgroup.is_frozen(ve.cgroup), what="the thaw")


def test_stop_and_start(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "stop"', 'do = "start"')
    before = set(cgroup.pids(ve.cgroup))
    trigger(ve)
    stop, begin = steps_of(daemon)
    assert (stop["result"], begin["result"]) == ("stopped", "started")
    assert set(cgroup.pids(ve.cgroup)).isdisjoint(before)
    assert ve.wait_for_write()


def test_a_ve_that_is_started_inherits_nothing_of_the_daemons_protection(daemon, make_ve) -> None:
    ve = make_ve()
    with oom_score_of_the_service():
        start(daemon, ve, 'do = "stop"', 'do = "start"')
    assert oom_score(daemon.pid) == -900
    trigger(ve)
    steps_of(daemon)
    assert {oom_score(pid) for pid in cgroup.pids(ve.cgroup)} == {0}


async def test_what_reads_whole_volumes_goes_first_and_waits_longest() -> None:
    show = ("sh", "-c", "cat /proc/self/oom_score_adj; ionice")
    usual = await process.run(show, timeout_s=5)
    heavy = await process.run(show, timeout_s=5, heavy=True)
    assert usual.output.split()[0] == str(max(oom_score("self"), 0))
    assert heavy.output.split() == ["500", "best-effort:", "prio", "7"]
    assert "best-effort: prio 7" not in usual.output


def test_a_stop_command_that_hangs_ends_with_a_kill(daemon, make_ve) -> None:
    ve = make_ve(before={"stop": "sleep 1000"})
    daemon.configure(rules=rule('do = "stop"'), more='[repair]\nstop_timeout = "500ms"\n')
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    trigger(ve)
    (stop,) = steps_of(daemon)
    assert stop["result"] == "stopped", stop
    assert "was killed" in stop["detail"]
    assert cgroup.pids(ve.cgroup) == []


def test_a_step_that_fails_hands_over_and_later_steps_are_skipped(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "remount"', 'do = "stop"')
    trigger(ve)
    remount, stop = steps_of(daemon)
    assert (remount["state"], stop["state"]) == ("failed", "skipped")
    assert cgroup.pids(ve.cgroup)
    assert daemon.incidents("ve101")[0]["state"] == "needs-operator"


def test_a_cooldown_keeps_the_rule_from_acting_again(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "snapshot"')
    trigger(ve)
    steps_of(daemon)
    trigger(ve)
    incident = wait_until(
        lambda: next((i for i in daemon.incidents("ve101") if i["waiting_for"] == "cooldown"), None)
    )
    assert incident["state"] == "waiting"
    assert len([p for p in ve.image.parent.iterdir() if ".snapshot-" in p.name]) == 1


@pytest.mark.parametrize("answer", ["ack"])
def test_an_operator_ends_what_needs_one(daemon, make_ve, answer: str) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "quarantine"', 'do = "remount"')
    trigger(ve)
    incident = daemon.wait_for_incident("needs-operator")
    daemon.client.post(f"/v1/incidents/{incident['id']}/{answer}")
    assert daemon.wait_for_incident("closed")["outcome"] == "dismissed"


def test_a_plan_that_has_stopped_the_ve_and_cannot_go_on_needs_an_operator(daemon, make_ve) -> None:
    """A stop unmounts, so what `fsck` was about is gone: the VE must not be left and forgotten."""
    ve = make_ve()
    steps = ('do = "stop"', 'do = "fsck"\nstrategy = "clone"', 'do = "start"')
    start(daemon, ve, *steps)
    trigger(ve)
    incident = daemon.wait_for_incident("needs-operator", "closed")
    assert incident["state"] == "needs-operator", daemon.why(incident["id"])
    assert cgroup.pids(ve.cgroup) == []
