"""Sources against the real kernel: what they hear, and what they must not believe."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.exitcode import Exit
from fswatchd.kernel import block, fs, kmsg, loop
from fswatchd.sources.uevent import UeventSource
from tests.collected import Collected
from tests.system import rules
from tests.system.conftest import fswatch, make_host, wait_until


def trigger(device: str, text: str = "test") -> None:
    with open(f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error", "w") as file:
        file.write(text)


def events(daemon, **wanted: object) -> list[dict]:
    found = daemon.client.get("/v1/events", since=0)["events"]
    return [e for e in found if all(e[key] == value for key, value in wanted.items())]


def source(daemon, name: str) -> dict:
    return next(s for s in daemon.status()["sources"] if s["name"] == name)


@pytest.fixture
def image(work) -> Path:
    """An ext4 image, mounted by nobody."""
    path = work / "plain.img"
    with path.open("xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path)], check=True)
    return path


def mounted(work: Path, image: Path, name: str = "mnt", options: str = "errors=continue") -> str:
    """Mount the image on the node; returns its device."""
    point = work / name
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{options}", str(image), str(point)], check=True)
    status = image.stat()
    (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
    return device


def start(daemon, **config) -> None:
    daemon.configure(**({"mode": "observe", "rules": rules.TELL} | config))
    daemon.start()


class TestFanotifyAndState:
    def test_a_mount_in_a_private_namespace_is_watched_without_a_restart(
        self, daemon, make_ve
    ) -> None:
        start(daemon)
        ve = make_ve()
        ve.declare()
        ve.start()
        daemon.wait_until_known("ve101")
        trigger(ve.device)
        incident = daemon.wait_for_incident("open")
        assert {"fanotify", "kmsg", "state"} <= set(
            wait_until(
                lambda: (
                    len(daemon.incidents("ve101")[0]["sources"]) >= 3
                    and daemon.incidents("ve101")[0]["sources"]
                )
            )
        )
        assert incident["ves"] == ["declared:ve101"]

    def test_copies_of_one_image_are_told_apart(self, daemon, work, image) -> None:
        twin = work / "twin.img"
        twin.write_bytes(image.read_bytes())
        first, second = mounted(work, image, "a"), mounted(work, twin, "b")
        start(daemon, sources="kmsg = false\njournal = false\nstate = false")
        assert "2 groups" in source(daemon, "fanotify")["detail"]
        trigger(second)
        (event,) = wait_until(lambda: events(daemon, source="fanotify"))
        assert event["device"] == os.path.basename(second)
        trigger(first)
        found = wait_until(lambda: events(daemon, device=os.path.basename(first)))
        assert len(found) == 1

    def test_a_filesystem_mounted_again_is_watched_again(self, daemon, work, image) -> None:
        device = mounted(work, image)
        start(daemon, sources="kmsg = false\njournal = false\nstate = false")
        subprocess.run(["umount", str(work / "mnt")], check=True)
        again = mounted(work, image)
        wait_until(lambda: Path(f"/sys/fs/ext4/{os.path.basename(again)}").exists())

        def heard() -> bool:
            trigger(again)
            return bool(events(daemon, source="fanotify", device=os.path.basename(again)))

        wait_until(heard, what="an event of the new mount")
        assert device

    def test_many_errors_at_once_are_counted_although_the_log_is_limited(
        self, daemon, work, image
    ) -> None:
        device = mounted(work, image)
        start(daemon)
        for number in range(50):
            trigger(device, str(number))
        name = os.path.basename(device)
        wait_until(
            lambda: any(i["events"] >= 50 for i in daemon.incidents()), what="50 errors counted"
        )
        (incident,) = [i for i in daemon.incidents() if i["filesystem"]["device"] == name]
        assert incident["events"] == 50
        assert len(events(daemon, source="kmsg", device=name)) < 50

    def test_an_error_that_fanotify_does_not_tell_is_found_by_state(
        self, daemon, work, image
    ) -> None:
        device = mounted(work, image)
        start(daemon, sources="kmsg = false\njournal = false\nfanotify = false")
        begin = time.monotonic()
        trigger(device)
        wait_until(lambda: events(daemon, source="state"))
        assert time.monotonic() - begin < 10

    def test_what_went_wrong_while_nobody_listened_is_found_at_the_start(
        self, daemon, work, image
    ) -> None:
        device = mounted(work, image)
        trigger(device)
        start(daemon)
        name = os.path.basename(device)
        (event,) = wait_until(lambda: events(daemon, source="state", device=name))
        assert event["confirms"]
        assert event["class"] == "corruption"

    def test_what_is_known_is_not_told_again_after_a_restart(self, daemon, work, image) -> None:
        device = os.path.basename(mounted(work, image))
        start(daemon)
        trigger(device)

        def incidents() -> list[dict]:
            return [i for i in daemon.incidents() if i["filesystem"]["device"] == device]

        wait_until(lambda: len(incidents()) == 1 and incidents()[0]["rule"])
        before = len(events(daemon, device=device))
        daemon.kill()
        daemon.start()
        wait_until(lambda: source(daemon, "state")["detail"])
        (incident,) = incidents()
        assert incident["state"] == "open"
        assert len(events(daemon, device=device)) == before

    def test_a_shutdown_is_found_and_confirmed(self, daemon, make_ve) -> None:
        start(daemon)
        ve = make_ve()
        ve.declare()
        ve.start()
        daemon.wait_until_known("ve101")
        ve.ask("shutdown")
        incident = wait_until(
            lambda: next((i for i in daemon.incidents("ve101") if i["confirmed"]), None)
        )
        assert incident["class"] == "shutdown"
        health = {
            fs["health"]
            for v in daemon.status()["ves"]
            for fs in v["filesystems"]
            if fs["device"] == incident["filesystem"]["device"]
        }
        assert health == {"shutdown"}


class TestAfterARestart:
    """Only the kernel's log tells, of what was said while nobody listened."""

    @pytest.fixture
    def device(self, daemon, work, image) -> str:
        """A mounted image; the daemon has been there, has a place in the log, and is gone."""
        other = work / "other.img"
        other.write_bytes(image.read_bytes())
        start(daemon, sources="journal = false\nfanotify = false\nstate = false")
        trigger(mounted(work, other, "other"), "heard")
        wait_until(lambda: self.heard(daemon, "heard"))
        device = mounted(work, image)
        daemon.stop()
        return device

    @staticmethod
    def heard(daemon, text: str) -> list[dict]:
        return [one for one in events(daemon) if one["detail"].endswith(text)]

    def test_a_line_of_meanwhile_is_about_its_device(self, daemon, device) -> None:
        trigger(device, "missed")
        daemon.start()
        (event,) = wait_until(lambda: self.heard(daemon, "missed"))
        assert event["device"] == os.path.basename(device)
        assert event["incident"] in {incident["id"] for incident in daemon.incidents()}

    def test_a_line_about_what_had_the_device_before_is_not_about_what_has_it_now(
        self, daemon, work, image, device
    ) -> None:
        twin = work / "twin.img"
        twin.write_bytes(image.read_bytes())
        trigger(device, "missed")
        name = os.path.basename(device)
        before = kmsg.attachments(kmsg.buffer())
        subprocess.run(["umount", str(work / "mnt")], check=True)

        def attached() -> bool:
            """The kernel does not tell of each when many are attached at once."""
            if mounted(work, twin, "twin") != device:
                pytest.skip(f"{device} was taken by somebody else")
            if kmsg.attachments(kmsg.buffer()).get(name) != before.get(name):
                return True
            subprocess.run(["umount", str(work / "twin")], check=True)
            return False

        wait_until(attached, what="the kernel to tell of it")
        daemon.start()
        (event,) = wait_until(lambda: self.heard(daemon, "missed"))
        assert event["detail"].startswith(f"before {name} was attached as it is now: EXT4-fs error")
        assert (event["device"], event["devno"], event["incident"]) == (None, None, None)
        assert len(daemon.incidents()) == 1


