"""What lies beneath and above a device, on a tree laid out as sysfs is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.kernel import block


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """dm-0 on md0 on sda1 and sdb1."""
    numbers = {"sda": "8:0", "sda1": "8:1", "sdb": "8:16", "sdb1": "8:17", "md0": "9:0"}
    numbers["dm-0"] = "253:0"
    paths = {name: tmp_path / "block" / name for name in numbers if not name.endswith("1")}
    paths |= {name: tmp_path / "block" / name[:-1] / name for name in ("sda1", "sdb1")}
    (tmp_path / "dev/block").mkdir(parents=True)
    for name, path in paths.items():
        for directory in ("slaves", "holders"):
            (path / directory).mkdir(parents=True)
        (path / "dev").write_text(f"{numbers[name]}\n")
        (tmp_path / "dev/block" / numbers[name]).symlink_to(path)
    for upper, lower in (("dm-0", "md0"), ("md0", "sda1"), ("md0", "sdb1")):
        (paths[upper] / "slaves" / lower).symlink_to(paths[lower])
        (paths[lower] / "holders" / upper).symlink_to(paths[upper])
    for name in ("sda1", "sdb1"):
        (paths[name] / "partition").write_text("1\n")
    members = tmp_path / "fs/btrfs/uuid/devices"
    members.mkdir(parents=True)
    (members / "sda1").symlink_to(paths["sda1"])
    return tmp_path


def test_beneath(sysfs: Path) -> None:
    found = block.beneath(Devno(253, 0), sysfs)
    assert found == {"dm-0", "md0", "sda1", "sda", "sdb1", "sdb"}
    assert block.beneath(Devno(8, 0), sysfs) == {"sda"}


def test_above(sysfs: Path) -> None:
    assert block.above(Devno(8, 0), sysfs) == {"sda", "sda1", "md0", "dm-0"}
    assert block.above(Devno(253, 0), sysfs) == {"dm-0"}


def test_a_number_that_is_no_block_devices(sysfs: Path) -> None:
    assert block.beneath(Devno(0, 39), sysfs) == set()


def test_a_device_by_what_a_message_calls_it(sysfs: Path) -> None:
    (sysfs / "class/block").mkdir(parents=True)
    (sysfs / "class/block/dm-0").symlink_to(sysfs / "block/dm-0")
    assert block.devno_of("dm-0", sysfs) == Devno(253, 0)
    assert block.devno_of("253:0", sysfs) == Devno(253, 0)
    assert block.devno_of("253:1", sysfs) is None
    assert block.devno_of("..", sysfs) is None
    assert block.devno_of("8:0/../9:0", sysfs) is None


def test_the_members_of_a_btrfs(sysfs: Path) -> None:
    assert block.btrfs_members("uuid", sysfs) == (Devno(8, 1),)
    assert block.btrfs_members("nobody", sysfs) == ()


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sdz", ""),
        ("platform/host3/session1/target3:0:0/3:0:0:1/block/sdz", "iSCSI"),
        ("pci0000:00/host1/rport-1:0-2/target1:0:0/1:0:0:0/block/sdz", "Fibre Channel"),
        ("pci0000:00/sessions/block/sdz", ""),
    ],
)
def test_the_network_that_a_disk_is_reached_over(tmp_path: Path, way: str, words: str) -> None:
    """The ways as Linux 6.1 shows them (drivers/scsi/scsi_transport_{iscsi,fc}.c)."""
    device = tmp_path / "devices" / way
    device.mkdir(parents=True)
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/65:144").symlink_to(device)
    assert block.transport(Devno(65, 144), tmp_path) == words


@pytest.mark.parametrize(("said", "words"), [("tcp", "NVMe over tcp"), ("pcie", "")])
def test_nvme_says_it_itself(tmp_path: Path, said: str, words: str) -> None:
    device = tmp_path / "devices/nvme0/nvme0n1"
    (device / "device").mkdir(parents=True)
    (device / "device/transport").write_text(f"{said}\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/259:0").symlink_to(device)
    assert block.transport(Devno(259, 0), tmp_path) == words


def test_links_below_dev_are_followed_to_the_kernels_name(tmp_path: Path) -> None:
    root = tmp_path / "dev"
    (root / "vg").mkdir(parents=True)
    (root / "dm-3").touch()
    (root / "vg" / "ve101").symlink_to("../dm-3")
    (root / "by-name").symlink_to("vg/ve101")
    (root / "out").symlink_to("../somewhere")
    (root / "round").symlink_to("round")
    for name, real in (("vg/ve101", "dm-3"), ("by-name", "dm-3"), ("dm-3", "dm-3")):
        assert block.without_links(f"{root}/{name}", f"{root}/") == f"{root}/{real}"
    for name in ("out", "round", "missing"):
        assert block.without_links(f"{root}/{name}", f"{root}/") == f"{root}/{name}"
    assert block.without_links("ve101") == "ve101"
