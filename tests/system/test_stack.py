"""What lies beneath a VE's filesystem, on the real kernel: who is concerned, who is to blame."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.kernel import block, cgroup, loop, syscalls
from tests.system import rules
from tests.system.conftest import PROJECT, fswatch, make_host, wait_until
from tests.system.ves import MiniVe


def trigger(device: str) -> None:
    """An error of the filesystem on the device, as the kernel itself reports them."""
    with open(f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error", "w") as file:
        file.write("test")


def device_of(image: Path) -> str:
    status = image.stat()
    (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
    return device


MKFS = {
    "xfs": ["mkfs.xfs", "-q"],
    "ext4": ["mke2fs", "-q", "-t", "ext4"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


def nested_host(below: Path, name: str, kind: str = "xfs", size: int = 1 << 30) -> Path:
    """A filesystem in an image on another one."""
    image, point = below / f"{name}.img", below / name
    with image.open("xb") as file:
        file.truncate(size)
    command = MKFS[kind]
    subprocess.run([*command, str(image)], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    return point


BIND = """
import ctypes, os, sys
from fswatchd.kernel import syscalls
tree = syscalls.open_tree_clone(os.open(sys.argv[1], os.O_PATH))
syscalls.setns(os.open(f"/proc/{sys.argv[2]}/ns/mnt", os.O_RDONLY), 0x20000)
target = sys.argv[3].encode()
# move_mount(2) with MOVE_MOUNT_F_EMPTY_PATH
syscalls.syscall(429, tree, ctypes.c_char_p(b""), -100, ctypes.c_char_p(target), 4, what="move")
"""


def bind_into(ve: MiniVe, source: Path, target: str) -> None:
    """Mount what is at `source` in the VE as well."""
    pid = cgroup.pids(ve.cgroup)[0]
    argv = [sys.executable, "-c", BIND, str(source), str(pid), target]
    subprocess.run(argv, check=True, cwd=PROJECT)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(daemon, *ves: MiniVe, **config: str) -> None:
    daemon.configure(**({"mode": "auto", "rules": rules.repair() + rules.TELL} | config))
    for ve in ves:
        ve.declare()
        ve.start()
    daemon.start()
    daemon.wait_until_known(*(ve.name for ve in ves))


def about(daemon, device: str) -> dict | None:
    """The newest incident on the device."""
    name = os.path.basename(device)
    return next((i for i in daemon.incidents() if i["filesystem"]["device"] == name), None)


class TestBlastRadius:
    def test_an_error_of_the_lowest_image_concerns_the_ve_on_the_highest(
        self, daemon, work, make_ve
    ) -> None:
        """ext4 of the VE in an image on XFS in an image on ext4 in an image on the disk."""
        bottom = make_host(work, "ext4", 3 << 30)
        middle = nested_host(bottom, "middle")
        ve = make_ve(on=middle)
        bystander = make_ve("ve102")
        run(daemon, ve, bystander)
        lowest = device_of(work / "host-ext4.img")
        before = ve.inode
        trigger(lowest)
        incident = wait_until(lambda: about(daemon, lowest))
        assert incident["ves"] == ["declared:ve101"]
        assert incident["ves_through_stack"] == ["declared:ve101"]
        wait_until(lambda: about(daemon, lowest)["rule"])
        assert "NO  scope" in daemon.why(incident["id"])
        assert about(daemon, lowest)["steps"] == []
        assert ve.inode == before

    def test_the_whole_way_from_the_ve_to_the_disk_is_told(self, daemon, work, make_ve) -> None:
        bottom = make_host(work, "ext4", 3 << 30)
        middle = nested_host(bottom, "middle")
        ve = make_ve(on=middle)
        run(daemon, ve, mode="observe", rules=rules.TELL)
        trigger(ve.device)
        incident = daemon.wait_for_incident("open")
        wait_until(lambda: daemon.incidents("ve101")[0]["stack"])
        story = daemon.why(incident["id"])
        own, xfs, ext4 = (
            os.path.basename(device_of(image))
            for image in (ve.image, bottom / "middle.img", work / "host-ext4.img")
        )
        assert (
            f"/ is ext4 on {own}, image {ve.image}, on xfs {middle} ({xfs}), "
            f"image {bottom}/middle.img, on ext4 {bottom} ({ext4}), image {work}/host-ext4.img"
        ) in story
        kinds = [layer["kind"] for layer in daemon.incidents("ve101")[0]["stack"]]
        assert kinds[:6] == ["filesystem", "loop"] * 3

    def test_a_host_filesystem_of_several_ves_is_one_incident_that_names_them(
        self, daemon, work, make_ve
    ) -> None:
        host = make_host(work, "ext4", 3 << 30)
        ves = [make_ve(f"ve{n}", on=host, files=10) for n in (101, 102, 103)]
        stopped = make_ve("ve104", on=host, files=10)
        stopped.declare()
        run(daemon, *ves)
        lowest = device_of(work / "host-ext4.img")
        trigger(lowest)
        incident = wait_until(lambda: about(daemon, lowest))
        assert set(incident["ves"]) == {f"declared:ve{n}" for n in (101, 102, 103, 104)}
        assert len(daemon.incidents("ve101")) == 1
        assert fswatch(daemon, "status", "ve102").returncode == 1
        for ve in ves:
            assert ve.wait_for_write()

    def test_one_filesystem_bound_into_three_ves_names_three_and_is_not_repaired(
        self, daemon, work, make_ve
    ) -> None:
        host = make_host(work, "ext4", 3 << 30)
        ves = [make_ve(f"ve{n}", on=host, files=10) for n in (101, 102, 103)]
        shared = work / "shared.img"
        with shared.open("xb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(shared)], check=True)
        run(daemon, *ves)
        point = work / "shared"
        point.mkdir()
        subprocess.run(["mount", "-o", "loop,errors=continue", shared, point], check=True)
        for ve in ves:
            bind_into(ve, point, "/victim")
        device = device_of(shared)
        subprocess.run(["umount", point], check=True)
        wait_until(
            lambda: (
                sum(
                    fs["device"] == os.path.basename(device)
                    for ve in daemon.status()["ves"]
                    for fs in ve["filesystems"]
                )
                == 3
            )
        )
        trigger(device)
        incident = wait_until(lambda: about(daemon, device))
        assert set(incident["ves"]) == {f"declared:ve{n}" for n in (101, 102, 103)}
        assert incident["ves_through_stack"] == []
        wait_until(lambda: "NO  scope" in daemon.why(incident["id"]))
        assert "3 VEs share the filesystem" in daemon.why(incident["id"])
        assert len(daemon.incidents("ve101")) == 1
        assert about(daemon, device)["steps"] == []
        for ve in ves:
            assert ve.wait_for_write()


class TestCause:
    def test_a_full_host_is_the_cause_and_nothing_is_checked_until_there_is_room(
        self, daemon, work, make_ve
    ) -> None:
        host = nested_host(work, "full", "xfs", 400 << 20)
        ve = make_ve(on=host, files=10, size=200 << 20, options="errors=remount-ro")
        run(daemon, ve)
        ballast = fill(host)
        before = ve.inode
        trigger(ve.device)

        def damage(*states: str) -> dict:
            """The damage, when it is so far; writers may have met the lack of room as well."""

            def found() -> dict | None:
                of_it = [i for i in daemon.incidents("ve101") if i["class"] != "space"]
                return next((i for i in of_it if i["state"] in states), None)

            return wait_until(found, 60, f"damage that is {states}")

        incident = damage("waiting")
        assert incident["waiting_for"] == "cause"
        assert incident["cause"]["kind"] == "space"
        assert str(host) in incident["cause"]["object"]
        assert incident["steps"] == []
        assert f"Cause       xfs {host}" in daemon.why(incident["id"])
        assert ve.inode == before
        ballast.unlink()
        incident = damage("closed")
        assert incident["outcome"] == "repaired"
        assert incident["cause"]["until"]
        assert ve.inode != before

    def test_room_enough_is_no_cause(self, daemon, work, make_ve) -> None:
        host = nested_host(work, "roomy", "xfs", 1 << 30)
        ve = make_ve(on=host, files=10, size=200 << 20)
        run(daemon, ve)
        ve.damage_directory()
        incident = daemon.wait_for_incident("closed")
        assert incident["outcome"] == "repaired"
        assert incident["cause"] is None
        assert "yes cause" in daemon.why(incident["id"])

    def test_a_failing_device_beneath_four_images_is_blamed_and_none_is_repaired(
        self, daemon, work, make_ve
    ) -> None:
        host, lowest = direct_host(work)
        ves = [make_ve(f"ve{n}", on=host, files=10) for n in (101, 102, 103, 104)]
        bystander = make_ve("ve105", files=10)
        run(daemon, *ves, bystander)
        before = [ve.inode for ve in ves]
        size = (work / "direct.img").stat().st_size
        os.truncate(work / "direct.img", 64 << 20)
        with pytest.raises(OSError, match="Input/output error"):
            block.read_ends(lowest)
        own = wait_until(lambda: about(daemon, lowest))
        assert set(own["ves"]) == {f"declared:{ve.name}" for ve in ves}
        # The device has its size again, so nothing but its errors tells of what it is.
        os.truncate(work / "direct.img", size)
        for ve in ves:
            trigger(ve.device)
        self.all_wait_for(daemon, ves, lowest)
        assert "errors" in about(daemon, ves[0].device)["cause"]["text"]
        assert "I/O error" in daemon.why(own["id"])
        assert [ve.inode for ve in ves] == before
        bystander.damage_directory()
        assert daemon.wait_for_incident("closed", ve="ve105")["outcome"] == "repaired"

    def test_an_image_that_was_cut_short_is_blamed(self, daemon, work, make_ve) -> None:
        """With buffered I/O it reads as zeros: no device error, and all above looks damaged."""
        host = make_host(work, "ext4", 3 << 30)
        ves = [make_ve(f"ve{n}", on=host, files=10) for n in (101, 102)]
        run(daemon, *ves)
        before = [ve.inode for ve in ves]
        lowest = device_of(work / "host-ext4.img")
        os.truncate(work / "host-ext4.img", 64 << 20)
        for ve in ves:
            trigger(ve.device)
        self.all_wait_for(daemon, ves, lowest)
        assert "shorter than the device" in about(daemon, ves[0].device)["cause"]["text"]
        own = wait_until(lambda: about(daemon, lowest))
        for ve in ves:
            wait_until(lambda ve=ve: about(daemon, ve.device)["part_of"] == own["id"], 60)
        assert [ve.inode for ve in ves] == before

    def all_wait_for(self, daemon, ves: list[MiniVe], device: str) -> None:
        def wait() -> bool:
            found = [about(daemon, ve.device) for ve in ves]
            return all(i and i["cause"] and i["cause"]["object"] == device for i in found)

        wait_until(wait, 30, f"all to wait for {device}")
        for ve in ves:
            incident = about(daemon, ve.device)
            assert incident is not None
            assert (incident["state"], incident["waiting_for"]) == ("waiting", "cause")
            assert incident["cause"]["kind"] == "device"
            assert incident["steps"] == []


def direct_host(work: Path, kind: str = "ext4") -> tuple[Path, str]:
    """A host filesystem on a loop device that passes errors on: one with direct I/O does."""
    image, point = work / "direct.img", work / "direct"
    with image.open("xb") as file:
        file.truncate(3 << 30)
    subprocess.run([*MKFS[kind], image], check=True, capture_output=True)
    point.mkdir()
    argv = ["losetup", "--direct-io=on", "--show", "-f", image]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["mount", device, point], check=True)
    loop.detach(device)  # when it is unmounted
    return point, device


def fill(point: Path) -> Path:
    """Leave no room on the filesystem at `point`, to the block.

    Reserved, not written: XFS takes back what it has allocated ahead of a writer.
    """
    ballast, end = point / "ballast", 0
    with ballast.open("xb") as file:
        for size in (64 << 20, 1 << 20, 64 << 10, 4096):
            with suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), end, size)
                    end += size
    return ballast


class TestIdentity:
    def test_a_clone_with_the_same_uuid_over_the_same_path_is_not_touched(
        self, daemon, work, make_ve
    ) -> None:
        """It stands still when the repair is approved; then the VE is started on it."""
        ve = make_ve(files=10)
        run(daemon, ve, rules=rules.repair(mode='"approve"') + rules.TELL)
        clone = ve.image.with_suffix(".clone")
        subprocess.run(["cp", ve.image, clone], check=True)
        ve.damage_directory()
        incident = daemon.wait_for_incident("waiting")
        assert incident["waiting_for"] == "approval"
        ve.kill()
        original = ve.image.rename(ve.image.with_suffix(".away"))
        clone.rename(ve.image)
        before = [digest(original), digest(ve.image)]
        wait_until(lambda: not daemon.status()["ves"][0]["filesystems"])
        fswatch(daemon, "approve", incident["id"])
        wait_until(lambda: daemon.incidents("ve101")[0]["waiting_for"] == "mount")
        assert [digest(original), digest(ve.image)] == before
        ve.start()
        closed = daemon.wait_for_incident("closed")
        assert (closed["id"], closed["outcome"]) == (incident["id"], "recovered")
        assert digest(original) == before[0]

    def test_a_clone_under_the_name_of_the_image_is_not_written(
        self, daemon, work, make_ve
    ) -> None:
        """The VE still runs on the original, which has another name by now."""
        ve = make_ve(files=10)
        clone = ve.image.with_suffix(".clone")
        subprocess.run(["cp", ve.image, clone], check=True)
        run(daemon, ve, rules=rules.repair(mode='"approve"') + rules.TELL)
        ve.damage_directory()
        incident = daemon.wait_for_incident("waiting")
        before = digest(clone)
        device = ve.device
        ve.image.rename(ve.image.with_suffix(".away"))
        clone.rename(ve.image)
        fswatch(daemon, "approve", incident["id"])
        daemon.wait_for_incident("needs-operator")
        assert "is another file now" in daemon.why(incident["id"])
        assert digest(ve.image) == before
        assert loop.status(device).backing_inode == ve.image.with_suffix(".away").stat().st_ino
        assert ve.wait_for_write()

    def test_an_image_attached_twice_is_not_repaired(self, daemon, work, make_ve) -> None:
        ve = make_ve(files=10)
        run(daemon, ve)
        fd = os.open(ve.image, os.O_RDONLY)
        device, device_fd = loop.attach(fd, autoclear=True, readonly=True)
        os.close(fd)
        first = next(one for one in loop.holders(*ve.inode) if one != device)
        before = ve.inode
        try:
            trigger(first)
            incident = daemon.wait_for_incident("needs-operator")
            assert "attached more than once" in daemon.why(incident["id"])
            assert ve.inode == before
        finally:
            os.close(device_fd)

    def test_hostile_names_break_no_output(self, daemon, work, make_ve) -> None:
        host = make_host(work, "ext4", 1 << 30)
        names = ["new\nline", "quo'te\"s", "sp ace", "esc\x1b[2J\x07", *["x" * 200] * 15]
        directory = host.joinpath(*names)
        directory.mkdir(parents=True)
        ve = make_ve(files=10)
        run(daemon, ve, mode="observe", rules=rules.TELL)
        deep = nested_in(directory)
        try:
            self.check_outputs(daemon, deep)
        finally:
            syscalls.umount(str(directory / "m"))
        ve.damage_directory()
        assert daemon.wait_for_incident()["ves"] == ["declared:ve101"]

    def check_outputs(self, daemon, deep: str) -> None:
        trigger(deep)
        incident = wait_until(lambda: about(daemon, deep))
        wait_until(lambda: about(daemon, deep)["stack"])
        outputs = [daemon.why(incident["id"])]
        for command in (("status",), ("incident", incident["id"]), ("why", incident["id"])):
            outputs.append(fswatch(daemon, *command).stdout)
            outputs.append(fswatch(daemon, "--json", *command).stdout)
        for text in outputs:
            assert "\x1b" not in text
            assert "\x07" not in text
            assert "new\nline" not in text
        assert "new\\x0aline" in outputs[0]


def nested_in(directory: Path) -> str:
    """A mounted image there; its device."""
    nested_host(directory, "m", "ext4", 32 << 20)
    return device_of(directory / "m.img")
