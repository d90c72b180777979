"""A data volume is exchanged under a VE that goes on, where its declaration says how."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.drill import inside, measure
from fswatchd.kernel import block, cgroup, fs, loop
from tests.system import data_volume, killed_at, rules
from tests.system.conftest import wait_until
from tests.system.ves import MiniVe

REPAIR = "fswatchd.repair"
FILES = [f"/victim/file-{n:03d}" for n in range(100)]


class DataVolume:
    """One of a VE, mounted in it at /srv, where a service writes."""

    def __init__(self, ve: MiniVe, work: Path, options: str, fstype: str) -> None:
        self.ve = ve
        self.image = ve.image.with_name("data.img")
        self._work = work
        self._path = work / "data.json"
        self.spec = data_volume.Spec(
            image=str(self.image),
            cgroup=ve.cgroup,
            options=options,
            acked=str(work / "acked"),
            service=str(work / "service.pid"),
            fstype=fstype,
        )
        tree = work / "tree-data"
        for path in FILES:
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(inside.content(path))
        with self.image.open("xb") as file:
            file.truncate(320 << 20)
        if fstype == "ext4":
            argv = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, self.image]
            subprocess.run(argv, check=True)
        else:
            subprocess.run([f"mkfs.{fstype}", "-q", self.image], check=True)
            point = work / "copy"
            point.mkdir()
            subprocess.run(["mount", "-o", "loop", self.image, point], check=True)
            subprocess.run(["cp", "-a", f"{tree}/.", point], check=True)
            subprocess.run(["umount", point], check=True)
        data_volume.write(self.spec, self._path)

    def declare(self, *, hot: bool = True) -> None:
        """With the VE, for the daemon."""
        volume = f'image = "{self.image}", mountpoint = "{data_volume.POINT}"'
        if hot:
            for action in ("detach", "attach"):
                volume += f", {action} = {json.dumps(data_volume.command(action, self._path))}"
        before = 'mountpoint = "/" }]'
        text = self.ve.declaration()
        assert before in text
        text = text.replace(before, f'mountpoint = "/" }}, {{ {volume} }}]')
        directory = self._work / "ve.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{self.ve.name}.toml").write_text(text)

    def change(self, **spec: Any) -> None:
        """What its commands do from now on."""
        data_volume.write(replace(self.spec, **spec), self._path)

    def run(self, action: str) -> None:
        """As its admin would."""
        subprocess.run(data_volume.command(action, self._path), check=True, timeout=60)

    @property
    def inode(self) -> tuple[Devno, int]:
        """(device, inode) of the file that has the image's name now."""
        status = self.image.stat()
        return Devno.of(status.st_dev), status.st_ino

    def damage(self) -> None:
        """Random bytes over the block of a directory, and somebody who looks at it."""
        (device,) = loop.holders(*self.inode)
        done = subprocess.run(
            ["debugfs", "-R", "blocks /victim", device], check=True, capture_output=True, text=True
        )
        fd = os.open(device, os.O_RDWR)
        try:
            os.pwrite(fd, os.urandom(4096), int(done.stdout.split()[0]) * 4096)
            os.fsync(fd)
        finally:
            os.close(fd)
        block.drop_buffers(device)
        self.ve.ask("list", path=f"{data_volume.POINT}/victim")

    def acked(self) -> list[str]:
        """What the service has synced."""
        return Path(self.spec.acked).read_text().split()

    def writes(self) -> None:
        """Wait until the service has synced something after now."""
        before = len(self.acked())
        wait_until(lambda: len(self.acked()) > before, what="the service to write")

    def lost(self) -> list[str]:
        """Files whose content is nowhere any more."""
        names = [*FILES, *self.acked()]
        answers = self.ve.ask("manifest", path=data_volume.POINT)
        there = {a["digest"] for a in answers if "digest" in a} | measure.salvaged(self.image)
        return [name for name in names if measure.digest(name) not in there]


@pytest.fixture
def make_data(make_ve, work: Path) -> Callable[..., DataVolume]:
    def make(
        options: str = "errors=continue", *, hot: bool = True, fstype: str = "ext4"
    ) -> DataVolume:
        data = DataVolume(make_ve(), work, options, fstype)
        data.ve.start()
        data.run("attach")
        data.declare(hot=hot)
        return data

    return make


def begin(daemon: Any) -> None:
    # Where the volume does not come back this is what is waited for.
    daemon.configure(rules=rules.repair(), more='[repair]\nstart_timeout = "5s"\n')
    daemon.start()
    daemon.wait_until_known("ve101")


def processes(data: DataVolume) -> set[int]:
    """The VE's own, without the service."""
    service = int(Path(data.spec.service).read_text())
    return {pid for pid in cgroup.pids(data.ve.cgroup) if pid != service}


@pytest.mark.parametrize("options", ["errors=continue", "errors=remount-ro"])
def test_it_is_repaired_and_its_ve_goes_on(daemon, make_data, options: str) -> None:
    data = make_data(options)
    begin(daemon)
    before, init = data.inode, processes(data)
    data.writes()
    data.damage()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert incident["outcome"] == "repaired", why
    assert "goes on without /srv" in why
    assert init == processes(data), "the VE was stopped"
    assert data.inode != before
    assert data.image.with_name(f"{data.image.name}.damaged-{incident['id']}").exists()
    data.writes()
    assert data.lost() == []
    assert data.ve.lost() == ([], [])
    assert data.ve.record.write_errors == []


