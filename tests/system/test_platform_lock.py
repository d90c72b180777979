"""A VE is locked at its platform from before it is stopped until it runs again."""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.kernel import cgroup
from tests.system import rules
from tests.system.conftest import DaemonUnderTest, fswatch, wait_until
from tests.system.test_crash import KEPT, nothing_left
from tests.system.ves import MiniVe

LONG_S = 120.0


def begin(daemon: DaemonUnderTest, ve: MiniVe, more: str = "", strategy: str = "clone") -> None:
    daemon.configure(rules=rules.repair(strategy))
    ve.declare()
    path = daemon.work / "ve.d" / f"{ve.name}.toml"
    path.write_text(path.read_text() + more)
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)


def repaired(daemon: DaemonUnderTest, ve: MiniVe) -> None:
    incident = daemon.wait_for_incident("closed", "needs-operator", timeout_s=LONG_S)
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.wait_for_write(60)
    assert ve.lost() == ([], [])


def as_it_was(ve: MiniVe) -> object:
    return (ve.inode, set(cgroup.pids(ve.cgroup)))


# --- a file that the platform's tools flock ---------------------------------------------------


@pytest.mark.parametrize("strategy", ["clone", "offline"])
def test_a_lock_file_is_held_while_the_ve_is_down_and_free_when_it_starts(
    daemon, make_ve, work: Path, strategy: str
) -> None:
    lock, held, free = work / "ve.lck", work / "held", work / "free"
    noticed = f"flock -n {lock} true || touch {held}"
    ve = make_ve(
        before={
            "stop": noticed,
            "kill": noticed,
            "start": f"flock -w 20 {lock} true && touch {free}",
        }
    )
    begin(daemon, ve, f'lock = "{lock}"\n', strategy)
    ve.damage_directory()
    repaired(daemon, ve)
    assert held.exists()
    assert free.exists()
    assert subprocess.run(["flock", "-n", lock, "true"], check=False).returncode == 0


def test_who_has_the_lock_is_waited_for_and_nothing_is_done(daemon, make_ve, work: Path) -> None:
    lock = work / "ve.lck"
    ve = make_ve()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begin(daemon, ve, f'lock = "{lock}"\n')
        before = as_it_was(ve)
        ve.damage_directory()
        incident = daemon.wait_for_incident("waiting", "closed", "needs-operator", timeout_s=LONG_S)
        assert incident["waiting_for"] == "busy", daemon.why(incident["id"])
        assert f"somebody has locked {lock}" in daemon.why(incident["id"])
        assert as_it_was(ve) == before
        assert ve.wait_for_write(60)
        nothing_left(ve)
    daemon.client.post("/v1/disarm", {"target": "ve101", "reason": "look again"})
    daemon.client.post("/v1/arm", {"target": "ve101"})
    repaired(daemon, ve)


def test_a_lock_file_goes_with_the_daemon(daemon, make_ve, work: Path) -> None:
    lock, flag = work / "ve.lck", work / "began"
    ve = make_ve(before={"kill": f"test -e {flag} || {{ touch {flag}; sleep 3; }}"})
    begin(daemon, ve, f'lock = "{lock}"\n')
    ve.damage_directory()
    wait_until(flag.exists, LONG_S, "the kill to begin")
    assert subprocess.run(["flock", "-n", lock, "true"], check=False).returncode == 1
    daemon.kill()
    wait_until(
        lambda: subprocess.run(["flock", "-n", lock, "true"], check=False).returncode == 0, 60
    )
    daemon.start()
    repaired(daemon, ve)
    nothing_left(ve, KEPT)


# --- the lock of a Proxmox container, played by programs that are first in PATH ---------------

