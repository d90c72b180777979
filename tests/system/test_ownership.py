"""What is not one VE's alone: other nodes', the node's own, and VEs with several volumes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import cgroup, loop
from fswatchd.platforms.declared import DeclaredPlatform
from tests.system import rules
from tests.system.conftest import DaemonUnderTest, fswatch, wait_until

LATE_S = 60


def trigger(device: str) -> None:
    """An error of the filesystem on the device, as the kernel itself reports them."""
    with open(f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error", "w") as file:
        file.write("test")


def loops_of(image: Path) -> list[str]:
    status = image.stat()
    return loop.holders(Devno.of(status.st_dev), status.st_ino)


def make_image(path: Path, *options: str, size: int = 64 << 20) -> Path:
    with path.open("xb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, str(path)], check=True)
    return path


def run(daemon: DaemonUnderTest, **config: str) -> None:
    daemon.configure(**({"mode": "auto", "rules": rules.repair() + rules.TELL} | config))
    daemon.start()


def refused(daemon: DaemonUnderTest, device: str, words: str, target: str = "ve101") -> None:
    """An error that is confirmed leads to nothing, and a request of root's neither."""
    trigger(device)
    name = os.path.basename(device)

    def story() -> str:
        found = [i for i in daemon.incidents() if i["filesystem"]["device"] == name]
        return daemon.why(found[0]["id"]) if found and found[0]["confirmed"] else ""

    wait_until(lambda: words in story(), LATE_S, f"{words} in the story")
    asked = fswatch(daemon, "repair", target)
    assert asked.returncode != 0
    assert words in asked.stderr + asked.stdout
    asked = fswatch(daemon, "repair", target, "--dry-run")
    assert asked.returncode != 0
    (incident,) = (i for i in daemon.incidents() if i["filesystem"]["device"] == name)
    assert {step["do"] for step in incident["steps"]} <= {"notify"}, story()


