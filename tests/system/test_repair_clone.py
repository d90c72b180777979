"""Repair by clone on a real kernel: what it must do, and when it must not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from fswatchd.drill import inside
from fswatchd.kernel import cgroup, loop
from tests.system import rules
from tests.system.conftest import fswatch, make_host, wait_until


def start(daemon, *ves, **config) -> None:
    daemon.configure(**({"rules": rules.repair()} | config))
    for ve in ves:
        ve.declare()
        ve.start()
    daemon.start()
    daemon.wait_until_known(*(ve.name for ve in ves))


def test_damage_is_repaired_and_the_neighbour_notices_nothing(daemon, make_ve) -> None:
    ve, neighbour = make_ve(), make_ve("ve102")
    start(daemon, ve, neighbour)
    before, neighbours_image = ve.inode, neighbour.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert incident["ves"] == ["declared:ve101"]
    assert {"fanotify", "kmsg", "state"} <= set(incident["sources"])
    assert ve.inode != before
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])
    kept = ve.image.with_name(f"{ve.image.name}.damaged-{incident['id']}")
    assert kept.exists()
    assert neighbour.inode == neighbours_image
    assert neighbour.record.write_errors == []
    assert daemon.incidents("ve102") == []
    assert not [i for i in daemon.status()["incidents"] if "declared:ve101" in i["ves"]]


def test_whoever_else_has_it_mounted_is_told_of_and_asked_for_again(daemon, make_ve, work) -> None:
    ve = make_ve()
    start(daemon, ve)
    before, point = ve.inode, work / "backup"
    point.mkdir()
    script = f"mount {ve.device} {point} && echo && exec sleep 1000"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE) as backup:
        try:
            assert backup.stdout is not None
            assert backup.stdout.readline() == b"\n"
            ve.damage_directory()
            incident = daemon.wait_for_incident("open", "needs-operator")
            wait_until(lambda: "is also used by" in daemon.why(incident["id"]))
            assert daemon.incidents("ve101")[0]["state"] == "open"
            assert ve.inode == before
        finally:
            backup.kill()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])


@pytest.mark.parametrize("fault", ["abort", "shutdown"])
def test_a_filesystem_that_the_kernel_has_stopped(daemon, make_ve, fault: str) -> None:
    ve = make_ve()
    start(daemon, ve)
    ve.ask(fault)
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert incident["class"] == {"abort": "readonly", "shutdown": "shutdown"}[fault]
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])


def test_a_recorded_error_without_damage_is_a_false_alarm_and_nobody_is_stopped(
    daemon, make_ve
) -> None:
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    device = os.path.basename(ve.device)
    with open(f"/sys/fs/ext4/{device}/trigger_fs_error", "w") as file:
        file.write("test")
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "false-alarm"
    assert ve.inode == before
    assert ve.wait_for_write()
    leftovers = [path.name for path in ve.image.parent.iterdir() if path != ve.image]
    assert leftovers == []


def test_observe_repairs_nothing(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("open")
    wait_until(lambda: "decision" in daemon.why(incident["id"]).lower())
    assert "NO  mode" in daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.wait_for_write()


def test_an_approval_is_waited_for(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="approve")
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    assert incident["waiting_for"] == "approval"
    assert ve.inode == before
    daemon.client.post(f"/v1/incidents/{incident['id']}/approve")
    assert daemon.wait_for_incident("closed")["outcome"] == "repaired"
    assert ve.inode != before


def test_a_denial_ends_the_waiting_and_nothing_is_done(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="approve")
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    daemon.client.post(f"/v1/incidents/{incident['id']}/deny")
    daemon.wait_for_incident("open")
    assert ve.inode == before


def test_disarmed_means_that_nothing_is_done_until_armed(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve)
    daemon.client.post("/v1/disarm", {"target": "ve101", "reason": "migration"})
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    assert incident["waiting_for"] == "armed"
    assert "migration" in daemon.why(incident["id"])
    assert ve.inode == before
    daemon.client.post("/v1/arm", {"target": "ve101"})
    assert daemon.wait_for_incident("closed")["outcome"] == "repaired"


def test_a_pause_that_is_too_long_is_asked_about_first(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, rules=rules.repair(max_write_pause='"1ms"'))
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    assert incident["waiting_for"] == "approval"
    assert "max_write_pause" in daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.wait_for_write()
    daemon.client.post(f"/v1/incidents/{incident['id']}/approve")
    assert daemon.wait_for_incident("closed")["outcome"] == "repaired"


def test_what_was_approved_is_done_when_whoever_is_in_the_way_has_gone(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, rules=rules.repair(max_write_pause='"1ms"'))
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    (init, *_) = cgroup.pids(ve.cgroup)
    with open(f"/proc/{init}/root/data/000/file-000000", "rb"):
        daemon.client.post(f"/v1/incidents/{incident['id']}/approve")
        wait_until(lambda: "is not stopped" in daemon.why(incident["id"]), what="it to wait")
    ended = daemon.wait_for_incident("closed", "needs-operator", timeout_s=90)
    assert ended["outcome"] == "repaired", daemon.why(incident["id"])
    assert daemon.why(incident["id"]).count("asks:") == 1


def test_a_host_that_cannot_share_blocks_gets_a_copy(daemon, make_ve, work) -> None:
    ve = make_ve(on=make_host(work, "ext4", 2 << 30))
    start(daemon, ve)
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write()
    assert ve.lost() == ([], [])


def test_no_room_for_a_clone_is_said_as_that(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, more='[repair]\nreserve = "100G"\n')
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("needs-operator")
    assert "no room" in incident["steps"][0]["result"]
    assert ve.inode == before
    assert ve.wait_for_write()


def test_what_e2fsck_cannot_read_stays_as_it_is(daemon, make_ve) -> None:
    """A feature from the future: e2fsck answers 8, which says nothing about the filesystem."""
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    superblock = 1024
    ve.overwrite(superblock + 0x60, (0x80000242).to_bytes(4, "little"))
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("test")
    incident = daemon.wait_for_incident("needs-operator", "closed")
    assert incident["state"] == "needs-operator", daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.wait_for_write()


def test_an_image_that_is_attached_twice_is_not_touched(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    fd = os.open(ve.image, os.O_RDWR)
    device, loop_fd = loop.attach(fd, autoclear=False, readonly=False)
    os.close(fd)
    try:
        (mine,) = set(loop.holders(*ve.inode)) - {device}
        with open(f"/sys/fs/ext4/{os.path.basename(mine)}/trigger_fs_error", "w") as file:
            file.write("test")
        incident = daemon.wait_for_incident("needs-operator")
        assert "attached more than once" in incident["steps"][0]["detail"]
    finally:
        os.close(loop_fd)
        loop.detach(device)
    assert ve.inode == before
    assert ve.wait_for_write()


def test_a_filesystem_that_somebody_else_has_mounted_is_not_touched(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    script = f"mount {ve.device} /mnt && echo ready && read line"
    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        ve.damage_directory()
        incident = daemon.wait_for_incident("open")
        wait_until(lambda: "NO  scope" in daemon.why(incident["id"]), what="the guard's answer")
        assert "process" in daemon.why(incident["id"])
    finally:
        holder.communicate(b"\n", timeout=10)
    assert ve.inode == before
    assert ve.wait_for_write()


def test_a_ve_that_vanishes_before_anything_was_done(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="approve")
    before, digest_of = ve.inode, ve.digest
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    ve.kill()
    wait_until(lambda: not loop.holders(*before), what="the image to be released")
    digest = digest_of()
    kept = put_down(daemon, incident["id"])
    assert kept["filesystem"]["mountpoints"] == []
    assert "NO  mount" in daemon.why(incident["id"])
    (ve.work / "ve.d" / f"{ve.name}.toml").unlink()
    ended = wait_until(
        lambda: next((i for i in daemon.incidents() if i["state"] == "closed"), None), timeout_s=30
    )
    assert (ended["id"], ended["outcome"]) == (incident["id"], "dismissed")
    assert "no longer mounted" in daemon.why(incident["id"])
    assert ve.digest() == digest


def put_down(daemon, incident_id: str) -> dict:
    """The incident as it is when the daemon has seen that its volume is mounted nowhere."""
    return wait_until(
        lambda: next(
            (
                i
                for i in daemon.incidents("ve101")
                if (i["id"], i["waiting_for"]) == (incident_id, "mount")
                and not i["filesystem"]["mountpoints"]
            ),
            None,
        ),
        timeout_s=30,
        what="the volume to be missed",
    )


def damaged_and_stopped(daemon, ve) -> dict:
    """The incident of a VE that was stopped before anybody had approved its repair."""
    start(daemon, ve, mode="approve")
    ve.damage_directory()
    incident = daemon.wait_for_incident("waiting")
    ve.kill()
    return put_down(daemon, incident["id"])


def test_a_volume_that_does_not_come_back_is_over_when_somebody_says_so(daemon, make_ve) -> None:
    ve = make_ve()
    first = damaged_and_stopped(daemon, ve)
    untouched = ve.digest()
    path = f"/v1/incidents/{first['id']}"
    refused = fswatch(daemon, "approve", first["id"])
    assert refused.returncode != 0
    assert "waiting for mount" in refused.stderr
    fswatch(daemon, "ack", first["id"])
    assert daemon.client.get(path)["waiting_for"] == "mount"
    fswatch(daemon, "ack", first["id"], "--recovered")
    assert daemon.client.get(path)["outcome"] == "recovered"
    assert ve.digest() == untouched
    ve.start()  # and it is back, damaged as it was
    wait_until(
        lambda: [i["id"] for i in daemon.incidents("ve101") if i["waiting_for"] == "approval"],
        what="its damage to be told again",
    )
    assert daemon.client.get(path)["state"] == "closed"


def test_the_damage_is_known_still_when_the_ve_comes_back(daemon, make_ve) -> None:
    """Stopped by its owner, for longer than a restart takes, and the daemon as well."""
    ve = make_ve()
    first = damaged_and_stopped(daemon, ve)
    daemon.stop()
    daemon.start()
    put_down(daemon, first["id"])
    ve.start()
    asked = wait_until(
        lambda: next((i for i in daemon.incidents("ve101") if i["waiting_for"] == "approval"), None)
    )
    assert asked["id"] == first["id"]
    assert asked["filesystem"]["mountpoints"] == ["/"]
    daemon.client.post(f"/v1/incidents/{first['id']}/approve")
    ended = daemon.wait_for_incident("closed", "needs-operator")
    assert (ended["id"], ended["outcome"]) == (first["id"], "repaired"), daemon.why(first["id"])
    assert [i["id"] for i in daemon.incidents("ve101")] == [first["id"]]
    assert ve.wait_for_write()


def test_what_an_admin_has_repaired_meanwhile_is_over_at_the_next_mount(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve)
    daemon.client.post("/v1/disarm", {"target": "ve101", "reason": "I look myself"})
    ve.damage_directory()
    first = daemon.wait_for_incident("waiting")
    ve.kill()
    daemon.client.post("/v1/arm", {"target": "ve101"})
    put_down(daemon, first["id"])
    wait_until(lambda: not loop.holders(*ve.inode), what="the image to be released")
    subprocess.run(["e2fsck", "-fy", str(ve.image)], check=False, capture_output=True)
    before = ve.inode
    ve.start()
    ended = daemon.wait_for_incident("closed", "needs-operator", timeout_s=30)
    assert (ended["id"], ended["outcome"]) == (first["id"], "recovered"), daemon.why(first["id"])
    assert ve.inode == before
    assert ve.wait_for_write()


def test_a_repair_of_the_stopped_ve_takes_up_what_is_known_of_it(daemon, make_ve) -> None:
    ve = make_ve()
    first = damaged_and_stopped(daemon, ve)
    assert daemon.client.post("/v1/repair", {"target": "ve101"})["id"] == first["id"]
    ended = daemon.wait_for_incident("closed", "needs-operator", timeout_s=60)
    assert (ended["id"], ended["outcome"]) == (first["id"], "repaired"), daemon.why(first["id"])
    assert [i["id"] for i in daemon.incidents("ve101")] == [first["id"]]
    assert ve.wait_for_write()


def test_a_kill_command_that_hangs_does_not_hang_the_daemon(daemon, make_ve) -> None:
    ve = make_ve(before={"kill": "sleep 1000"})
    start(daemon, ve, more='[repair]\nkill_timeout = "1s"\nstart_timeout = "10s"\n')
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=60)
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert "was killed" in daemon.why(incident["id"])


def test_a_ve_that_does_not_start_again_is_handed_over(daemon, make_ve) -> None:
    ve = make_ve(before={"start": "exit 7"})
    start(daemon, ve, more='[repair]\nstart_timeout = "1s"\n')
    ve.damage_directory()
    incident = daemon.wait_for_incident("needs-operator", "closed")
    assert incident["state"] == "needs-operator"
    assert "exit code 7" in incident["steps"][0]["detail"]
    assert incident["can_roll_back"]


def test_a_start_that_fails_is_rolled_back_when_the_rule_says_so(daemon, make_ve, work) -> None:
    """The start command fails once: with the repaired image, and works with the original."""
    flag = work / "failed-once"
    ve = make_ve(before={"start": f"test -e {flag} || {{ touch {flag}; exit 7; }}"})
    text = rules.repair().replace("max_write_pause", 'on_failure = "rollback"\nmax_write_pause')
    start(daemon, ve, rules=text, more='[repair]\nstart_timeout = "1s"\n')
    before = ve.inode
    ve.damage_directory()
    wait_until(lambda: flag.exists() and ve.inode == before, what="the original to be back")
    assert ve.wait_for_write()


def test_rollback_puts_the_original_back(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed")
    assert ve.inode != before
    with pytest.raises(Exception, match="wrote since") as caught:
        daemon.client.post(f"/v1/incidents/{incident['id']}/rollback")
    assert "--discard-newer" in caught.value.hint
    assert ve.inode != before
    body = {"discard_newer": True}
    daemon.client.post(f"/v1/incidents/{incident['id']}/rollback", body)
    wait_until(lambda: ve.inode == before, what="the original to be back")
    assert ve.wait_for_write()
    kept = ve.image.with_name(f"{ve.image.name}.repaired-{incident['id']}")
    wait_until(kept.exists)


def test_another_ve_that_has_got_the_name_is_not_stopped_for_a_rollback(daemon, make_ve) -> None:
    ve, other = make_ve(), make_ve("ve102")
    start(daemon, ve, other)
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed")
    repaired, running = ve.inode, cgroup.pids(other.cgroup)
    ve.kill()
    declared = ve.work / "ve.d"
    renamed = other.declaration().replace('name = "ve102"', 'name = "ve101"')
    (declared / "ve101.toml").write_text(renamed)
    (declared / "ve102.toml").unlink()
    with pytest.raises(Exception, match=r"runs on .*ve102") as caught:
        daemon.client.post(f"/v1/incidents/{incident['id']}/rollback", {"discard_newer": True})
    assert f"{ve.image}.damaged-{incident['id']}" in caught.value.hint
    assert (ve.inode, cgroup.pids(other.cgroup)) == (repaired, running)
    assert daemon.client.get(f"/v1/incidents/{incident['id']}")["state"] == "closed"


def test_a_second_fault_joins_the_open_incident(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    ve.damage_directory()
    first = daemon.wait_for_incident("open")
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("again")
    wait_until(lambda: daemon.incidents("ve101")[0]["events"] > first["events"])
    assert len(daemon.incidents("ve101")) == 1


def test_a_preview_changes_no_byte(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    ve.damage_directory()
    daemon.wait_for_incident("open")
    before = ve.inode
    answer = daemon.client.post("/v1/repair", {"target": "ve101", "dry_run": True})
    assert not answer["clean"]
    assert answer["curable"]
    assert "lost+found" in answer["output"] or "fixed" in answer["would_do"]
    assert ve.inode == before
    assert [path for path in ve.image.parent.iterdir() if path != ve.image] == []
    assert ve.wait_for_write()


def test_root_may_ask_for_a_repair_in_any_mode(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    ve.damage_directory()
    daemon.wait_for_incident("open")
    daemon.client.post("/v1/repair", {"target": "ve101"})
    assert daemon.wait_for_incident("closed")["outcome"] == "repaired"


def test_a_stopped_ve_can_be_repaired_too(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    ve.damage_directory()
    ve.kill()
    wait_until(lambda: daemon.incidents("ve101")[0]["waiting_for"] == "mount", 30)
    before = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    wait_until(lambda: ve.inode != before, 30, "the exchange")
    assert ve.wait_for_write()
    assert ve.lost()[0] == []


def test_a_stopped_ve_that_is_whole_stays_stopped(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, mode="observe")
    ve.kill()
    before = ve.inode
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "false-alarm", daemon.why(incident["id"])
    assert (ve.inode, cgroup.pids(ve.cgroup)) == (before, [])
    assert not list(ve.image.parent.glob(f"{ve.image.name}.*"))


def test_the_bystander_is_not_held_up(daemon, make_ve) -> None:
    """Its longest pause while the other one is repaired, beside its longest pause before."""
    ve, bystander = make_ve(), make_ve("ve102")
    start(daemon, ve, bystander)
    begin = time.monotonic_ns()
    assert bystander.wait_for_write()
    wait_until(lambda: time.monotonic_ns() - begin > 1_000_000_000)
    damaged = time.monotonic_ns()
    ve.damage_directory()
    daemon.wait_for_incident("closed")
    acks = [moment for moment in bystander.record.acks if moment > damaged]
    gaps = [later - earlier for earlier, later in pairwise(acks)]
    assert bystander.record.write_errors == []
    assert max(gaps) < 1_000_000_000


def test_a_state_disk_that_fills_up_while_the_ve_is_down(daemon, make_ve, work) -> None:
    """Nothing can be recorded any more: the VE gets its original back."""
    state = work / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(state)], check=True)
    ve = make_ve(before={"kill": f"cat /dev/zero > {state}/full"})
    start(daemon, ve)
    before = ve.inode
    ve.damage_directory()
    wait_until((state / "full").exists, 30, "the kill")
    assert ve.wait_for_write(30), "the VE was left stopped"
    assert ve.inode == before


class Outsider:
    """Writers outside the VE (nfsd, cron jobs): whoever kills the VE does not reach them.

    Each is a process of its own: what one process has open again and again is waited for.
    """

    def __init__(self, pid: int) -> None:
        self._directory = f"/proc/{pid}/root/work"
        self.acked: list[str] = []
        self._thread = threading.Thread(target=self._write_for_ever)
        self._thread.start()

    def _write_for_ever(self) -> None:
        for number in range(1_000_000):
            name = f"outside-{number:06d}"
            argv = ["dd", f"of={self._directory}/{name}", "conv=fsync", "status=none"]
            if subprocess.run(argv, input=inside.content(name), check=False).returncode != 0:
                return  # the VE is gone, or its filesystem is
            self.acked.append(name)

    def wait(self) -> list[str]:
        """What it was told is on the disk, once it has ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.acked