class TestKernelLog:
    FORGED = "EXT4-fs error (device {}): ext4_lookup:1: inode #2: comm x: deleted inode referenced"

    def test_a_forged_line_from_user_space_is_nothing(self, daemon, work, image) -> None:
        device = os.path.basename(mounted(work, image))
        start(daemon)
        for prefix in ("", "<2>", "<0>", "<1024>"):
            with open("/dev/kmsg", "w") as kmsg:
                kmsg.write(f"{prefix}{self.FORGED.format(device)}\n")
        trigger(device)  # a true one behind the forged ones: when it is heard, they have been read
        wait_until(lambda: events(daemon, source="kmsg"))
        assert len(events(daemon, source="kmsg")) == 1

    def test_a_mount_option_with_a_line_break_is_nothing(self, daemon, work, image) -> None:
        device = os.path.basename(mounted(work, image))
        start(daemon)
        hostile = f"zz\nEXT4-fs error (device {device}): forged"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", hostile, "none", str(work)],
            capture_output=True,
            check=False,
        )
        trigger(device)
        wait_until(lambda: events(daemon, source="kmsg"))
        assert len(events(daemon, source="kmsg")) == 1

    def test_the_name_of_a_process_is_nothing(self, daemon, work, image) -> None:
        device = os.path.basename(mounted(work, image))
        start(daemon)
        hostile = "x: (device sda9"  # what fits into the fifteen bytes of a name
        script = (
            "import ctypes, sys\n"
            f"ctypes.CDLL(None).prctl(15, {hostile.encode()!r}, 0, 0, 0)\n"
            "open(sys.argv[1], 'w').write('): Detected aborted journal')\n"
        )
        trigger_file = f"/sys/fs/ext4/{device}/trigger_fs_error"
        subprocess.run([sys.executable, "-c", script, trigger_file], check=True)
        (event,) = wait_until(lambda: events(daemon, source="kmsg", device=device))
        assert hostile in event["detail"]
        assert event["class"] == "corruption"
        assert not events(daemon, device="sda9")

    def test_the_label_of_a_filesystem_is_nothing(self, daemon, work, image) -> None:
        device = os.path.basename(mounted(work, image))
        start(daemon)
        label = f"BTRFS error (device {device}): forged"
        other = work / "labelled.img"
        with other.open("xb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.btrfs", "-q", "-L", label, str(other)], check=True)
        point = work / "labelled"
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", str(other), str(point)], check=True)
        trigger(device)
        wait_until(lambda: events(daemon, source="kmsg", device=device))
        assert [e["fstype"] for e in events(daemon, source="kmsg", device=device)] == ["ext4"]

    def test_only_log_lines_stay_unconfirmed_and_lead_to_nothing(
        self, daemon, work, make_ve
    ) -> None:
        """The only witness is the log: the rule would act, and must not."""
        ve = make_ve()
        ve.declare()
        ve.start()
        daemon.configure(
            mode="auto", rules=rules.repair(), sources="fanotify = false\nstate = false"
        )
        daemon.start()
        daemon.wait_until_known("ve101")
        before = ve.inode
        trigger(ve.device)
        incident = daemon.wait_for_incident("open")
        wait_until(lambda: "NO  confirmed" in daemon.why(incident["id"]))
        assert not incident["confirmed"]
        assert ve.inode == before

    def test_lines_written_while_the_daemon_was_down_are_read_afterwards(
        self, daemon, work, image
    ) -> None:
        device = mounted(work, image)
        start(daemon, sources="fanotify = false\nstate = false\njournal = false")
        trigger(device, "first")
        wait_until(lambda: len(events(daemon, source="kmsg")) == 1)
        daemon.kill()
        trigger(device, "second")
        daemon.start()
        wait_until(lambda: len(events(daemon, source="kmsg")) == 2)
        details = [e["detail"] for e in events(daemon, source="kmsg")]
        assert "first" in details[0]
        assert "second" in details[1]


