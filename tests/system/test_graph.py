"""What the plain numbers do not tell, on the real kernel: btrfs below images, overlays, bases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import block, cgroup
from fswatchd.platforms import engines
from fswatchd.platforms.declared import DeclaredPlatform
from tests.system import rules
from tests.system.conftest import PROJECT, fswatch, make_host, wait_until
from tests.system.test_engines import Podman, podman_only
from tests.system.test_stack import (
    about,
    bind_into,
    device_of,
    direct_host,
    fill,
    nested_host,
    run,
    trigger,
)
from tests.system.ves import MiniVe
from tests.unit.kernel.test_qcow2 import image as qcow2_image

btrfs_only = pytest.mark.skipif(
    shutil.which("mkfs.btrfs") is None or "btrfs" not in Path("/proc/filesystems").read_text(),
    reason="no btrfs",
)
TIMEOUT_S = 60


def subvolume(host: Path, name: str) -> Path:
    made = host / name
    subprocess.run(["btrfs", "subvolume", "create", made], check=True, capture_output=True)
    return made


def superblock_number(point: Path) -> str:
    """As the mount table has it."""
    argv = ["findmnt", "-no", "MAJ:MIN", "--mountpoint", str(point)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@btrfs_only
class TestBtrfs:
    """Device numbers of files on btrfs are those of subvolumes, and no superblock's."""

    def test_an_image_in_a_subvolume_leads_to_the_disk(self, daemon, work, make_ve) -> None:
        host = make_host(work, "btrfs", 3 << 30)
        ve = make_ve(on=subvolume(host, "private"), files=10)
        assert str(ve.inode[0]) != superblock_number(host)
        run(daemon, ve, mode="observe", rules=rules.TELL)
        lowest = os.path.basename(device_of(work / "host-btrfs.img"))

        def told() -> str:
            (found,) = daemon.status()["ves"][0]["filesystems"]
            return found["stack_text"] if lowest in found["stack_text"] else ""

        text = wait_until(told, TIMEOUT_S)
        assert f"image {ve.image}, on btrfs {host} ({lowest}), image {work}/host-btrfs.img" in text
        (found,) = daemon.status()["ves"][0]["filesystems"]
        assert found["backing"]["on"] == superblock_number(host)

    def test_an_error_below_the_btrfs_names_running_and_stopped_ves_and_no_others(
        self, daemon, work, make_ve
    ) -> None:
        host, lowest = direct_host(work, "btrfs")
        ve = make_ve(on=subvolume(host, "private"), files=10)
        stopped = make_ve("ve102", on=subvolume(host, "stopped"), files=10)
        stopped.declare()
        bystander = make_ve("ve103", files=10)
        run(daemon, ve, bystander)
        size = (work / "direct.img").stat().st_size
        os.truncate(work / "direct.img", 1 << 30)
        with pytest.raises(OSError, match="Input/output error"):
            block.read_ends(lowest)
        os.truncate(work / "direct.img", size)

        def named() -> bool:
            found = [i for i in daemon.incidents() if i["class"] == "io_error"]
            return bool(found) and set(found[0]["ves"]) == {"declared:ve101", "declared:ve102"}

        wait_until(named, TIMEOUT_S)
        assert daemon.incidents("ve103") == []

    def test_a_full_btrfs_is_the_cause_until_there_is_room(self, daemon, work, make_ve) -> None:
        host = nested_host(work, "full", "btrfs", 600 << 20)
        ve = make_ve(on=subvolume(host, "private"), files=10, size=100 << 20)
        run(daemon, ve)
        ballast = fill(host)
        before = ve.inode
        trigger(ve.device)

        def damage(*states: str) -> dict:
            def found() -> dict | None:
                of_it = [i for i in daemon.incidents("ve101") if i["class"] != "space"]
                return next((i for i in of_it if i["state"] in states), None)

            return wait_until(found, TIMEOUT_S, f"damage that is {states}")

        incident = damage("waiting")
        assert (incident["waiting_for"], incident["cause"]["kind"]) == ("cause", "space")
        assert str(host) in incident["cause"]["object"]
        assert incident["steps"] == []
        assert ve.inode == before
        ballast.unlink()
        subprocess.run(["sync", "-f", host], check=True)
        # What its writers lost meanwhile is another matter, and may need an operator.
        wait_until(lambda: damage_of(daemon)["cause"].get("until"), TIMEOUT_S)
        wait_until(lambda: "yes cause" in daemon.why(incident["id"]), TIMEOUT_S)

    def test_a_btrfs_with_room_is_no_cause_and_the_image_is_repaired(
        self, daemon, work, make_ve
    ) -> None:
        host = make_host(work, "btrfs", 3 << 30)
        ve = make_ve(on=subvolume(host, "private"), files=10)
        run(daemon, ve)
        before = ve.inode
        ve.damage_directory()
        incident = daemon.wait_for_incident("closed", "needs-operator")
        assert (incident["outcome"], incident["cause"]) == ("repaired", None)
        assert ve.inode != before

    async def test_the_first_look_at_one_in_an_image_tells_it_as_all_later_ones_do(
        self, work, make_ve
    ) -> None:
        """Else what is heard in between is about a filesystem that is mounted nowhere."""
        ve = make_ve(fstype="btrfs", size=300 << 20)
        ve.start()
        ve.declare()
        inventory = Inventory([DeclaredPlatform([work / "ve.d"])])
        try:
            await inventory.refresh()
            name = os.path.basename(ve.device)
            first = inventory.superblock_of_name(name)
            await inventory.refresh()
            later = inventory.superblock_of_name(name)
        finally:
            await inventory.close()
        assert first is not None
        assert first.backing.image == str(ve.image)
        assert later is first


