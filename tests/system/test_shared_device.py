"""A device that several VEs rest on, and that no filesystem of its own lies on: one disk, its
partitions the VEs' volumes. What is wrong with it is one incident, on the real kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fswatchd.drill.receiver import Receiver
from tests.system import rules
from tests.system.conftest import fswatch, wait_until
from tests.system.test_host_fails import declared, run_telling, told
from tests.system.test_stack import about, trigger

_SIZE, _FIRST = 64 << 20, 1 << 20
VE = '[[ve]]\nname = "{name}"\ncgroup = "/{cgroup}"\nvolume = [{{ {volume}, mountpoint = "/" }}]\n'


class Disk:
    """A disk whose partitions are the volumes of VEs, that the node has mounted for them."""

    def __init__(self, work: Path, ves: int) -> None:
        self.image = work / "disk.img"
        self.size = _FIRST + ves * _SIZE
        with self.image.open("xb") as file:
            file.truncate(self.size)
        argv = ["losetup", "-P", "-f", "--show", self.image]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        self.device = done.stdout.strip()
        for number in range(1, ves + 1):
            start = _FIRST + (number - 1) * _SIZE
            argv = ["addpart", self.device, str(number), str(start // 512), str(_SIZE // 512)]
            subprocess.run(argv, check=True)
            mounted(work / f"m{number}", self.partition(number))
            declare(work, f"ve{100 + number}", f'device = "{self.partition(number)}"')

    def partition(self, number: int) -> str:
        return f"{self.device}p{number}"

    def close(self) -> None:
        subprocess.run(["losetup", "-d", self.device], check=True)


def mounted(point: Path, device: Path | str, *options: str) -> None:
    argv = ["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0", str(device)]
    subprocess.run(argv, check=True, capture_output=True)
    point.mkdir()
    text = ",".join(("errors=continue", *options))
    subprocess.run(["mount", "-o", text, str(device), str(point)], check=True)


def declare(work: Path, name: str, volume: str) -> None:
    (work / "ve.d").mkdir(exist_ok=True)
    text = VE.format(name=name, cgroup=f"{work.name}-{name}", volume=volume)
    (work / "ve.d" / f"{name}.toml").write_text(text)


@pytest.fixture
def disk(work: Path) -> Iterator[Disk]:
    made = Disk(work, 3)
    yield made
    for number in (1, 2, 3):
        subprocess.run(["umount", work / f"m{number}"], check=False)
    made.close()


def cut_short(disk: Disk) -> Callable[[], None]:
    os.truncate(disk.image, disk.size - 4096)
    return lambda: os.truncate(disk.image, disk.size)


def made_readonly(disk: Disk) -> Callable[[], None]:
    subprocess.run(["blockdev", "--setro", disk.device], check=True)
    return lambda: subprocess.run(["blockdev", "--setrw", disk.device], check=True) and None


@pytest.mark.parametrize(
    ("breaks", "klass", "words"),
    [
        (cut_short, "io_error", "its image file is 4 KiB shorter than the device"),
        (made_readonly, "readonly", "it is read-only"),
    ],
)
def test_it_is_one_incident_and_one_notice_and_ends_with_the_fact(
    daemon,
    work: Path,
    disk: Disk,
    receiver: Receiver,
    breaks: Callable[[Disk], Callable[[], None]],
    klass: str,
    words: str,
) -> None:
    run_telling(daemon, receiver, work, mode="observe", rules=rules.TELL)
    wait_until(lambda: len([ve for ve in daemon.status()["ves"] if ve["filesystems"]]) >= 3)
    heal = breaks(disk)
    parts = [os.path.basename(disk.partition(number)) for number in (1, 2, 3)]
    for part in parts:
        trigger(part)
    own = wait_until(lambda: about(daemon, disk.device), 60, "an incident of the disk")
    assert (own["class"], own["confirmed"]) == (klass, True)
    assert declared(own) == {f"declared:ve{n}" for n in (101, 102, 103)}

    def found(part: str) -> dict[str, Any]:
        incident = about(daemon, part)
        assert incident is not None
        return incident

    for part in parts:
        wait_until(lambda part=part: found(part)["part_of"] == own["id"], 60, part)
        assert (found(part)["waiting_for"], found(part)["cause"]["object"]) == (
            "cause",
            disk.device,
        )
    assert words in daemon.why(found(parts[0])["id"])
    names = {os.path.basename(disk.device), *parts}

    def opened() -> list[str]:
        return [i["id"] for i in told(receiver, "opened") if i["filesystem"]["device"] in names]

    wait_until(lambda: opened() == [own["id"]], 60, "one notice")
    heal()
    ended = wait_until(lambda: (i := about(daemon, disk.device))["state"] == "closed" and i, 60)
    assert (ended["id"], ended["outcome"]) == (own["id"], "recovered")
    for part in parts:
        wait_until(lambda part=part: found(part)["cause"].get("until"), 60, "to be looked at anew")
        wait_until(lambda part=part: found(part)["waiting_for"] != "cause", 60)
    # What they have met themselves is theirs, and is told now.
    wait_until(
        lambda: sorted(opened()) == sorted([own["id"], *(found(p)["id"] for p in parts)]), 60
    )


def test_what_one_ve_rests_on_alone_is_its_own_incident(
    daemon, work: Path, disk: Disk, receiver: Receiver
) -> None:
    """An image of one VE is cut short beside a disk of three that is well."""
    image = work / "alone.img"
    with image.open("xb") as file:
        file.truncate(_SIZE)
    mounted(work / "alone", image, "loop")
    declare(work, "ve104", f'image = "{image}"')
    run_telling(daemon, receiver, work, mode="observe", rules=rules.TELL)
    daemon.wait_until_known("ve104")
    os.truncate(image, _SIZE - 4096)
    incident = daemon.wait_for_incident("open", "waiting", ve="ve104", timeout_s=120)

    def opened() -> list[str]:
        return [i["id"] for i in told(receiver, "opened") if "declared:ve104" in i["ves"]]

    wait_until(lambda: opened() == [incident["id"]], 60, "one notice")
    assert declared(incident) == {"declared:ve104"}
    assert incident["part_of"] is None
    assert [i["id"] for i in daemon.incidents("ve104")] == [incident["id"]]
    assert about(daemon, disk.device) is None
    for number in (1, 2, 3):
        assert daemon.incidents(f"ve{100 + number}") == []
    os.truncate(image, _SIZE)
    ended = daemon.wait_for_incident("closed", ve="ve104")
    assert (ended["id"], ended["outcome"]) == (incident["id"], "recovered")
    assert "nothing is wrong with its device any more" in daemon.why(incident["id"])


def test_an_operator_says_that_it_has_recovered(
    daemon, work: Path, disk: Disk, receiver: Receiver
) -> None:
    """What it has reported itself is remembered for ten minutes, unless somebody knows better."""
    run_telling(daemon, receiver, work, mode="observe", rules=rules.TELL)
    daemon.wait_until_known("ve101", "ve102", "ve103")
    heal = cut_short(disk)
    last = f"skip={disk.size // 4096 - 1}"
    argv = ["dd", f"if={disk.device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct", last]
    assert subprocess.run(argv, check=False, capture_output=True).returncode != 0
    own = wait_until(
        lambda: (i := about(daemon, disk.device)) and i["sources"] != ["state"] and i,
        60,
        "an incident of the disk by what it has reported",
    )
    part = os.path.basename(disk.partition(1))
    trigger(part)
    wait_until(lambda: (i := about(daemon, part)) and i["part_of"] == own["id"], 60, part)

    refused = fswatch(daemon, "ack", own["id"], "--recovered")
    assert refused.returncode != 0
    assert "4 KiB shorter than the device" in refused.stderr
    assert about(daemon, disk.device)["acknowledged_by"] is None

    heal()
    done = fswatch(daemon, "ack", own["id"], "--recovered", "--reason", "its image is whole again")
    assert done.returncode == 0, done.stderr
    ended = about(daemon, disk.device)
    assert (ended["id"], ended["state"], ended["outcome"]) == (own["id"], "closed", "recovered")
    assert "its image is whole again" in daemon.why(own["id"])
    wait_until(lambda: about(daemon, part)["waiting_for"] != "cause", 60, "to be decided anew")
