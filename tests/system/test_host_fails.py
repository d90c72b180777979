"""What happens above when something beneath fails: one incident for it, on the real kernel."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.drill.receiver import Receiver
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import fs
from tests.system import rules
from tests.system.conftest import fswatch, make_host, wait_until
from tests.system.test_stack import about, device_of, fill, nested_host, run
from tests.system.ves import MiniVe

COUNT = 20
SMALL = {"files": 1, "size": 24 << 20, "quiet": True}


def told(receiver: Receiver, kind: str) -> list[dict[str, Any]]:
    """The incidents that notices of this kind were about, in their order."""
    full = f"org.fswatchd.incident.{kind}"
    return [body["data"] for _, body in receiver.notices if body["type"] == full]


def run_telling(daemon, receiver: Receiver, work: Path, *ves: MiniVe, **config: str) -> None:
    secret = work / "secret"
    secret.write_text(receiver.secret)
    secret.chmod(0o600)
    run(daemon, *ves, channels=rules.channel(receiver.url, secret), **config)


def shut_down(point: Path) -> None:
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fs.shutdown(fd)
    finally:
        os.close(fd)


def names(ves: list[MiniVe]) -> set[str]:
    return {f"declared:{ve.name}" for ve in ves}


def declared(incident: dict[str, Any]) -> set[str]:
    """The VEs of the test: a container of another test may have all mounts of the node."""
    return {ve for ve in incident["ves"] if ve.startswith("declared:")}


def devices(work: Path) -> set[str]:
    """The loop devices of the test: other tests on the machine have incidents of their own."""
    images = (path for path in work.rglob("*.img") if path.is_file())
    return {os.path.basename(device_of(image)) for image in images}


def ours(work: Path, found: list[dict[str, Any]]) -> list[str]:
    return [i["id"] for i in found if i["filesystem"]["device"] in devices(work)]


def shown(daemon, work: Path) -> list[str]:
    """What `fswatch incidents` lists."""
    return ours(work, daemon.client.get("/v1/incidents")["incidents"])


@pytest.mark.timeout(400)
class TestOneIncident:
    def test_a_host_filesystem_that_fails_beneath_20_images_is_one_incident_and_one_notice(
        self, daemon, work, make_ve, receiver
    ) -> None:
        host = nested_host(work, "vz", "ext4", 2 << 30)
        ves = [make_ve(f"ve{101 + n}", on=host, **SMALL) for n in range(COUNT)]
        run_telling(daemon, receiver, work, *ves)
        before = [ve.inode for ve in ves]
        shut_down(host)
        for ve in ves:
            ve.ask("write", path="/new", size="65536")
        cause = wait_until(lambda: about(daemon, device_of(work / "vz.img")), 120)

        def parts() -> list[dict[str, Any]]:
            return [i for i in daemon.incidents() if i["part_of"] == cause["id"]]

        wait_until(
            lambda: set().union(*(declared(i) for i in parts())) == names(ves), 120, "all to suffer"
        )
        wait_until(
            lambda: any(
                set(i["consequences"]) == {part["id"] for part in parts()}
                for i in told(receiver, "updated")
            ),
            120,
            "a notice that names all that came of it",
        )
        wait_until(lambda: ours(work, told(receiver, "opened")) == [cause["id"]], 120)
        opened = next(i for i in told(receiver, "opened") if i["id"] == cause["id"])
        assert declared(opened) == names(ves)
        assert ours(work, told(receiver, "waiting")) == []
        assert set(ours(work, told(receiver, "updated"))) == {cause["id"]}
        assert shown(daemon, work) == [cause["id"]]
        assert ours(work, daemon.status()["incidents"]) == [cause["id"]]
        assert [ve.inode for ve in ves] == before
        assert all(part["steps"] == [] for part in parts())
        self.says_so(daemon, cause["id"])

    def says_so(self, daemon, cause: str) -> None:
        lines = fswatch(daemon, "incidents").stdout.splitlines()
        (listed,) = [line for line in lines if "declared:ve1" in line]
        assert listed.startswith(cause)
        assert f"is the cause of {COUNT} other incidents" in listed
        one = fswatch(daemon, "status", "ve105")
        assert one.returncode == 1
        assert cause in one.stdout
        assert "The cause is ext4" in one.stdout
        assert re.search(r"It concerns (\d+) other VEs \(", one.stdout)
        part = fswatch(daemon, "incident", daemon.incidents("ve105")[0]["id"]).stdout
        assert "<-- the cause: it is shut down" in part
        story = daemon.why(cause)
        assert f"Came of it  {COUNT} incidents" in story
        assert f"{COUNT} VEs rest on it" in story

    def test_a_fault_in_one_image_on_a_host_that_is_well_is_an_incident_of_its_own(
        self, daemon, work, make_ve, receiver
    ) -> None:
        host = nested_host(work, "vz", "ext4", 1 << 30)
        ves = [make_ve(f"ve{101 + n}", on=host, **SMALL) for n in range(3)]
        run_telling(daemon, receiver, work, *ves, mode="observe", rules=rules.TELL)
        ves[1].ask("abort")
        wait_until(lambda: ours(work, told(receiver, "opened")), 120)
        (found,) = daemon.incidents("ve102")
        assert found["ves"] == ["declared:ve102"]
        assert (found["part_of"], found["cause"], found["consequences"]) == (None, None, [])
        assert ours(work, told(receiver, "opened")) == [found["id"]]
        assert ours(work, daemon.incidents()) == [found["id"]]
        assert fswatch(daemon, "status", "ve101").returncode == 0
        assert ves[0].ask("write", path="/new", size="4096")[0]["failed"] is None


@pytest.mark.timeout(400)
class TestFullHost:
    @pytest.fixture
    def full(self, daemon, work, make_ve, receiver) -> tuple[dict[str, MiniVe], Path]:
        """VEs of three filesystems on a host that has no room; each has lost what it wrote."""
        host = nested_host(work, "full", "xfs", 1 << 30)
        # A journal that has never been written has no room in a sparse image either.
        mkfs = {"ext4": ("-E", "lazy_journal_init=1"), "xfs": (), "btrfs": ()}
        ves = {
            kind: make_ve(
                f"ve-{kind}",
                on=host,
                fstype=kind,
                mkfs=options,
                files=1,
                size=400 << 20,
                quiet=True,
            )
            for kind, options in mkfs.items()
        }
        run_telling(daemon, receiver, work, *ves.values())
        return ves, fill(host)

    def test_each_goes_on_as_it_can_when_there_is_room_again(
        self, daemon, work, receiver, full
    ) -> None:
        ves, ballast = full
        inodes = {}
        for kind, ve in ves.items():
            (answer, _) = ve.ask("write", path="/lost", size=str(4 << 20))
            assert answer["failed"] == errno.ENOSPC, kind
            inodes[kind] = answer["inode"]
        stop_for_good(ves["ext4"])
        cause = wait_until(lambda: about(daemon, device_of(work / "full.img")), 120)
        assert cause["class"] == "space"
        assert declared(cause) == names(list(ves.values()))

        def damage(kind: str) -> dict[str, Any]:
            found = daemon.incidents(f"ve-{kind}")
            return next((i for i in found if i["class"] != "space" and i["id"] != cause["id"]), {})

        for kind in ves:
            wait_until(lambda kind=kind: damage(kind).get("part_of") == cause["id"], 120, kind)
            assert damage(kind)["cause"]["kind"] == "space"
            assert damage(kind)["waiting_for"] == "cause"
            assert damage(kind)["steps"] == []
        wait_until(lambda: shown(daemon, work) == [cause["id"]], 120)
        wait_until(lambda: ours(work, told(receiver, "opened")) == [cause["id"]], 120)
        for kind in ("ext4", "xfs"):
            wait_until(
                lambda kind=kind: inodes[kind] in [f["inode"] for f in damage(kind)["lost"]], 120
            )
            assert f"inode {inodes[kind]}" in daemon.why(damage(kind)["id"])
        before = {kind: ve.inode for kind, ve in ves.items()}

        ballast.unlink()

        def ended(kind: str, state: str, outcome: str | None) -> None:
            wait_until(
                lambda: (damage(kind)["state"], damage(kind)["outcome"]) == (state, outcome),
                90,
                f"{kind} to be {state}: {daemon.why(damage(kind)['id'])}",
            )

        ended("xfs", "closed", "recovered")
        ended("ext4", "closed", "repaired")
        ended("btrfs", "closed", "repaired")
        assert ves["xfs"].inode == before["xfs"]
        for kind in ("ext4", "btrfs"):
            assert ves[kind].inode != before[kind]
        for kind in ves:
            (answer, _) = ves[kind].ask("write", path="/after", size="4096")
            assert answer["failed"] is None, kind
        wait_until(lambda: about(daemon, device_of(work / "full.img"))["state"] == "closed", 120)
        # The XFS told nobody that it waited, but that it has lost data.
        (closed,) = wait_until(
            lambda: [i for i in told(receiver, "closed") if i["id"] == damage("xfs")["id"]], 120
        )
        assert inodes["xfs"] in [file["inode"] for file in closed["lost"]]
        opened = [i["id"] for i in told(receiver, "opened")]
        mine = {i["id"] for kind in ves for i in daemon.incidents(f"ve-{kind}")}
        expected = {cause["id"], damage("ext4")["id"], damage("btrfs")["id"]}
        others = mine.intersection(opened) - expected
        assert not others, "\n".join(daemon.why(one) for one in others)
        assert expected <= set(opened)
        assert len(opened) == len(set(opened))


def stop_for_good(ve: MiniVe) -> None:
    """Write until the journal itself cannot be written, and ext4 has stopped."""

    numbers = itertools.count()

    def stopped() -> bool:
        answer = ve.ask("write", path=f"/data/more-{next(numbers)}", size="4096")
        return answer[-1].get("errno") in {errno.EROFS, errno.EIO}

    wait_until(stopped, 120, "ext4 to stop")


async def test_what_rests_on_a_host_that_has_shut_down_is_known_still(work: Path) -> None:
    """The loop driver asks the host for the image's inode, and gets EIO then."""
    host, image, point = make_host(work), work / "host-xfs" / "a.img", work / "a"
    with image.open("xb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    above, below = (Devno.of(os.stat(one).st_dev) for one in (point, host))
    inventory = Inventory([])
    try:
        await inventory.refresh()
        assert below in inventory.view.beneath(above)
        shut_down(host)
        for _ in range(2):
            await inventory.refresh(forget=True)
            assert below in inventory.view.beneath(above)
            assert inventory.view.superblocks[above].backing.image == str(image)
    finally:
        await inventory.close()