@contextmanager
def serving(behind: Path, point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What is in one directory, served by a program at another; ends when nobody uses it."""
    behind.mkdir()
    point.mkdir()
    with subprocess.Popen(["bindfs", "-f", str(behind), str(point)]) as server:
        wait_until(lambda: os.path.ismount(point), LATE_S)
        try:
            yield server
        finally:
            argv = ["umount", str(point)]
            wait_until(
                lambda: subprocess.run(argv, capture_output=True, check=False).returncode == 0,
                LATE_S,
            )


class TestOtherNodes:
    @pytest.fixture
    def served(self, work: Path, host: Path) -> Iterator[Path]:
        """A filesystem that a program serves; what is in it can be written beside it."""
        if shutil.which("bindfs") is None:
            pytest.skip("needs bindfs")
        with serving(host / "behind", work / "served") as server:
            assert server.poll() is None
            yield work / "served"

    def test_an_image_on_a_filesystem_that_is_served_is_not_repaired(
        self, daemon, served, make_ve
    ) -> None:
        ve = make_ve(on=served, files=10)
        ve.declare()
        ve.start()
        run(daemon)
        daemon.wait_until_known("ve101")
        before = ve.inode
        refused(daemon, ve.device, f"its image lies on fuse {served}")
        assert "NO  elsewhere" in daemon.why(daemon.incidents("ve101")[0]["id"])
        assert ve.inode == before
        assert ve.wait_for_write()
        stack = daemon.incidents("ve101")[0]["stack_text"]
        assert f"on fuse {served}" in stack

    async def test_a_server_that_is_lost_holds_up_nothing_of_what_lies_elsewhere(
        self, daemon, work, host: Path, make_ve
    ) -> None:
        """The kernel asks the server when it is asked for the image of a loop device."""
        if shutil.which("bindfs") is None:
            pytest.skip("needs bindfs")
        with serving(host / "behind", work / "served") as server:
            away, here = make_ve("ve102", on=work / "served", files=10), make_ve(files=10)
            inventory = Inventory([DeclaredPlatform([work / "ve.d"])])
            try:
                for ve in (away, here):
                    ve.declare()
                    ve.start()
                run(daemon)
                daemon.wait_until_known("ve101", "ve102")
                device = Devno.of(os.stat(away.device).st_rdev)
                await inventory.refresh()
                server.send_signal(signal.SIGSTOP)
                async with asyncio.timeout(LATE_S):
                    await inventory.refresh(forget=True)
                backing = inventory.view.superblocks[device].backing
                assert backing.image_inode == os.stat(host / "behind" / away.image.name).st_ino
                here.damage_directory()
                outcome = (await asyncio.to_thread(daemon.wait_for_incident, "closed"))["outcome"]
                assert outcome == "repaired"
            finally:
                server.send_signal(signal.SIGCONT)
                await inventory.close()
                away.kill()

    def test_a_stopped_ve_with_its_image_there_is_not_repaired_either(
        self, daemon, served, make_ve
    ) -> None:
        ve = make_ve(on=served, files=10)
        ve.declare()
        before = hashlib.sha256(ve.image.read_bytes()).hexdigest()
        run(daemon)
        wait_until(lambda: daemon.status()["ves"], LATE_S)
        link = daemon.work / "link"
        link.symlink_to(served)
        moved = ve.declaration().replace(str(served), str(link))
        for declared in (ve.declaration(), moved):
            (daemon.work / "ve.d" / "ve101.toml").write_text(declared)
            asked = fswatch(daemon, "repair", "ve101", "--dry-run")
            assert asked.returncode != 0
            assert "its image lies on fuse" in asked.stderr + asked.stdout
        assert hashlib.sha256(ve.image.read_bytes()).hexdigest() == before

    def test_multiple_mount_protection_is_respected(self, daemon, make_ve) -> None:
        ve = make_ve(files=10)
        argv = ["tune2fs", "-O", "mmp", "-E", "mmp_update_interval=1", str(ve.image)]
        subprocess.run(argv, check=True, capture_output=True)
        ve.declare()
        ve.start()
        run(daemon)
        daemon.wait_until_known("ve101")
        before = ve.inode
        refused(daemon, ve.device, "multiple mount protection is set")
        assert ve.inode == before
        assert ve.wait_for_write()


class TestServedByAVe:
    def test_who_has_an_image_on_what_a_ve_serves_depends_on_that_ve(
        self, daemon, work, make_ve
    ) -> None:
        """ve102 has a FUSE server; the image of ve101 lies on what that serves."""
        if shutil.which("bindfs") is None:
            pytest.skip("needs bindfs")
        behind, point = work / "behind", work / "served"
        appliance = make_ve("ve102", files=10)
        appliance.declare()
        appliance.start()
        with serving(behind, point) as server:
            procs = cgroup.directories(appliance.cgroup)[0] / "cgroup.procs"
            procs.write_text(str(server.pid))
            ve = make_ve(on=point, files=10)
            ve.declare()
            ve.start()
            try:
                run(daemon)
                daemon.wait_until_known("ve101", "ve102")
                trigger(appliance.device)
                incident = daemon.wait_for_incident(ve="ve102")
                assert "declared:ve101" in incident["ves_through_stack"]
                wait_until(lambda: "NO  scope" in daemon.why(incident["id"]), LATE_S)
                trigger(ve.device)
                words = f"({behind}, served by declared:ve102)"

                def told() -> bool:
                    return any(words in daemon.why(one["id"]) for one in daemon.incidents("ve101"))

                wait_until(told, LATE_S, words)
                assert ve.wait_for_write()
            finally:
                ve.kill()


class TestTheNodesOwn:
    """Volumes that are declared as a VE's, by mistake, while the node itself uses them."""

    @pytest.fixture
    def touched(self, work: Path) -> Path:
        """Exists once anything of the VE was started, stopped or killed."""
        return work / "touched"

    def declare(self, work: Path, volume: str, touched: Path) -> None:
        command = json.dumps(["touch", str(touched)])
        (work / "ve.d").mkdir(exist_ok=True)
        (work / "ve.d" / "ve101.toml").write_text(
            f'[[ve]]\nname = "ve101"\nvolume = [{{ {volume} }}]\n'
            f"start = {command}\nstop = {command}\nkill = {command}\n"
        )

    def mounted(self, work: Path, image: Path, point: str) -> str:
        (work / point).mkdir()
        argv = ["mount", "-o", "loop,errors=continue", str(image), str(work / point)]
        subprocess.run(argv, check=True)
        (device,) = loops_of(image)
        return device

    def test_what_holds_the_daemons_state(self, daemon, work, touched) -> None:
        image = make_image(work / "state.img", size=256 << 20)
        device = self.mounted(work, image, "state")
        self.declare(work, f'image = "{image}"', touched)
        run(daemon)
        daemon.wait_until_known("ve101")
        refused(daemon, device, f"keeps its state in {work}/state")
        self.not_held(daemon, image, f"keeps its state in {work}/state")
        assert not touched.exists()
        daemon.stop()

    def test_what_holds_the_image_with_the_daemons_state(self, daemon, work, touched) -> None:
        image = make_image(work / "volume.img", size=512 << 20)
        self.mounted(work, image, "volume")
        self.mounted(work, make_image(work / "volume" / "state.img", size=256 << 20), "state")
        self.declare(work, f'image = "{image}"', touched)
        run(daemon)
        daemon.wait_until_known("ve101")
        self.not_held(daemon, image, f"keeps its state in {work}/state")
        assert not touched.exists()
        daemon.stop()

    def not_held(self, daemon: DaemonUnderTest, image: Path, words: str) -> None:
        """It would be frozen for a copy, and the daemon would wait for itself."""
        asked = fswatch(daemon, "snapshot", "ve101")
        assert asked.returncode != 0
        assert words in asked.stderr
        assert not list(image.parent.glob("*.snapshot-*"))

    def test_what_is_mounted_and_declared_and_nothing_else_is_repaired(
        self, daemon, work, touched
    ) -> None:
        """The same without being the node's own: the guards let it pass."""
        image = make_image(work / "volume.img")
        device = self.mounted(work, image, "volume")
        self.declare(work, f'image = "{image}"', touched)
        run(daemon)
        daemon.wait_until_known("ve101")
        trigger(device)
        incident = wait_until(lambda: daemon.incidents("ve101"), LATE_S)[0]
        wait_until(lambda: "yes scope" in daemon.why(incident["id"]), LATE_S)

    def test_a_filesystem_that_the_node_swaps_to(self, daemon, work, touched) -> None:
        image = make_image(work / "volume.img", size=128 << 20)
        device = self.mounted(work, image, "volume")
        area = work / "volume" / "swapfile"
        area.write_bytes(bytes(8 << 20))
        area.chmod(0o600)
        self.declare(work, f'image = "{image}"', touched)
        with swapping(area):
            run(daemon)
            daemon.wait_until_known("ve101")
            refused(daemon, device, f"the node, which swaps to {area}")
            assert not touched.exists()

    def test_a_device_that_the_node_swaps_to(self, daemon, work, touched) -> None:
        area = work / "area.img"
        area.write_bytes(bytes(8 << 20))
        device, fd = loop.attach(os.open(area, os.O_RDWR), autoclear=False)
        os.close(fd)
        self.declare(work, f'image = "{area}"', touched)
        with swapping(Path(device)):
            run(daemon)
            wait_until(lambda: daemon.status()["ves"], LATE_S)
            for how in ((), ("--dry-run",)):
                asked = fswatch(daemon, "repair", "ve101", *how)
                assert asked.returncode != 0
                assert f"the node, which swaps to {device}" in asked.stderr + asked.stdout
            assert not touched.exists()


class swapping:
    """Swap to a file or device for a while."""

    def __init__(self, area: Path) -> None:
        self._area = str(area)

    def __enter__(self) -> None:
        subprocess.run(["mkswap", self._area], check=True, capture_output=True)
        done = subprocess.run(["swapon", self._area], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine cannot swap: {done.stderr}")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["swapoff", self._area], check=True)


# A VE with two volumes and nothing else in its mount namespace; argv: the directory of its images.
_TWO = """
set -eu
cd "$1"
mkdir -p root
setsid unshare -m --propagation private sh -c '
    mount -t tmpfs none root
    mkdir root/one root/two root/old
    cp "$(command -v busybox)" root/busybox
    mount -o loop,errors=continue one.img root/one
    mount -o loop,errors=continue two.img root/two
    echo $$ > ve.pid.new
    cd root
    pivot_root . old
    /busybox mv old/"$0"/ve.pid.new old/"$0"/ve.pid
    cd /
    exec /busybox sh -c "/busybox umount -l /old; exec /busybox sleep 1000000"
' "$1" </dev/null >/dev/null 2>&1 &
while ! [ -s ve.pid ]; do sleep 0.02; done
"""
_KILL = '[ -s "$1/ve.pid" ] && kill -9 "$(cat "$1/ve.pid")" 2>/dev/null; rm -f "$1/ve.pid"; exit 0'


class TestSeveralVolumes:
    @pytest.fixture
    def two(self, work: Path, host: Path) -> Iterator[list[Path]]:
        """The images of a running VE that has two."""
        place = host / "two"
        place.mkdir()
        images = [make_image(place / f"{name}.img") for name in ("one", "two")]

        def command(script: str) -> list[str]:
            return ["sh", "-c", script, "sh", str(place)]

        volumes = ", ".join(
            f'{{ image = "{image}", mountpoint = "/{image.stem}" }}' for image in images
        )
        (work / "ve.d").mkdir(exist_ok=True)
        (work / "ve.d" / "ve101.toml").write_text(
            f'[[ve]]\nname = "ve101"\npid_file = "{place}/ve.pid"\nvolume = [{volumes}]\n'
            f"start = {json.dumps(command(_TWO))}\nstop = {json.dumps(command(_KILL))}\n"
            f"kill = {json.dumps(command(_KILL))}\n"
        )
        subprocess.run(command(_TWO), check=True, timeout=30)
        yield images
        subprocess.run(command(_KILL), check=True)

    def known(self, daemon: DaemonUnderTest, two: list[Path]) -> None:
        def both() -> bool:
            wanted = {os.path.basename(device) for image in two for device in loops_of(image)}
            (ve,) = (ve for ve in daemon.status()["ves"] if ve["name"] == "ve101")
            return len(wanted) == 2 and wanted <= {fs["device"] for fs in ve["filesystems"]}

        wait_until(both, LATE_S, "both volumes to be known")

    @pytest.mark.parametrize("strategy", ["clone", "offline"])
    def test_the_others_are_released_too_before_the_ve_starts_again(
        self, daemon, two, strategy
    ) -> None:
        run(daemon, rules=rules.repair(strategy) + rules.TELL)
        self.known(daemon, two)
        (device,) = loops_of(two[0])
        damage(device)
        incident = ended(daemon, two[0])
        assert incident["outcome"] == "repaired", daemon.why(incident["id"])
        assert [len(loops_of(image)) for image in two] == [1, 1]
        self.known(daemon, two)

    def test_a_volume_that_somebody_else_has_mounted_too_keeps_the_other_from_repair(
        self, daemon, two
    ) -> None:
        """After a stop it would still be mounted, and the start would mount its image twice."""
        pid = int((two[0].parent / "ve.pid").read_text())
        argv = ["nsenter", "-t", str(pid), "-m", "/busybox", "unshare", "-m"]
        argv += ["/busybox", "sh", "-c"]
        # The first volume would be shared itself, if this one kept it.
        argv.append("/busybox umount /one; exec /busybox sleep 1000000")
        with subprocess.Popen(argv) as other:
            try:
                run(daemon)
                self.known(daemon, two)
                (device,) = loops_of(two[0])
                words = "a start would mount its image twice"
                wait_until(
                    lambda: words in fswatch(daemon, "repair", device, "--dry-run").stderr, LATE_S
                )
                damage(device)
                incident = ended(daemon, two[0])
                assert incident["state"] == "needs-operator"
                assert words in daemon.why(incident["id"])
                assert int((two[0].parent / "ve.pid").read_text()) == pid
                os.kill(pid, 0)
                assert [len(loops_of(image)) for image in two] == [1, 1]
            finally:
                other.kill()


def ended(daemon: DaemonUnderTest, image: Path) -> dict[str, Any]:
    """The incident of a volume once nothing more is done about it."""

    def found() -> dict[str, Any] | None:
        about = [i for i in daemon.incidents() if i["filesystem"]["image"] == str(image)]
        return next((i for i in about if i["state"] in {"closed", "needs-operator"}), None)

    return dict(wait_until(found, LATE_S, f"the end of what is wrong with {image}"))


def damage(device: str) -> None:
    """A wrong count of links, for e2fsck to find, and an error that the kernel reports."""
    argv = ["debugfs", "-w", "-R", "set_inode_field <11> links_count 9", device]
    subprocess.run(argv, check=True, capture_output=True)
    trigger(device)
