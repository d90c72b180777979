"""Who is killed when a VE is killed: its own processes, and nobody who got a number of theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.events import VeState
from fswatchd.inventory.model import NamespaceKey, Ve, VeId
from fswatchd.kernel import mounts, proc
from fswatchd.platforms import declared
from fswatchd.repair import ve_control
from tests.system.conftest import wait_until

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Processes in mount namespaces of their own, ended by the test."""
    started: list[subprocess.Popen[bytes]] = []

    def make(*argv: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([*(argv or ("unshare", "-m")), "sleep", "1000"])
        started.append(child)
        wait_until(lambda: proc.command_name(child.pid) == "sleep", what="the sleep")
        return child

    yield make
    for child in started:
        child.kill()
        child.wait()


def ve_of(child: subprocess.Popen[bytes]) -> Ve:
    inode, namespace_id = mounts.namespace_of(child.pid) or (0, None)
    return Ve(
        ve_id=VeId("declared:x"),
        platform="declared",
        native_id="x",
        name="x",
        state=VeState.RUNNING,
        init_pid=child.pid,
        init_started=proc.start_time(child.pid),
        namespace=NamespaceKey(inode),
        namespace_id=namespace_id,
    )


def joined(child: subprocess.Popen[bytes]) -> tuple[str, ...]:
    return ("nsenter", "-m", "-t", str(child.pid))


@pytest.mark.parametrize("with_id", [True, False])
def test_all_of_the_namespace_are_killed(spawn: Spawn, with_id: bool) -> None:
    init = spawn()
    other = spawn(*joined(init))
    ve = ve_of(init) if with_id else replace(ve_of(init), namespace_id=None)
    assert ve_control.is_running(ve)
    ve_control.send_kill(ve)
    assert (init.wait(5), other.wait(5)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert not ve_control.is_running(ve)


def test_who_outlives_init_in_the_namespace_is_still_told(spawn: Spawn) -> None:
    init = spawn()
    other = spawn(*joined(init))
    ve = ve_of(init)
    init.kill()
    init.wait()
    assert ve_control.tasks(ve) == [other.pid]


@pytest.mark.parametrize("with_id", [True, False])
def test_a_bystander_with_the_inode_of_a_ve_that_ended_is_left_alone(
    spawn: Spawn, with_id: bool
) -> None:
    init = spawn()
    ve = ve_of(init)
    init.kill()
    init.wait()
    bystander = spawn()
    # The kernel gives it the same inode most of the time; make sure that it has.
    ve = replace(ve, namespace=ve_of(bystander).namespace)
    ve = ve if with_id else replace(ve, namespace_id=None)
    assert not ve_control.is_running(ve)
    ve_control.send_kill(ve)
    assert bystander.poll() is None
    assert ve_control.tasks(ve) == []


@pytest.mark.parametrize("what", ["init", "namespace"])
def test_the_nodes_own_processes_are_never_killed(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    ve = ve_of(spawn())
    if what == "init":
        ve = replace(ve, init_pid=1, init_started=proc.start_time(1))
    else:
        inode, namespace_id = mounts.namespace_of(os.getpid()) or (0, None)
        ve = replace(ve, namespace=NamespaceKey(inode), namespace_id=namespace_id)
    with pytest.raises(ve_control.WrongTargetError):
        ve_control.send_kill(ve)
    assert killed == []


def test_a_pid_file_is_believed_about_who_was_there_before_it(spawn: Spawn, work: Path) -> None:
    child = spawn()
    path = work / "pid"
    path.write_text(f"{child.pid}\n")
    assert declared.read_pid_file(str(path)) == child.pid


def test_a_program_may_write_its_own_pid_file_at_once(work: Path) -> None:
    path = work / "pid"
    for _ in range(20):
        child = subprocess.Popen(["sh", "-c", f"echo $$ > {path}; exec sleep 1000"])
        try:
            wait_until(lambda pid=child.pid: path.exists() and path.read_text() == f"{pid}\n")
            assert declared.read_pid_file(str(path)) == child.pid
        finally:
            child.kill()
            child.wait()


def test_a_pid_file_that_is_older_than_the_process_is_stale(spawn: Spawn, work: Path) -> None:
    path = work / "pid"
    path.write_text("")
    before = time.time() - 1
    child = spawn()
    path.write_text(f"{child.pid}\n")
    os.utime(path, (before, before))
    assert declared.read_pid_file(str(path)) is None


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1", "999999999"])
def test_what_is_no_pid_of_a_ve(work: Path, text: str) -> None:
    path = work / "pid"
    path.write_text(text)
    assert declared.read_pid_file(str(path)) is None
