"""The classic way on a volume that is a device and not an image: a partition of a loop device.

A partition has a number of its own (major 259), so nothing leads from it to the file below.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.kernel import cgroup
from tests.system import rules
from tests.system.conftest import wait_until

_LOOP_CTL_REMOVE = 0x4C81
_START = 2048
_SIZES = {"ext4": 32 << 20, "xfs": 320 << 20}

# As with logical volumes, the platform activates the device at the start. At the stop `after` says
# what becomes of it: it is kept, goes, or its name is given to another disk.
PLATFORM = """#!/bin/sh
detach() {{
    losetup -d {loop} 2>/dev/null
    while losetup {loop} >/dev/null 2>&1; do sleep 0.01; done
}}
attach() {{ losetup -P {loop} "$1" && addpart {loop} 1 {start} {sectors}; }}
if [ "$1" = start ]; then
    [ "$(cat {work}/after)" = kept ] || {{ detach; attach {work}/own.img || exit 1; }}
    mount {loop}p1 {work}/point || exit 1
    setsid sh -c 'echo $$ > {group}/cgroup.procs; exec sleep 1000' </dev/null >/dev/null 2>&1 &
    while [ -z "$(cat {group}/cgroup.procs)" ]; do sleep 0.01; done
else
    for pid in $(cat {group}/cgroup.procs); do kill -9 "$pid"; done
    umount {work}/point
    case $(cat {work}/after) in
    gone) detach ;;
    another) detach; attach {work}/other.img ;;
    esac
