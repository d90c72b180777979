"""`fswatch freeze`, `thaw` and `snapshot` on a real VE: what is held, and that it always ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.exitcode import Exit
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve, VeId
from fswatchd.kernel import cgroup, fs, loop, proc
from fswatchd.repair.ve_freeze import VeFreeze
from tests.system import rules
from tests.system.conftest import fswatch, wait_until
from tests.system.test_engines import Podman, podman_only
from tests.system.test_lxc import Container

LONG_S = 60.0


@pytest.fixture
def ve(daemon, make_ve):
    made = make_ve()
    daemon.configure(mode="observe", rules=rules.TELL)
    made.declare()
    made.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    return made


@pytest.fixture
def root(ve) -> Iterator[int]:
    """A descriptor on the VE's filesystem, for questions that no path answers."""
    (pid, *_) = [p for p in cgroup.pids(ve.cgroup) if proc.is_container_init(p)]
    fd = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def freeze(daemon, *more: str) -> dict:
    done = fswatch(daemon, "freeze", "ve101", "--json", *more)
    assert done.returncode == Exit.OK, done.stderr
    return dict(json.loads(done.stdout))


def is_held(ve, root: int) -> bool:
    return cgroup.is_frozen(ve.cgroup) and fs.is_frozen(root)


def is_free(ve, root: int) -> bool:
    return not cgroup.is_frozen(ve.cgroup) and not fs.is_frozen(root)


def the_ve(daemon) -> dict:
    return next(v for v in daemon.status()["ves"] if v["name"] == "ve101")


def guards_of(daemon) -> list[int]:
    found = []
    for pid in proc.children(daemon.pid):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"helpers.guard" in line or b"helpers.task_guard" in line:
            found.append(pid)
    return found


def test_a_frozen_ve_writes_nothing_until_it_is_thawed(daemon, ve, root: int) -> None:
    document = freeze(daemon, "--reason", "copy of the disk", "--for", "10m")
    assert is_held(ve, root)
    before = len(ve.record.acked)
    assert not ve.wait_for_write(1)
    assert len(ve.record.acked) <= before + 1  # one may have been on its way
    assert (document["state"], document["by"]) == ("frozen", "root")
    assert [one["device"] for one in document["filesystems"]] == [os.path.basename(ve.device)]
    shown = the_ve(daemon)
    assert shown["state"] == "frozen"
    assert shown["busy"].startswith("frozen by root until ")
    assert "frozen: declared:ve101" in fswatch(daemon, "status").stdout
    done = fswatch(daemon, "thaw", "ve101", "--json", "--reason", "done")
    assert (done.returncode, json.loads(done.stdout)["held"]) == (Exit.OK, True)
    assert is_free(ve, root)
    assert ve.wait_for_write(LONG_S)
    assert (the_ve(daemon)["state"], the_ve(daemon)["busy"]) == ("running", None)
    assert daemon.status()["frozen"] == []
    told = [(o["what"], o["by"], o["reason"]) for o in daemon.status()["operations"]]
    assert told == [("freeze", "root", "copy of the disk"), ("thaw", "root", "done")]
    daemon.stop()
    daemon.start()
    assert len(daemon.status()["operations"]) == 2
    assert guards_of(daemon) == []