def test_nobody_outside_the_ve_gets_an_acknowledgement_for_what_is_put_aside(
    daemon, make_ve
) -> None:
    """Blocked by the freeze, it goes on after the thaw: on the image that is about to be kept."""
    ve = make_ve()
    start(daemon, ve)
    outsider = Outsider(cgroup.pids(ve.cgroup)[0])
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    acked = outsider.wait()
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert "writers wait for us" in daemon.why(incident["id"])
    assert "stale" not in daemon.why(incident["id"])
    assert acked
    contents = ve.manifest()
    lost = [
        name for name in acked if hashlib.sha256(inside.content(name)).hexdigest() not in contents
    ]
    assert lost == []
    assert ve.lost() == ([], [])


def test_a_loop_device_that_counts_no_writes_is_stopped_before_it_is_cloned(
    daemon, make_ve
) -> None:
    """Whether a clone is stale could not be told: it is made of the image that stands still."""
    ve = make_ve()
    start(daemon, ve)
    before = ve.inode
    queue = Path(f"/sys/block/{os.path.basename(ve.device)}/queue/iostats")
    queue.write_text("0")
    try:
        ve.damage_directory()
        incident = daemon.wait_for_incident("closed", "needs-operator")
    finally:
        queue.write_text("1")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert "the VE is stopped" in daemon.why(incident["id"])
    assert ve.inode != before
    assert ve.lost() == ([], [])


def test_what_never_reached_the_disk_is_copied_out_and_nothing_else(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve)
    init = cgroup.pids(ve.cgroup)[0]
    content = inside.content("unsynced")
    Path(f"/proc/{init}/root/work/unsynced").write_bytes(content)
    ve.ask("abort")
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    salvaged = ve.image.with_name(f"{ve.image.name}.salvaged-{incident['id']}")
    (copy,) = salvaged.glob("*-unsynced")
    assert copy.read_bytes() == content
    on_disk = ve.manifest()
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in salvaged.iterdir()]
    assert [digest for digest in digests if digest in on_disk] == []
