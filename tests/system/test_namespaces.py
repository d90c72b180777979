"""Mount namespaces as containers really have them: whose a mount is, and what must not be believed.

The VEs here are processes in a namespace and a cgroup of their own, set up by a shell script.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.helpers.client import Helper
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, VeId
from fswatchd.inventory.view import Users
from fswatchd.kernel import block, cgroup, loop
from fswatchd.platforms.declared import DeclaredPlatform
from tests.system import rules
from tests.system.conftest import PROJECT, fswatch, wait_until
from tests.system.test_nspawn import Nspawn, containers, make_tree
from tests.system.test_stack import about, device_of, digest, run, trigger

__all__ = ["containers"]


def make_image(path: Path, size: int = 32 << 20) -> Path:
    with path.open("xb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path], check=True, capture_output=True)
    return path


# The VE begins with a copy of all that is mounted; what other tests have mounted is none of its.
_WITHOUT_OTHERS = """
test "$(readlink /proc/self/ns/mnt)" != "{1}"
awk '$5 ~ "^/var/tmp/" && index($5, "{0}") != 1 {{print $5}}' /proc/self/mountinfo | tac |
while read -r point; do umount -l "$point" 2>/dev/null || true; done
"""


def _own() -> str:
    return os.readlink("/proc/self/ns/mnt")


class ShellVe:
    """A VE whose namespace a script has set up; `pid` is its one process."""

    def __init__(self, work: Path, name: str, script: str, *unshare: str) -> None:
        self.name = name
        self.group = f"/{work.name}-{name}"
        directory = cgroup.hierarchies()[0] / self.group.lstrip("/")
        directory.mkdir()
        line = f"set -e; echo $$ > {directory}/cgroup.procs; exec unshare {' '.join(unshare)} -m"
        argv = ["sh", "-c", f'{line} sh -ec "$0"', _WITHOUT_OTHERS.format(work, _own()) + script]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self.pid = wait_until(self._sleeps, what=f"{name} to run")

    def _sleeps(self) -> int | None:
        assert self._process.poll() is None, f"{self.name} has ended"
        found = [pid for pid in cgroup.pids(self.group) if "sleep" in _command(pid)]
        return found[0] if found else None

    def inside(self, *argv: str) -> None:
        """Run a program of the node in its mount namespace."""
        subprocess.run(["nsenter", "-t", str(self.pid), "-m", *argv], check=True)

    def end(self) -> None:
        """Kill it."""
        cgroup.kill(self.group)
        self._process.wait()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""


@pytest.fixture
def make_shell_ve(work: Path) -> Iterator[Callable[..., ShellVe]]:
    made: list[ShellVe] = []

    def make(name: str, script: str, *unshare: str, image: Path | None = None) -> ShellVe:
        (work / "ve.d").mkdir(exist_ok=True)
        volume = f'volume = [{{ image = "{image}" }}]\n' if image else ""
        ve = ShellVe(work, name, script, *unshare)
        made.append(ve)
        (work / "ve.d" / f"{name}.toml").write_text(
            f'[[ve]]\nname = "{name}"\ncgroup = "{ve.group}"\n{volume}'
        )
        return ve

    yield make
    for ve in made:
        ve.end()


_ROOT = "mount --bind {0} {0}; cd {0}; "
# How a VE got its root, and whether it can still reach what the node had mounted.
_WAYS = {
    "moved": (_ROOT + "mount --move . /; exec chroot . /bin/sleep 1000", False),
    "pivoted": (
        _ROOT + "mkdir -p old; pivot_root . old; /bin/busybox umount -l /old; exec /bin/sleep 1000",
        False,
    ),
    "pivoted-and-kept": (_ROOT + "mkdir -p old; pivot_root . old; exec /bin/sleep 1000", True),
    "chroot": ("exec chroot {0} /bin/sleep 1000", True),
    "moved-but-beneath": (_ROOT + "mount --move . /; exec sleep 1000", True),
    "copied": ("exec sleep 1000", True),
}


class TestLeftovers:
    """Copies of the node's mounts in a VE's namespace.

    `own` is a VE whose volume the node has mounted (as OpenVZ does), `other` one that was started
    meanwhile.
    """

    @pytest.fixture
    def volume(self, work: Path) -> Iterator[Path]:
        """The mounted volume of `own`, below a mount that passes its mounts on."""
        image = make_image(work / "own.img")
        (work / "ve.d").mkdir()
        (work / "ve.d" / "own.toml").write_text(
            f'[[ve]]\nname = "own"\nvolume = [{{ image = "{image}" }}]\n'
        )
        place = work / "mounts"
        (place / "own").mkdir(parents=True)
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "--make-shared", place], check=True)
        subprocess.run(["mount", "-o", "loop", image, place / "own"], check=True)
        yield place / "own"
        while subprocess.run(["umount", place / "own"], capture_output=True).returncode == 0:
            pass

    async def users(self, work: Path, volume: Path) -> Users:
        inventory = Inventory([DeclaredPlatform([work / "ve.d"])])
        try:
            await inventory.refresh()
            return inventory.view.users[Devno.of(volume.stat().st_dev)]
        finally:
            await inventory.close()

    @pytest.mark.parametrize("way", _WAYS)
    async def test_who_cannot_reach_a_copy_is_no_user(
        self, work: Path, volume: Path, make_shell_ve, way: str
    ) -> None:
        """Slaves, as systemd makes them: the copy goes when the node unmounts."""
        script, uses = _WAYS[way]
        tree = make_tree(work / "tree")
        make_shell_ve("other", script.format(tree), "--propagation", "slave")
        found = await self.users(work, volume)
        wanted = ["declared:own", "declared:other"] if uses else ["declared:own"]
        assert sorted(found.ves) == sorted(wanted)
        assert found.foreign == ()
        device = device_of(work / "own.img")
        subprocess.run(["umount", volume], check=True)
        wait_until(lambda: not block.is_claimed(device), what="the node's umount to be enough")

    async def test_a_private_copy_that_nobody_can_reach_holds_the_filesystem(
        self, work: Path, volume: Path, make_shell_ve
    ) -> None:
        script, _ = _WAYS["moved"]
        make_shell_ve("other", script.format(make_tree(work / "tree")))
        found = await self.users(work, volume)
        assert found.ves == ("declared:own",)
        assert len(found.foreign) == 1
        assert "declared:other (a mount that it cannot reach" in found.foreign[0]
        device = device_of(work / "own.img")
        subprocess.run(["umount", volume], check=True)
        assert block.is_claimed(device)

    async def test_what_it_has_mounted_under_another_mount_it_uses(
        self, work: Path, volume: Path, make_shell_ve
    ) -> None:
        """Whoever had a file open there before goes on using it."""
        device = device_of(work / "own.img")
        script = (
            _ROOT + "mkdir -p data; mount {1} data; mount -t tmpfs t data;"
            " mount --move . /; exec chroot . /bin/sleep 1000"
        )
        tree = make_tree(work / "tree")
        make_shell_ve("other", script.format(tree, device), "--propagation", "slave")
        found = await self.users(work, volume)
        assert sorted(found.ves) == ["declared:other", "declared:own"]

    @pytest.mark.skipif(
        shutil.which("systemd-nspawn") is None, reason="systemd-container is not installed"
    )
    def test_a_container_of_nspawn_does_not_stand_in_the_way_of_a_repair(
        self, daemon, work: Path, volume: Path, containers: Nspawn
    ) -> None:
        name = f"{work.name}-b"
        containers.start(name, "-D", str(make_tree(work / "tree")))
        self.error(daemon, work, name)
        incident = daemon.wait_for_incident("waiting", ve="own")
        assert f"nspawn:{name}" not in incident["ves"]
        assert incident["waiting_for"] == "approval"
        assert "yes scope" in daemon.why(incident["id"])

    @pytest.mark.skipif(
        shutil.which("systemd-nspawn") is None, reason="systemd-container is not installed"
    )
    def test_a_container_of_nspawn_that_was_given_the_filesystem_uses_it(
        self, daemon, work: Path, volume: Path, containers: Nspawn
    ) -> None:
        name = f"{work.name}-b"
        tree = make_tree(work / "tree")
        containers.start(name, f"--bind={volume}:/mnt", "-D", str(tree))
        self.error(daemon, work, name)
        incident = refused(daemon, device_of(work / "own.img"), "2 VEs share")
        assert sorted(incident["ves"]) == ["declared:own", f"nspawn:{name}"]

    def error(self, daemon, work: Path, container: str) -> None:
        """An error on the volume of `own`, when both are known."""
        daemon.configure(rules=rules.repair(mode='"approve"') + rules.TELL)
        daemon.start()
        wait_until(
            lambda: {"own", container} <= {ve["name"] for ve in daemon.status()["ves"]},
            what="both to be known",
        )
        trigger(device_of(work / "own.img"))


def refused(daemon, device: str, why: str) -> dict:
    """The incident on the device, when it is confirmed and decided that nothing is done."""

    def decided() -> dict | None:
        found = about(daemon, device)
        return found if found and found["confirmed"] and why in daemon.why(found["id"]) else None

    try:
        incident = wait_until(decided, 60, why)
    except BaseException:
        found = about(daemon, device)
        print(daemon.why(found["id"]) if found else f"no incident on {device}")
        raise
    assert incident["steps"] == []
    return dict(incident)


def mount_points(daemon, name: str) -> set[str]:
    (ve,) = daemon.client.get("/v1/status", ve=name)["ves"]
    return {point for found in ve["filesystems"] for point in found["mountpoints"]}


class TestMountsOfAVe:
    @pytest.fixture
    def image(self, work: Path) -> Path:
        return make_image(work / "a.img")

    @pytest.fixture
    def ve(self, work: Path, image: Path, make_shell_ve) -> ShellVe:
        """A VE that has mounted the image at `data`."""
        for name in ("data", "second", "moved"):
            (work / name).mkdir()
        script = f"mount -o loop {image} {work}/data; exec sleep 1000"
        return make_shell_ve("a", script)

    def test_one_in_a_user_namespace_is_attributed(
        self, daemon, work: Path, image: Path, make_shell_ve
    ) -> None:
        (work / "data").mkdir()
        script = f"mount -o loop {image} {work}/data; exec unshare -U -m sleep 1000"
        ve = make_shell_ve("a", script)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{ve.pid}/{name}").write_text("0 100000 65536")
        daemon.configure(mode="observe", rules=rules.TELL)
        daemon.start()
        daemon.wait_until_known("a")
        trigger(device_of(image))
        assert daemon.wait_for_incident(ve="a")["ves"] == ["declared:a"]

    def test_a_mount_that_was_moved_is_shown_where_it_is(
        self, daemon, work: Path, image: Path, ve: ShellVe
    ) -> None:
        daemon.configure(mode="observe", rules=rules.TELL)
        daemon.start()
        daemon.wait_until_known("a")
        ve.inside("mount", "--bind", f"{work}/data", f"{work}/data/lost+found")
        both = {f"{work}/data", f"{work}/data/lost+found"}
        wait_until(lambda: both <= mount_points(daemon, "a"), 60)
        ve.inside("mount", "--move", f"{work}/data", f"{work}/moved")
        # What is mounted on the moved one has moved with it, of which no event tells.
        both = {f"{work}/moved", f"{work}/moved/lost+found"}
        wait_until(
            lambda: both <= (shown := mount_points(daemon, "a")) and f"{work}/data" not in shown, 60
        )
        trigger(device_of(image))
        incident = daemon.wait_for_incident(ve="a")
        assert incident["ves"] == ["declared:a"]
        assert f"{work}/moved" in incident["filesystem"]["mountpoints"]

    def test_a_bind_mount_made_later_is_seen(self, daemon, work: Path, ve: ShellVe) -> None:
        daemon.configure(mode="observe", rules=rules.TELL)
        daemon.start()
        daemon.wait_until_known("a")
        ve.inside("mount", "--bind", f"{work}/data", f"{work}/second")
        both = {f"{work}/data", f"{work}/second"}
        wait_until(lambda: both <= mount_points(daemon, "a"), 60)

    def test_a_filesystem_bound_into_another_ve_later_is_shared(
        self, daemon, work: Path, image: Path, ve: ShellVe, make_shell_ve
    ) -> None:
        other = make_shell_ve("b", "exec sleep 1000")
        daemon.configure(rules=rules.repair() + rules.TELL)
        daemon.start()
        daemon.wait_until_known("a")
        device = device_of(image)
        other.inside("mount", device, f"{work}/second")
        trigger(device)
        incident = refused(daemon, device, "2 VEs share")
        assert sorted(incident["ves"]) == ["declared:a", "declared:b"]


SILENT = """
import os, signal, sys
from fswatchd.kernel.syscalls import mount
server = os.open("/dev/fuse", os.O_RDWR)
mount("silent", sys.argv[1], "fuse", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0")
print("mounted", flush=True)
signal.pause()
"""


class TestHostileVes:
    @pytest.fixture
    def silent_ve(self, work: Path, make_shell_ve) -> Iterator[ShellVe]:
        """A VE with an ext4, and over its mount point a FUSE server that never answers."""
        (work / "data").mkdir()
        image = make_image(work / "a.img")
        script = f"mount -o loop {image} {work}/data; exec sleep 1000"
        ve = make_shell_ve("silent", script)
        argv = ["nsenter", "-t", str(ve.pid), "-m", sys.executable, "-c", SILENT, f"{work}/data"]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=PROJECT)
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        yield ve
        server.kill()
        server.wait()
        server.stdout.close()

    @pytest.mark.parametrize("first", ["ve", "daemon"])
    def test_one_whose_mount_never_answers_holds_nobody_up(
        self, daemon, work: Path, make_ve, request: pytest.FixtureRequest, first: str
    ) -> None:
        """It comes before the daemon, or while that runs; the other VE is repaired all the same."""
        if first == "ve":
            request.getfixturevalue("silent_ve")
        ve = make_ve(files=10)
        run(daemon, ve)
        if first == "daemon":
            request.getfixturevalue("silent_ve")
        wait_until(lambda: "silent" in {one["name"] for one in daemon.status()["ves"]}, 60)
        ve.damage_directory()
        found = daemon.wait_for_incident("closed")
        assert found["outcome"] == "repaired", daemon.why(found["id"])
        assert fswatch(daemon, "status", "silent").returncode == 0
        # What it has mounted beneath is heard by the log all the same.
        device = device_of(work / "a.img")
        trigger(device)
        wait_until(lambda: about(daemon, device), 60)
        assert about(daemon, device)["ves"] == ["declared:silent"]

    async def test_a_mount_point_that_became_a_link_leads_nowhere_else(
        self, work: Path, make_shell_ve
    ) -> None:
        """Also while the daemon still knows the mount by its old path."""
        image = make_image(work / "a.img")
        host = Devno.of(work.stat().st_dev)
        (work / "x" / "data").mkdir(parents=True)
        script = f"mount -o loop {image} {work}/x/data; exec sleep 1000"
        make_shell_ve("a", script)
        inventory = Inventory([DeclaredPlatform([work / "ve.d"])])
        try:
            await inventory.refresh()
            before = self.only_image(inventory, image)
            (work / "x").rename(work / "y")
            (work / "x").symlink_to("/")
            for look in range(2):
                with suppress(OSError):
                    async with inventory.opened(before) as fd:
                        assert Devno.of(os.fstat(fd).st_dev) == before.devno != host
                        assert look == 1
                await inventory.refresh(forget=True)
                before = self.only_image(inventory, image)
            assert before.mounts[0].mount.point == f"{work}/y/data"
            async with inventory.opened(before) as fd:
                assert Devno.of(os.fstat(fd).st_dev) == before.devno
        finally:
            await inventory.close()

    def only_image(self, inventory: Inventory, image: Path) -> Superblock:
        name = os.path.basename(device_of(image))
        found = inventory.view.superblocks_of(VeId("declared:a"))
        return next(superblock for superblock in found if superblock.device == name)

    async def test_a_link_to_the_hosts_root_is_refused(self, work: Path, make_shell_ve) -> None:
        """The filesystem of the host is asked for, by a path of the VE that leads to it."""
        (work / "link").symlink_to("/")
        ve = make_shell_ve("a", "exec sleep 1000")
        helper = Helper("fswatchd.helpers.mounts")
        namespace = os.open(f"/proc/{ve.pid}/ns/mnt", os.O_RDONLY)
        devno = Devno.of(os.stat("/").st_dev)
        try:
            message = {"path": f"{work}/link", "devno": str(devno)}
            with pytest.raises(OSError, match="symbolic link"):
                await helper.request(message, (namespace,), timeout_s=5)
        finally:
            os.close(namespace)
            await helper.close()


class TestReusedLoop:
    @pytest.mark.parametrize("mounted", [False, True], ids=["attached", "mounted"])
    def test_a_loop_number_that_got_another_image_is_not_touched(
        self, daemon, work: Path, make_shell_ve, mounted: bool
    ) -> None:
        """Between the incident and its approval."""
        image, other = make_image(work / "a.img"), make_image(work / "b.img")
        for name in ("data", "second"):
            (work / name).mkdir()
        device = device_attached(image)
        script = f"mount {device} {work}/data; exec sleep 1000"
        ve = make_shell_ve("a", script, image=image)
        daemon.configure(rules=rules.repair(mode='"approve"') + rules.TELL)
        daemon.start()
        daemon.wait_until_known("a")
        trigger(device)
        incident = daemon.wait_for_incident("waiting", ve="a")
        assert incident["waiting_for"] == "approval"
        ve.inside("umount", f"{work}/data")
        subprocess.run(["losetup", "-d", device], check=True)
        wait_until(lambda: not is_attached(device))
        subprocess.run(["losetup", device, other], check=True)
        try:
            if mounted:
                ve.inside("mount", "-o", "ro,noload", device, f"{work}/second")
            before = [digest(image), digest(other)]
            fswatch(daemon, "approve", incident["id"])
            path = f"/v1/incidents/{incident['id']}"
            wait_until(lambda: daemon.client.get(path)["waiting_for"] == "mount")
            assert daemon.client.get(path)["steps"] == []
            assert daemon.client.get(path)["outcome"] != "repaired"
            assert "it is mounted nowhere" in daemon.why(incident["id"])
            assert [digest(image), digest(other)] == before
            assert loop.status(device).backing_inode == other.stat().st_ino
        finally:
            if mounted:
                ve.inside("umount", f"{work}/second")
            subprocess.run(["losetup", "-d", device], check=True)


def device_attached(image: Path) -> str:
    """A loop device of a high number, which nobody else is given while it is free."""
    for number in range(3000, 3100):
        argv = ["losetup", f"/dev/loop{number}", str(image)]
        if subprocess.run(argv, capture_output=True).returncode == 0:
            return f"/dev/loop{number}"
    pytest.fail("no loop device is free")


def is_attached(device: str) -> bool:
    return Path(f"/sys/block/{os.path.basename(device)}/loop/backing_file").exists()