def test_the_death_of_the_daemon_thaws(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    daemon.kill()
    assert ve.wait_for_write(LONG_S)
    wait_until(lambda: is_free(ve, root), LONG_S, "the thaw")
    daemon.start()
    assert the_ve(daemon)["busy"] is None


def test_a_service_stop_thaws(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    daemon.stop()
    assert is_free(ve, root)


def test_a_freeze_ends_at_its_deadline(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "1s")
    wait_until(lambda: is_free(ve, root), LONG_S, "the thaw")
    assert ve.wait_for_write(LONG_S)
    wait_until(lambda: daemon.status()["frozen"] == [], LONG_S)
    wait_until(lambda: the_ve(daemon)["busy"] is None, LONG_S)
    wait_until(
        lambda: daemon.status()["operations"][-1]["result"] == "thawed, its time was over", LONG_S
    )


def test_a_freeze_ends_at_its_deadline_also_while_the_daemon_hangs(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "1s")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        assert ve.wait_for_write(LONG_S)
        wait_until(lambda: is_free(ve, root), LONG_S, "the thaw")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_killed_together_with_all_guards_the_next_start_thaws(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    os.kill(daemon.pid, signal.SIGSTOP)
    killed = guards_of(daemon)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    daemon.kill()
    assert len(killed) == 2
    assert is_held(ve, root)
    daemon.start()
    wait_until(lambda: is_free(ve, root), LONG_S, "the thaw")
    assert ve.wait_for_write(LONG_S)


def test_a_guard_that_is_killed_leaves_nothing_frozen(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    for pid in guards_of(daemon):
        os.kill(pid, signal.SIGKILL)
    done = fswatch(daemon, "thaw", "ve101")
    assert done.returncode in {Exit.OK, Exit.WARNING}, done.stderr
    assert is_free(ve, root)


def test_what_somebody_else_has_thawed_is_told(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    fs.thaw(root)
    done = fswatch(daemon, "thaw", "ve101")
    assert done.returncode == Exit.WARNING
    assert "somebody else has thawed it" in done.stdout
    assert is_free(ve, root)


def test_nothing_else_is_done_to_a_frozen_ve(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    for command in (["repair", "ve101"], ["freeze", "ve101"]):
        done = fswatch(daemon, *command)
        assert done.returncode == Exit.WARNING
        assert "frozen by root until" in done.stderr
    assert is_held(ve, root)
    assert daemon.incidents("ve101") == []


def test_a_freeze_of_somebody_else_is_let_alone(daemon, ve, root: int) -> None:
    assert cgroup.freeze(ve.cgroup, 5)
    done = fswatch(daemon, "freeze", "ve101")
    assert (done.returncode, "not by fswatchd" in done.stderr) == (Exit.WARNING, True)
    done = fswatch(daemon, "thaw", "ve101")
    assert (done.returncode, "not frozen by fswatchd" in done.stderr) == (Exit.WARNING, True)
    assert cgroup.is_frozen(ve.cgroup)
    assert cgroup.thaw(ve.cgroup, 5)
    fs.freeze(root)
    done = fswatch(daemon, "freeze", "ve101")
    assert done.returncode == Exit.WARNING
    assert fs.is_frozen(root)
    assert not cgroup.is_frozen(ve.cgroup)
    fs.thaw(root)
    assert ve.wait_for_write(LONG_S)


def test_while_disarmed_nothing_is_frozen_or_copied(daemon, ve, root: int) -> None:
    daemon.client.post("/v1/disarm", {"reason": "move of the storage"})
    for command in ("freeze", "snapshot"):
        done = fswatch(daemon, command, "ve101")
        assert done.returncode == Exit.WARNING
        assert "move of the storage" in done.stderr
    assert is_free(ve, root)
    assert copies(ve) == []


def test_what_was_frozen_before_a_disarm_can_be_thawed(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    daemon.client.post("/v1/disarm", {"reason": "x"})
    assert fswatch(daemon, "thaw", "ve101").returncode == Exit.OK
    assert is_free(ve, root)


@pytest.mark.parametrize(
    "arguments",
    [
        ["freeze", "ve999"],
        ["freeze", "/"],
        ["freeze", "ve101", "--for", "soon"],
        ["freeze", "ve101", "--for", "2h"],
        ["freeze", "ve101", "--for", "0s"],
        ["thaw", "ve999"],
        ["snapshot", "ve999"],
        ["snapshot", "/dev/nonsense"],
    ],
)
def test_what_does_not_exist_or_makes_no_sense_is_64(daemon, ve, root, arguments) -> None:
    done = fswatch(daemon, *arguments)
    assert done.returncode == Exit.USAGE, done.stderr
    assert is_free(ve, root)


def test_the_nodes_own_are_never_held_or_copied(daemon, ve, host: Path) -> None:
    done = fswatch(daemon, "snapshot", str(host))
    assert done.returncode == Exit.WARNING
    assert "no snapshot" in done.stderr
    # Somebody has declared the daemon's own cgroup as a VE.
    group = f"/{daemon.work.name}-own"
    directory = cgroup.hierarchies()[0] / group.lstrip("/")
    before = proc.cgroups(daemon.pid)[""]
    directory.mkdir()
    try:
        (directory / "cgroup.procs").write_text(str(daemon.pid))
        (daemon.work / "ve.d" / "own.toml").write_text(
            f'[[ve]]\nname = "own"\ncgroup = "{group}"\n'
        )
        wait_until(lambda: any(v["name"] == "own" for v in daemon.status()["ves"]))
        done = fswatch(daemon, "freeze", "own")
        assert done.returncode == Exit.WARNING, done.stdout
        assert "the node's own" in done.stderr
        assert not cgroup.is_frozen(group)
    finally:
        (cgroup.hierarchies()[0] / before.lstrip("/") / "cgroup.procs").write_text(str(daemon.pid))
        for pid in cgroup.pids(group):  # its helpers
            (cgroup.hierarchies()[0] / "cgroup.procs").write_text(str(pid))
        directory.rmdir()


def test_a_filesystem_that_the_node_uses_too_is_named_and_left_alone(
    daemon, ve, root: int, work: Path
) -> None:
    """The same filesystem mounted once more, by somebody who is no VE."""
    sleeper = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount {ve.device} {work}/ve.d && exec sleep 1000"]
    )
    try:
        device = os.path.basename(ve.device)
        wait_until(lambda: f" {work}/ve.d " in Path(f"/proc/{sleeper.pid}/mountinfo").read_text())
        document = freeze(daemon)
        assert document["filesystems"] == []
        assert [one["device"] for one in document["not_frozen"]] == [device]
        assert not fs.is_frozen(root)
        assert cgroup.is_frozen(ve.cgroup)
        assert fswatch(daemon, "thaw", "ve101").returncode == Exit.OK
        done = fswatch(daemon, "snapshot", "ve101")
        assert done.returncode != Exit.OK
        assert copies(ve) == []
    finally:
        sleeper.kill()
        sleeper.wait()


def copies(ve) -> list[Path]:
    return [path for path in ve.image.parent.iterdir() if ".snapshot-" in path.name]


def check_copy(copy: Path, acked: list[str]) -> None:
    done = subprocess.run(["e2fsck", "-fn", copy], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /work", copy], capture_output=True, text=True, check=True
    ).stdout
    assert acked
    assert all(os.path.basename(path) in listing for path in acked)


@pytest.mark.parametrize("target", ["ve101", "device"])
def test_a_snapshot_has_everything_that_was_acknowledged(daemon, ve, root, target: str) -> None:
    acked = list(ve.record.acked)
    named = ve.device if target == "device" else target
    done = fswatch(daemon, "snapshot", named, "--reason", "before the upgrade")
    assert done.returncode == Exit.OK, done.stderr
    (copy,) = copies(ve)
    assert str(copy) in done.stdout
    assert f"rm {copy}" in done.stdout
    assert is_free(ve, root)
    assert ve.wait_for_write(LONG_S)
    check_copy(copy, acked)
    (told,) = daemon.status()["operations"]
    assert (told["what"], told["by"], told["reason"]) == ("snapshot", "root", "before the upgrade")
    assert the_ve(daemon)["busy"] is None


def test_what_is_frozen_is_copied_as_it_stands(daemon, ve, root: int) -> None:
    freeze(daemon, "--for", "10m")
    done = fswatch(daemon, "snapshot", "ve101", "--json")
    assert done.returncode == Exit.OK, done.stderr
    document = json.loads(done.stdout)
    assert document["image"] == str(ve.image)
    assert document["bytes"] == ve.image.stat().st_size
    assert is_held(ve, root)
    check_copy(Path(document["path"]), list(ve.record.acked))
    assert fswatch(daemon, "thaw", "ve101").returncode == Exit.OK


def test_no_snapshot_without_room_for_the_reserve(daemon, make_ve) -> None:
    ve = make_ve()
    daemon.configure(rules=rules.TELL, more='[repair]\nreserve = "900G"\n')
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    done = fswatch(daemon, "snapshot", "ve101")
    assert done.returncode == Exit.WARNING
    assert "no room" in done.stderr
    assert copies(ve) == []
    assert ve.wait_for_write(LONG_S)


def test_a_stopped_ve_is_copied_and_neither_frozen_nor_thawed(daemon, ve) -> None:
    acked = list(ve.record.acked)
    ve.kill()
    wait_until(lambda: the_ve(daemon)["state"] == "stopped", LONG_S)
    wait_until(lambda: loop.holders(*ve.inode) == [], LONG_S)
    wait_until(lambda: not the_ve(daemon)["filesystems"], LONG_S)
    assert fswatch(daemon, "freeze", "ve101").returncode == Exit.WARNING
    done = fswatch(daemon, "snapshot", "ve101")
    assert done.returncode == Exit.OK, done.stderr
    (copy,) = copies(ve)
    # As it was left by a kill: whole after its journal was replayed.
    argv = ["e2fsck", "-fy", "-E", "journal_only", copy]
    subprocess.run(argv, capture_output=True, check=False)
    check_copy(copy, acked)


async def test_an_image_in_an_image_is_frozen_before_the_one_that_it_is_on(work: Path) -> None:
    """The other way round it could not be flushed, and would wait for the deadline."""
    points = [work / "outer", work / "inner"]
    images = [work / "outer.img", points[0] / "inner.img"]
    for image, point, size in zip(images, points, (128 << 20, 32 << 20), strict=True):
        point.mkdir(exist_ok=True)
        with image.open("xb") as file:
            file.truncate(size)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
    (points[1] / "dirty").write_bytes(b"x" * (1 << 20))
    group = f"/{work.name}-ve"
    directory = cgroup.hierarchies()[0] / group.lstrip("/")
    directory.mkdir()
    sleeper = subprocess.Popen(["sleep", "1000"])
    (directory / "cgroup.procs").write_text(str(sleeper.pid))
    ve = Ve(
        ve_id=VeId("declared:x"), platform="declared", native_id="x", name="x",
        state=VeState.RUNNING, cgroup=group,
    )  # fmt: skip
    inventory, hold = Inventory([]), VeFreeze()
    fds = [os.open(point, os.O_RDONLY) for point in points]
    try:
        await inventory.refresh()
        outer, inner = (inventory.view.superblocks[Devno.of(os.fstat(fd).st_dev)] for fd in fds)
        begun = time.monotonic()
        assert await hold.hold(inventory, ve, [outer, inner], 100.0) == {}
        assert time.monotonic() - begun < 50
        assert [one.device for one in hold.filesystems] == [inner.device, outer.device]
        assert all(fs.is_frozen(fd) for fd in fds)
        assert await hold.still_held()
        assert await hold.thaw() == []
        assert not any(fs.is_frozen(fd) for fd in fds)
        assert not cgroup.is_frozen(group)
    finally:
        await hold.thaw()
        for fd in fds:
            os.close(fd)
        sleeper.kill()
        sleeper.wait()
        await inventory.close()


@pytest.mark.skipif(shutil.which("lxc-freeze") is None, reason="LXC is not installed")
def test_an_lxc_container_is_frozen_by_its_own_command(daemon, host: Path, work: Path) -> None:
    container = Container(work, host, "lxc")
    try:
        daemon.configure(rules=rules.TELL)
        container.start()
        daemon.start()
        daemon.wait_until_known(container.name)
        before = lxc_state(container)
        done = fswatch(daemon, "freeze", container.name, "--json")
        assert done.returncode == Exit.OK, done.stderr
        assert json.loads(done.stdout)["tasks"].startswith("lxc-freeze -n ")
        assert len(json.loads(done.stdout)["filesystems"]) == 1
        assert (before, lxc_state(container)) == ("RUNNING", "FROZEN")
        daemon.kill()
        wait_until(lambda: lxc_state(container) == "RUNNING", LONG_S, "the thaw")
        size = (container.exchange / "acked").stat().st_size
        wait_until(lambda: (container.exchange / "acked").stat().st_size > size, LONG_S)
        daemon.start()
    finally:
        container.destroy()


def lxc_state(container: Container) -> str:
    argv = ["lxc-info", "-n", container.name, "-P", str(container._path), "-s", "-H"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@podman_only
def test_a_podman_container_is_shown_as_paused(daemon, work: Path) -> None:
    podman = Podman(work)
    name = f"{work.name}-pod"
    try:
        daemon.configure(rules=rules.TELL)
        podman.start(name)
        daemon.start()
        wait_until(lambda: any(v["name"] == name for v in daemon.status()["ves"]), LONG_S)
        document = json.loads(fswatch(daemon, "freeze", name, "--json").stdout)
        assert document["tasks"].startswith("podman pause ")
        assert podman.run("inspect", "--format", "{{.State.Status}}", name) == "paused"
        assert fswatch(daemon, "thaw", name).returncode == Exit.OK
        assert podman.run("inspect", "--format", "{{.State.Status}}", name) == "running"
    finally:
        podman.close()