def damage_of(daemon) -> dict:
    """The incident of ve101 that is not about room."""
    return next(i for i in daemon.incidents("ve101") if i["class"] != "space")


MOUNT_OVERLAY = """
import ctypes, os, sys
from fswatchd.kernel import syscalls
if sys.argv[1] != "-":
    syscalls.setns(os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY), 0x20000)
target, options = (word.encode() for word in sys.argv[2:])
done = syscalls.libc.mount(b"overlay", target, b"overlay", 0, options)
syscalls.check(done, "mount")
"""


def mount_overlay(target: Path | str, options: str, ve: MiniVe | None = None) -> None:
    """By the node, or as somebody in the VE would."""
    pid = "-" if ve is None else str(cgroup.pids(ve.cgroup)[0])
    argv = [sys.executable, "-c", MOUNT_OVERLAY, pid, str(target), options]
    subprocess.run(argv, check=True, cwd=PROJECT)


def overlay_on(directory: Path, *lower: Path) -> str:
    """The options of an overlay of these, with its upper layer in the directory."""
    for name in ("upper", "work"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    below = ":".join(str(path).replace(":", "\\:") for path in lower)
    return f"lowerdir={below},upperdir={directory}/upper,workdir={directory}/work"


class TestOverlay:
    def test_an_error_below_any_layer_concerns_who_has_the_overlay(
        self, daemon, work, make_ve
    ) -> None:
        base, above = make_host(work, "ext4", 1 << 30), nested_host(work, "above", "ext4", 1 << 30)
        lower, point = base / "a:b c", work / "overlay"
        lower.mkdir()
        point.mkdir()
        ve, bystander = make_ve(files=10), make_ve("ve102", files=10)
        run(daemon, ve, bystander)
        mount_overlay(point, overlay_on(above, lower))
        bind_into(ve, point, "/victim")
        for image in ("host-ext4.img", "above.img"):
            device = device_of(work / image)
            # It may take a look or two until the overlay is seen.
            trigger(device)

            def concerns(device: str = device) -> bool:
                found = about(daemon, device)
                return bool(found) and found["ves"] == ["declared:ve101"]

            wait_until(concerns, TIMEOUT_S)
            assert about(daemon, device)["ves_through_stack"] == ["declared:ve101"]
        assert daemon.incidents("ve102") == []

    def test_an_overlay_on_one_filesystem_is_no_concern_of_another(
        self, daemon, work, make_ve
    ) -> None:
        other, base = make_host(work, "ext4", 1 << 30), nested_host(work, "base", "ext4", 1 << 30)
        (base / "lower").mkdir()
        (work / "overlay").mkdir()
        ve = make_ve(files=10)
        run(daemon, ve)
        mount_overlay(work / "overlay", overlay_on(base, base / "lower"))
        bind_into(ve, work / "overlay", "/victim")
        trigger(device_of(work / "base.img"))
        lowest = device_of(work / "base.img")
        wait_until(lambda: (about(daemon, lowest) or {}).get("ves"), TIMEOUT_S, "the VE named")
        trigger(device_of(work / "host-ext4.img"))
        incident = wait_until(lambda: about(daemon, device_of(work / "host-ext4.img")), TIMEOUT_S)
        wait_until(lambda: daemon.incidents()[0]["rule"], TIMEOUT_S, "a decision")
        assert about(daemon, incident["filesystem"]["device"])["ves"] == []
        assert other.is_mount()

    def test_a_ve_that_has_an_overlay_of_its_own_is_repaired_as_any_other(
        self, daemon, work, make_ve
    ) -> None:
        """As one in which an engine runs: the overlay ends with the VE."""
        ve = make_ve(files=10)
        run(daemon, ve)
        pid = cgroup.pids(ve.cgroup)[0]
        for name in ("upper", "owork", "merged"):
            Path(f"/proc/{pid}/root/{name}").mkdir()
        mount_overlay("/merged", "lowerdir=/data,upperdir=/upper,workdir=/owork", ve)
        before = ve.inode
        ve.damage_directory()
        incident = daemon.wait_for_incident("closed")
        assert incident["outcome"] == "repaired"
        assert incident["ves"] == ["declared:ve101"]
        assert ve.inode != before

    @podman_only
    async def test_a_podman_container_on_an_overlay_depends_on_what_holds_its_tree(
        self, work
    ) -> None:
        host = make_host(work, "ext4", 1 << 30)
        places = ("--root", str(work / "storage"), "--runroot", str(work / "run"))
        podman = Podman(host, *places, "--storage-driver", "vfs", "--events-backend", "file")
        platform = engines.podman(*podman.options, storage=str(work / "storage"))
        inventory = Inventory([platform])
        try:
            native_id = podman.start("web", overlay=True)
            await inventory.refresh()
            view = inventory.view
            number = Devno.parse(superblock_number(host))
            assert view.affected(number) == (f"podman:{native_id[:12]}",)
        finally:
            await inventory.close()
            await platform.asked.close()
            podman.close()


def linked_clone(ve: MiniVe, name: str) -> Path:
    """A qcow2 image with the VE's image as its backing file, declared as another VE's volume."""
    path = ve.image.with_name(f"{name}.qcow2")
    path.write_bytes(qcow2_image(os.fsencode(ve.image.name), b"raw"))
    other = ve.declaration().replace(f'name = "{ve.name}"', f'name = "{name}"')
    other = other.replace(str(ve.image), str(path)).replace(ve.cgroup, f"{ve.cgroup}-{name}")
    (ve.work / "ve.d" / f"{name}.toml").write_text(other)
    return path


class TestBases:
    def test_an_image_that_is_a_backing_file_is_not_written_whoever_asks(
        self, daemon, work, make_ve
    ) -> None:
        ve = make_ve(files=10)
        (work / "ve.d").mkdir()
        clone = linked_clone(ve, "ve102")
        run(daemon, ve)
        before = ve.inode
        ve.damage_directory()
        incident = wait_until(lambda: about(daemon, ve.device), TIMEOUT_S)
        wait_until(lambda: "NO  scope" in daemon.why(incident["id"]), TIMEOUT_S)
        assert f"it is the base of {clone} of declared:ve102" in daemon.why(incident["id"])
        incident = about(daemon, ve.device)
        assert set(incident["ves"]) == {"declared:ve101", "declared:ve102"}
        assert incident["ves_through_stack"] == ["declared:ve102"]
        refused = fswatch(daemon, "repair", "ve101")
        assert refused.returncode != 0
        assert "is the base of" in refused.stdout + refused.stderr
        assert ve.inode == before
        assert ve.wait_for_write()

    def test_a_clone_that_was_made_since_the_decision_stops_the_repair(
        self, daemon, work, make_ve
    ) -> None:
        ve = make_ve(files=10)
        run(daemon, ve, rules=rules.repair(mode='"approve"') + rules.TELL)
        ve.damage_directory()
        incident = daemon.wait_for_incident("waiting")
        assert incident["waiting_for"] == "approval"
        before = ve.inode
        linked_clone(ve, "ve102")
        fswatch(daemon, "approve", incident["id"])
        wait_until(lambda: "is the base of" in daemon.why(incident["id"]), TIMEOUT_S)
        assert ve.inode == before
        assert ve.wait_for_write()

    def test_an_image_beside_which_a_clone_of_another_lies_is_repaired(
        self, daemon, work, make_ve
    ) -> None:
        ve, base = make_ve(files=10), make_ve("ve103", files=10)
        (work / "ve.d").mkdir()
        base.declare()
        linked_clone(base, "ve102")
        run(daemon, ve)
        before = ve.inode
        ve.damage_directory()
        incident = daemon.wait_for_incident("closed", "needs-operator")
        assert incident["outcome"] == "repaired"
        assert ve.inode != before

    def test_a_name_in_a_raw_image_makes_no_base_of_what_it_names(
        self, daemon, work, make_ve
    ) -> None:
        """Whoever writes to a raw image can put the header of another format into it."""
        ve, liar = make_ve(files=10), make_ve("ve102", files=10)
        with liar.image.open("r+b") as file:
            file.write(qcow2_image(os.fsencode(ve.image.name), b"raw")[:1024])
        run(daemon, ve, liar)
        before = ve.inode
        ve.damage_directory()
        incident = daemon.wait_for_incident("closed", "needs-operator")
        assert (incident["outcome"], incident["ves"]) == ("repaired", ["declared:ve101"])
        assert ve.inode != before

    def test_what_holds_a_lower_layer_is_the_base_of_the_overlay(
        self, daemon, work, make_ve
    ) -> None:
        base = nested_host(work, "base", "ext4", 1 << 30)
        (base / "lower").mkdir()
        (work / "overlay").mkdir()
        ve = make_ve(files=10)
        run(daemon, ve)
        mount_overlay(work / "overlay", overlay_on(work / "host-xfs", base / "lower"))
        bind_into(ve, work / "overlay", "/victim")
        lowest = device_of(work / "base.img")
        trigger(lowest)
        incident = wait_until(lambda: about(daemon, lowest), TIMEOUT_S)
        wait_until(lambda: "is the base of the overlay" in daemon.why(incident["id"]), TIMEOUT_S)
        assert about(daemon, lowest)["ves"] == ["declared:ve101"]
        assert about(daemon, lowest)["steps"] == []

    def test_a_base_that_is_written_under_its_clones_is_told_and_nothing_is_done(
        self, daemon, work, make_ve
    ) -> None:
        ve, base, still = make_ve(files=10), make_ve("ve103", files=10), make_ve("ve104", files=10)
        (work / "ve.d").mkdir()
        for one, name in ((base, "ve102"), (still, "ve105")):
            one.declare()
            linked_clone(one, name)
        run(daemon, ve)

        def told() -> list[dict]:
            return [i for i in daemon.incidents() if i["filesystem"]["image"] == str(base.image)]

        def write() -> None:
            with base.image.open("r+b") as file:
                file.seek(1 << 20)
                file.write(os.urandom(512))

        write()
        (incident,) = wait_until(told, TIMEOUT_S)
        assert (incident["class"], incident["confirmed"]) == ("corruption", False)
        assert set(incident["ves"]) == {"declared:ve102", "declared:ve103"}
        wait_until(lambda: told()[0]["rule"], TIMEOUT_S)
        assert f"the base {base.image} was written under" in daemon.why(incident["id"])
        assert told()[0]["steps"] == []
        # What was remembered outlives the daemon: what is written meanwhile is seen as well.
        before = told()[0]["events"]
        daemon.stop()
        write()
        daemon.start()
        wait_until(lambda: told()[0]["events"] > before, TIMEOUT_S)
        assert len(told()) == 1
        assert str(still.image) not in {i["filesystem"]["image"] for i in daemon.incidents()}

    def test_a_base_that_reads_differently_with_nobody_having_written_is_told(
        self, daemon, work, make_ve
    ) -> None:
        """The digests of the real helper, in the real daemon."""
        bases = [make_ve("ve103", files=10), make_ve("ve104", files=10)]
        (work / "ve.d").mkdir()
        for one, name in zip(bases, ("ve102", "ve105"), strict=True):
            one.declare()
            linked_clone(one, name)
        rotten, sound = bases
        daemon.configure(daemon='verify_bases = "1s"')
        daemon.start()

        def told() -> list[str]:
            """Nobody can see when the first reading is over: it rots until somebody notices."""
            before = rotten.image.stat()
            with rotten.image.open("r+b") as file:
                file.seek(1 << 20)
                file.write(os.urandom(512))
            os.utime(rotten.image, ns=(before.st_atime_ns, before.st_mtime_ns))
            found = daemon.client.get("/v1/events")["events"]
            return [one["detail"] for one in found if "does not read as it did" in one["detail"]]

        texts = wait_until(told, TIMEOUT_S)
        assert all(f"the base {rotten.image} " in text for text in texts)
        assert str(sound.image) not in {i["filesystem"]["image"] for i in daemon.incidents()}