class TestUevent:
    """The source itself on the kernel's socket: what it hears, and that it survives a flood."""

    async def heard(self, counter: list[int], wanted: int) -> None:
        async with asyncio.timeout(20):
            while len(counter) < wanted:
                await asyncio.sleep(0.01)

    async def test_a_device_that_comes_makes_the_daemon_look_again(self, image) -> None:
        looks: list[int] = []
        sink = Collected()
        uevents = UeventSource(sink, lambda _: None, lambda: looks.append(1))
        await uevents.start()
        try:
            fd = os.open(image, os.O_RDONLY)
            _, loop_fd = loop.attach(fd, autoclear=True, readonly=True)
            os.close(fd)
            os.close(loop_fd)
            await self.heard(looks, 1)
        finally:
            await uevents.stop()
        assert sink.events == []

    async def test_after_a_flood_it_says_so_and_goes_on(self, image) -> None:
        looks: list[int] = []
        sink = Collected()
        uevents = UeventSource(sink, lambda _: None, lambda: looks.append(1))
        await uevents.start()
        assert uevents._socket is not None
        uevents._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            for _ in range(500):
                Path("/sys/block/loop0/uevent").write_text("change")
            await self.heard(sink.losses, 1)
            before = len(looks)
            Path("/sys/block/loop0/uevent").write_text("change")
            await self.heard(looks, before + 1)
        finally:
            await uevents.stop()
        assert uevents.status.lost >= 1


def test_sources_that_are_switched_off_hear_nothing(daemon, work, image) -> None:
    device = mounted(work, image)
    names = ("fanotify", "kmsg", "journal", "state", "uevent", "vzevent", "xfs_health")
    off = "\n".join(f"{name} = false" for name in names)
    start(daemon, sources=off)
    trigger(device)
    assert {s["state"] for s in daemon.status()["sources"] if s["name"] != "quota"} == {"off"}
    assert events(daemon) == []


@pytest.mark.parametrize("demanded", [True, False])
def test_a_source_that_is_not_there_is_missed_by_who_demands_it(daemon, demanded: bool) -> None:
    if Path("/proc/vz").exists():
        pytest.skip("this kernel has it")
    start(daemon, sources="vzevent = true" if demanded else "")
    (source,) = (s for s in daemon.status()["sources"] if s["name"] == "vzevent")
    assert (source["state"], source["demanded"]) == ("unavailable", demanded)
    done = fswatch(daemon, "status")
    assert ("fswatchd.toml demands it" in done.stdout) is demanded
    if demanded:
        assert done.returncode == Exit.CRITICAL


def test_an_io_error_below_a_ve_is_no_reason_to_repair_it(daemon, make_ve, work) -> None:
    """The filesystem that holds the image is shut down: the VE's device fails, its ext4 suffers."""
    host = make_host(work, "ext4", 2 << 30)
    ve = make_ve(on=host, files=10)
    daemon.configure(mode="auto", rules=rules.repair() + rules.TELL)
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    before = ve.inode
    fd = os.open(host, os.O_RDONLY)
    try:
        fs.shutdown(fd)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Input/output error"):
        block.read_ends(ve.device)
    incident = wait_until(
        lambda: next((i for i in daemon.incidents("ve101") if i["class"] == "io_error"), None), 60
    )
    assert incident["rule"] in {"tell", None}
    assert incident["steps"] == [] or {s["name"] for s in incident["steps"]} == {"notify"}
    assert ve.inode == before