fi
"""

VE = """
[[ve]]
name = "ve101"
cgroup = "/{name}"
volume = [{{ device = "{device}", mountpoint = "/" }}]
start = ["{script}", "start"]
stop = ["{script}", "stop"]
"""


class DeviceVe:
    """A VE whose only process sleeps, on a partition."""

    def __init__(self, work: Path, fstype: str = "ext4") -> None:
        self.work, self.fstype, self._size = work, fstype, _SIZES[fstype]
        self.loop = f"/dev/loop{random.randint(1000, 9999)}"
        for name, kind in (("own", "1111"), ("other", "9999")):
            self._make_image(work / f"{name}.img", f"{kind}1111-2222-3333-4444-555555555555")
        (work / "point").mkdir()
        self.cgroup = f"/{work.name}-ve101"
        self._group = cgroup.hierarchies()[0] / self.cgroup.lstrip("/")
        self._group.mkdir()
        self._script = work / "platform"
        text = PLATFORM.format(
            loop=self.loop,
            start=_START,
            sectors=self._size // 512,
            work=work,
            group=self._group,
        )
        self._script.write_text(text)
        self._script.chmod(0o755)
        self.after("")

    def _make_image(self, image: Path, uuid: str) -> None:
        with image.open("xb") as file:
            file.truncate(self._size)
        make = ["mke2fs", "-t", "ext4", "-U", uuid]
        if self.fstype == "xfs":
            make = ["mkfs.xfs", "-m", f"uuid={uuid}"]
        whole = image.with_suffix(".whole")
        image.rename(whole)
        subprocess.run([*make, "-q", whole], check=True, capture_output=True)
        argv = [
            "dd",
            f"if={whole}",
            f"of={image}",
            "bs=1M",
            f"seek={_START // 2048}",
            "conv=sparse",
        ]
        subprocess.run(argv, check=True, capture_output=True)
        whole.unlink()

    def after(self, what: str) -> None:
        (self.work / "after").write_text(what)

    def start(self) -> None:
        subprocess.run([self._script, "start"], check=True)

    def declare(self) -> None:
        (self.work / "ve.d").mkdir(exist_ok=True)
        text = VE.format(name=self.cgroup.lstrip("/"), device=f"{self.loop}p1", script=self._script)
        (self.work / "ve.d" / "ve101.toml").write_text(text)

    def trigger(self) -> None:
        path = f"/sys/fs/ext4/{os.path.basename(self.loop)}p1/trigger_fs_error"
        Path(path).write_text("test")

    def trash_directory(self) -> None:
        """Random bytes over a directory that nobody has read since it was mounted."""
        victim = self.point / "victim"
        victim.mkdir()
        for number in range(300):
            (victim / f"file-with-a-long-name-{number}").write_text(str(number))
        inode = victim.stat().st_ino
        self.after("kept")
        subprocess.run([self._script, "stop"], check=True)
        commands = ["-c", f"inode {inode}", "-c", "dblock 0", "-c", "daddr"]
        asked = ["xfs_db", "-r", *commands, f"{self.loop}p1"]
        shown = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        place = re.search(r"daddr is (\d+)", shown)
        assert place
        with open(f"{self.loop}p1", "r+b") as device:
            device.seek(int(place[1]) * 512)
            device.write(os.urandom(4096))
        self.start()

    @property
    def point(self) -> Path:
        return self.work / "point"

    def pids(self) -> list[int]:
        return cgroup.pids(self.cgroup)

    def close(self) -> None:
        self.after("gone")
        subprocess.run([self._script, "stop"], capture_output=True, check=False)
        control = os.open("/dev/loop-control", os.O_RDWR)
        number = int(self.loop.removeprefix("/dev/loop"))

        def removed() -> bool:
            try:
                fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
            except OSError:
                return False
            return True

        wait_until(removed, what=f"the removal of {self.loop}")
        os.close(control)


@pytest.fixture
def ve(work: Path, request: pytest.FixtureRequest) -> Iterator[DeviceVe]:
    made = DeviceVe(work, getattr(request, "param", "ext4"))
    yield made
    made.close()


def broken(daemon, ve: DeviceVe, after: str) -> list[int]:
    """The VE runs, its filesystem has an error; returns its processes."""
    daemon.configure(rules=rules.repair("offline"), more='[repair]\nstop_timeout = "5s"\n')
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    ve.after(after)
    before = ve.pids()
    ve.trigger()
    return before


def test_a_device_that_stays_is_repaired(daemon, ve: DeviceVe) -> None:
    before = broken(daemon, ve, "kept")
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.pids()
    assert ve.pids() != before


@pytest.mark.parametrize("ve", ["xfs"], indirect=True)
def test_xfs_on_a_device_is_repaired(daemon, ve: DeviceVe) -> None:
    """xfs_repair gives a device back in a way that no program in a sandbox may."""
    daemon.configure(rules=rules.repair("offline"), more='[repair]\nstop_timeout = "5s"\n')
    ve.declare()
    ve.start()
    ve.trash_directory()
    daemon.start()
    daemon.wait_until_known("ve101")
    before = ve.pids()
    with pytest.raises(OSError, match="Structure needs cleaning"):
        list((ve.point / "victim").iterdir())
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    assert ve.pids()
    assert ve.pids() != before
    assert "to lost+found fixed" in incident["steps"][0]["detail"]
    found = [path for path in ve.point.rglob("*") if path.is_file()]
    assert len(found) == 300


@pytest.mark.parametrize("ve", ["xfs"], indirect=True)
def test_a_whole_xfs_on_a_device_is_given_back_as_it_was(daemon, ve: DeviceVe) -> None:
    """Checked only: its log is clean once the VE is stopped, and nothing is written."""
    daemon.configure(rules=rules.repair("offline", **{"match.class": '"*"'}))
    ve.declare()
    ve.start()
    (ve.point / "file").write_text("kept")
    daemon.start()
    daemon.wait_until_known("ve101")
    ve.after("kept")
    daemon.client.post("/v1/repair", {"target": "ve101"})
    incident = daemon.wait_for_incident("verifying", "closed", "needs-operator")
    step = incident["steps"][0]
    assert (step["result"], "clean" in step["detail"]) == ("repaired", True), step
    assert (ve.point / "file").read_text() == "kept"


@pytest.mark.parametrize("after", ["gone", "another"])
def test_a_device_that_goes_at_the_stop_is_not_looked_for_elsewhere(
    daemon, ve: DeviceVe, after: str
) -> None:
    """Whatever disk has its name now is left alone, and the VE gets back what it had."""
    other = ve.work / "other.img"
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    before = broken(daemon, ve, after)
    incident = daemon.wait_for_incident("needs-operator", "closed")
    (step, *_) = incident["steps"]
    assert step["result"] == "not taken", daemon.why(incident["id"])
    assert "nothing was changed" in step["detail"]
    assert "runs again" in step["detail"]
    assert hashlib.sha256(other.read_bytes()).hexdigest() == digest
    assert ve.pids()
    assert ve.pids() != before