def test_an_xfs_that_was_shut_down_too(daemon, make_data) -> None:
    data = make_data("", fstype="xfs")
    begin(daemon)
    before, init = data.inode, processes(data)
    data.writes()
    root = os.open(f"/proc/{min(init)}/root{data_volume.POINT}", os.O_RDONLY)
    try:
        fs.shutdown(root)
    finally:
        os.close(root)
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert incident["outcome"] == "repaired", why
    assert init == processes(data), f"the VE was stopped: {why}"
    assert data.inode != before
    data.writes()
    assert data.lost() == [], why


def test_without_the_commands_for_it_the_ve_is_stopped(daemon, make_data) -> None:
    data = make_data(hot=False)
    begin(daemon)
    init = processes(data)
    data.damage()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert not init & set(cgroup.pids(data.ve.cgroup)), daemon.why(incident["id"])


def test_what_cannot_be_taken_out_is_repaired_while_its_ve_is_stopped(daemon, make_data) -> None:
    data = make_data()
    data.change(broken="detach")
    begin(daemon)
    before, init = data.inode, processes(data)
    data.damage()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert "/srv cannot be taken out of declared:ve101" in why
    assert not init & set(cgroup.pids(data.ve.cgroup)), why
    # Its start command mounts the root only: that the volume is not there is said, and not hidden.
    assert incident["state"] == "needs-operator", why
    assert "has not mounted" in why
    assert data.inode != before
    assert loop.holders(*data.inode) == []


@pytest.mark.parametrize(
    ("how", "told", "mounted"),
    [
        ({"broken": "attach"}, "attach does not work today", 0),
        ({"fails": "attach"}, "the database does not start", 1),
    ],
    ids=["not mounted", "mounted, and what uses it does not start"],
)
def test_where_it_is_not_put_back_well_a_person_is_asked_and_its_ve_goes_on(
    daemon, make_data, how: dict[str, str], told: str, mounted: int
) -> None:
    data = make_data()
    data.change(**how)
    begin(daemon)
    init = processes(data)
    data.damage()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert incident["state"] == "needs-operator", why
    assert told in why
    assert len(loop.holders(*data.inode)) == mounted, why
    assert init <= set(cgroup.pids(data.ve.cgroup)), "the VE was stopped"


@pytest.mark.parametrize("when", ["before", "after"])
def test_where_the_daemon_ends_while_it_is_put_back_a_person_is_asked(
    daemon, make_data, work: Path, when: str
) -> None:
    """Nobody knows how far that has come, and nothing is mounted twice."""
    data = make_data("errors=remount-ro")
    kill_at(daemon, work, f"{when} {REPAIR}.hot_volume.attach")
    begin(daemon)
    init = processes(data)
    data.damage()
    daemon.wait_killed()
    daemon.program, daemon.environment = "fswatchd", {}
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert "was being put back when the daemon ended" in why
    assert incident["state"] == "needs-operator", why
    assert init <= set(cgroup.pids(data.ve.cgroup)), why
    assert len(loop.holders(*data.inode)) == (1 if when == "after" else 0), why


def kill_at(daemon: Any, work: Path, at: str) -> None:
    daemon.program = "tests.system.killed_at"
    point = {"at": at, "n": 1, "who": "daemon", "told": str(work / "told.json")}
    daemon.environment = {killed_at.VARIABLE: json.dumps(point)}


@pytest.mark.parametrize(
    ("at", "out"),
    [
        (f"before {REPAIR}.hot_volume.detach", False),
        (f"after {REPAIR}.hot_volume.detach", True),
        (f"before {REPAIR}.swap.exchange", True),
        (f"after {REPAIR}.swap.exchange", True),
    ],
)
def test_killed_meanwhile_it_comes_back_repaired(
    daemon, make_data, work: Path, at: str, *, out: bool
) -> None:
    data = make_data("errors=remount-ro")
    kill_at(daemon, work, at)
    begin(daemon)
    init = processes(data)
    data.damage()
    daemon.wait_killed()
    assert (loop.holders(*data.inode) == []) is out
    daemon.program, daemon.environment = "fswatchd", {}
    daemon.start()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    why = daemon.why(incident["id"])
    assert incident["outcome"] == "repaired", why
    assert init == processes(data), f"the VE was stopped: {why}"
    data.writes()
    assert data.lost() == [], why


def test_a_repair_that_ends_with_an_error_meanwhile_puts_it_back_as_it_was(
    daemon, make_data
) -> None:
    data = make_data("errors=remount-ro")
    begin(daemon)
    before, init = data.inode, processes(data)
    data.change(fixes=True)
    try:
        data.damage()
        incident = daemon.wait_for_incident("closed", "needs-operator")
    finally:
        subprocess.run(["chattr", "-i", data.image.parent], check=True)
    why = daemon.why(incident["id"])
    assert incident["state"] == "needs-operator", why
    assert "runs, /srv with it" in why
    assert data.inode == before
    assert init == processes(data), why
    assert len(loop.holders(*data.inode)) == 1, why