# What it answers, and when it refuses: pve-container, src/PVE/API2/LXC/Status.pm (vm_start,
# vm_stop), src/PVE/API2/LXC/Config.pm (update_vm), src/PVE/CLI/pct.pm (unlock); and
# pve-guest-common, src/PVE/AbstractConfig.pm (check_lock, remove_lock).
PCT = r"""#!/bin/sh
conf={conf}
lock=$(sed -n 's/^lock: //p' $conf)
echo "pct $*" >> {log}
refuse() {{ echo "CT is locked ($lock)"; exit 255; }}
[ "$2" = 101 ] || exit 2
case "$1 $3" in
"set --lock")
    [ -z "$lock" ] || refuse
    [ ! -e {taken} ] || {{ lock=backup; refuse; }}
    echo "lock: $4" >> $conf
    if [ -e {slow} ]; then touch {began}; exec sleep 1000; fi ;;
"unlock ")
    [ -n "$lock" ] || {{ echo "no lock found trying to remove any lock"; exit 255; }}
    sed -i '/^lock: /d' $conf ;;
"start "|"stop ") [ -z "$lock" ] || refuse; exec {tool} "$1" ;;
"start --skiplock"|"stop --skiplock") exec {tool} "$1" ;;
*) exit 2 ;;
esac
"""
# It is imported by the daemon's interpreter before anything else.
PLAYED = """
import os
from dataclasses import replace
from fswatchd import process
from fswatchd.platforms import declared, proxmox, proxmox_config
process.ENVIRONMENT["PATH"] = {bin!r} + ":" + process.ENVIRONMENT["PATH"]
build = declared.build
async def as_in_proxmox(one, platform):
    with open({conf!r}) as file:
        text = proxmox_config.read_config(file.read())
    told = proxmox.describe("101", text, {{}}, file={conf!r})
    return replace(
        await build(one, platform), commands=told.commands, lock=told.lock, busy=told.busy
    )
declared.build = as_in_proxmox
"""


class Played:
    """A container 101 of Proxmox that is a MiniVe, its `pct` and its configuration."""

    def __init__(self, daemon: DaemonUnderTest, ve: MiniVe) -> None:
        self.daemon, self.ve, work = daemon, ve, daemon.work
        self.conf, self.log = work / "101.conf", work / "pct.log"
        self.taken, self.slow, self.began = work / "taken", work / "slow", work / "began"
        self.conf.write_text("arch: amd64\nhostname: ve101\n")
        programs = work / "bin"
        programs.mkdir()
        (programs / "tool").write_text(self._tool())
        (programs / "lxc-stop").write_text(
            f'#!/bin/sh\necho "lxc-stop $*" >> {self.log}\nexec {programs}/tool lxc-stop\n'
        )
        values = {name: getattr(self, name) for name in ("conf", "log", "taken", "slow", "began")}
        (programs / "pct").write_text(PCT.format(tool=programs / "tool", **values))
        for program in programs.iterdir():
            program.chmod(0o755)
        site = work / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            PLAYED.format(bin=str(programs), conf=str(self.conf))
        )
        project = Path(__file__).parents[2]
        daemon.run_by = ["env", f"PYTHONPATH={site}:{project}"]

    def _tool(self) -> str:
        actions = {"start": "start", "stop": "kill", "lxc-stop": "stop"}
        lines = [
            f"{name}) {self.ve._before.get(action, ':')}\nexec {shlex.join(self._argv(action))} ;;"
            for name, action in actions.items()
        ]
        return "#!/bin/sh\ncase $1 in\n" + "\n".join(lines) + "\nesac\n"

    def _argv(self, action: str) -> list[str]:
        argv = self.ve.command(action)
        return argv if argv[0] == sys.executable else shlex.split(argv[2].splitlines()[-1])[1:]

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def lock(self) -> str | None:
        found = [s[6:] for s in self.conf.read_text().splitlines() if s.startswith("lock: ")]
        return found[0] if found else None


@pytest.fixture
def play(daemon, make_ve) -> Iterator[object]:
    def played(before: dict[str, str] | None = None, **options: object) -> Played:
        return Played(daemon, make_ve(before=before, **options))

    return played


TAKE, UNLOCK = "pct set 101 --lock disk", "pct unlock 101"
KILL, START = "pct stop 101 --skiplock 1", "pct start 101 --skiplock 1"


@pytest.mark.parametrize("strategy", ["clone", "offline"])
def test_it_is_locked_before_the_stop_and_unlocked_after_the_start(
    daemon, play, strategy: str
) -> None:
    container = play()
    begin(daemon, container.ve, strategy=strategy)
    container.ve.damage_directory()
    repaired(daemon, container.ve)
    stop = KILL if strategy == "clone" else "lxc-stop -n 101 -t 30"
    calls = [call for call in container.calls() if call != KILL or stop == KILL]
    assert calls == [TAKE, stop, START, UNLOCK]
    assert container.lock() is None
    (ve,) = [v for v in daemon.status()["ves"] if v["name"] == "ve101"]
    assert ve["busy"] is None


