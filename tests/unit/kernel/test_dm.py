"""Names of LVM's devices, and devices as sysfs shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.kernel import dm
from fswatchd.repair.logical_volume import LogicalVolume

UUID = "LVM-" + "a" * 32 + "b" * 32
# A name may not begin with a hyphen (lvm(8)).
NAMES = st.from_regex(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,20}", fullmatch=True)


@given(NAMES, NAMES)
def test_a_name_with_hyphens_comes_back_as_it_was(group: str, volume: str) -> None:
    assert dm.split(dm.join(group, volume)) == [group, volume]


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for number, (name, uuid) in enumerate(
        (
            ("vg--1-vm--101--disk--0", UUID),
            ("vg--1-pool-tpool", f"{UUID}-tpool"),
            ("luks", "CRYPT-LUKS2-x"),
        )
    ):
        device = tmp_path / f"block/dm-{number}"
        (device / "dm").mkdir(parents=True)
        (device / "dev").write_text(f"253:{number}\n")
        (device / "dm/name").write_text(f"{name}\n")
        (device / "dm/uuid").write_text(f"{uuid}\n")
        (device / "dm/suspended").write_text(f"{number}\n")
        for place in ("class/block", "dev/block"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"class/block/dm-{number}").symlink_to(device)
        (tmp_path / f"dev/block/253:{number}").symlink_to(device)
    return tmp_path


def test_a_volume_is_found_by_its_uuid_and_by_its_name(sysfs: Path) -> None:
    found = Devno(253, 0)
    assert dm.find("uuid", UUID, sysfs) == dm.find("name", "vg--1-vm--101--disk--0", sysfs) == found
    assert dm.find("uuid", "LVM-other", sysfs) is None
    volume = LogicalVolume(path="/dev/vg-1/vm-101-disk-0", uuid=UUID)
    assert LogicalVolume.on(found, sysfs) == volume
    assert LogicalVolume.at(volume.path, sysfs) == volume
    assert volume.lvm_uuid == "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb"
    assert dm.is_suspended(Devno(253, 1), sysfs) is True
    assert dm.is_suspended(found, sysfs) is False


@pytest.mark.parametrize("number", [1, 2, 9], ids=["the pool's layer", "no LVM", "nothing"])
def test_what_is_no_volume_is_none(sysfs: Path, number: int) -> None:
    assert LogicalVolume.on(Devno(253, number), sysfs) is None