def test_a_lock_that_somebody_takes_in_that_moment_is_waited_for(daemon, play) -> None:
    container = play()
    container.taken.touch()
    begin(daemon, container.ve)
    before = as_it_was(container.ve)
    container.ve.damage_directory()
    incident = daemon.wait_for_incident("waiting", "closed", "needs-operator", timeout_s=LONG_S)
    assert incident["waiting_for"] == "busy", daemon.why(incident["id"])
    assert "CT is locked (backup)" in daemon.why(incident["id"])
    assert as_it_was(container.ve) == before
    assert set(container.calls()) == {TAKE}
    nothing_left(container.ve)
    container.taken.unlink()
    daemon.client.post("/v1/disarm", {"target": "ve101", "reason": "look again"})
    daemon.client.post("/v1/arm", {"target": "ve101"})
    repaired(daemon, container.ve)


def test_killed_while_the_ve_is_down_the_next_start_unlocks(daemon, play, work: Path) -> None:
    flag = work / "flag"
    container = play({"start": f"test -e {flag} || {{ touch {flag}; exec sleep 1000; }}"})
    begin(daemon, container.ve)
    container.ve.damage_directory()
    wait_until(flag.exists, LONG_S, "the start to begin")
    daemon.kill()
    assert container.lock() == "disk"
    daemon.start()
    repaired(daemon, container.ve)
    wait_until(lambda: container.lock() is None, 60, "the unlock")
    assert container.calls().count(TAKE) == 1
    assert container.calls()[-2:] == [START, UNLOCK]


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_killed_while_it_takes_the_lock_nobody_can_tell_whose_it_is(
    daemon, play, whose: str
) -> None:
    """A volume that is being moved has the very same lock: it stays, and a person is told."""
    container = play()
    container.slow.touch()
    begin(daemon, container.ve)
    before = as_it_was(container.ve)
    container.ve.damage_directory()
    wait_until(container.began.exists, LONG_S, "the lock")
    daemon.kill()
    container.slow.unlink()
    if whose == "theirs":  # ours had not been written yet
        text = container.conf.read_text()
        container.conf.unlink()
        container.conf.write_text(text)
    daemon.start()
    incident = daemon.wait_for_incident("needs-operator", "closed")
    assert f"take it away: {UNLOCK}" in daemon.why(incident["id"])
    assert (incident["state"], container.lock()) == ("needs-operator", "disk")
    assert set(container.calls()) == {TAKE}
    assert as_it_was(container.ve) == before
    nothing_left(container.ve)
    # The person looks, takes the lock away, and wants the repair.
    container.conf.write_text("arch: amd64\nhostname: ve101\n")
    assert fswatch(daemon, "repair", "ve101").returncode == 0
    repaired(daemon, container.ve)
    assert container.lock() is None


def test_killed_while_the_ve_is_down_a_lock_that_was_taken_since_is_let_alone(
    daemon, play, work: Path
) -> None:
    """An admin has unlocked it and moves its volume: what a VE writes meanwhile would be lost."""
    flag = work / "flag"
    container = play({"start": f"test -e {flag} || {{ touch {flag}; exec sleep 1000; }}"})
    begin(daemon, container.ve)
    container.ve.damage_directory()
    wait_until(flag.exists, LONG_S, "the start to begin")
    daemon.kill()
    container.conf.unlink()
    container.conf.write_text("arch: amd64\nhostname: ve101\nlock: disk\n")
    calls = container.calls()
    daemon.start()
    incident = daemon.wait_for_incident("needs-operator", "closed")
    assert (incident["state"], container.lock()) == ("needs-operator", "disk")
    assert f"take it away: {UNLOCK}" in daemon.why(incident["id"])
    assert container.calls() == calls


def test_a_lock_that_is_somebody_elses_by_now_is_let_alone(daemon, play) -> None:
    """An admin has taken ours away, and a backup has begun."""
    container = play({"start": "sed -i 's/^lock: disk/lock: backup/' CONF"})
    tool = daemon.work / "bin" / "tool"
    tool.write_text(tool.read_text().replace("CONF", str(container.conf)))
    begin(daemon, container.ve)
    container.ve.damage_directory()
    repaired(daemon, container.ve)
    assert container.lock() == "backup"
    assert UNLOCK not in container.calls()


def test_a_lock_that_cannot_be_given_back_is_a_matter_for_a_person(daemon, play) -> None:
    container = play()
    pct = daemon.work / "bin" / "pct"
    refused = 'echo "unable to open file"; exit 255'
    pct.write_text(pct.read_text().replace("sed -i '/^lock: /d' $conf", refused))
    begin(daemon, container.ve)
    container.ve.damage_directory()
    incident = daemon.wait_for_incident("needs-operator", "closed", timeout_s=LONG_S)
    assert incident["state"] == "needs-operator"
    assert f"stays locked: {UNLOCK}" in daemon.why(incident["id"])
    assert container.ve.wait_for_write(60)
