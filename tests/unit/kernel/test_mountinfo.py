from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.kernel.mountinfo import MountinfoError, parse_line, unescape

ABORTED = "66 43 7:1 / / rw,relatime shared:1 - ext4 /dev/loop1 rw,emergency_ro"


def test_a_filesystem_that_the_kernel_has_stopped() -> None:
    found = parse_line(ABORTED)
    assert (found.devno, found.fstype, found.point) == (Devno(7, 1), "ext4", "/")
    assert found.superblock_options == ("emergency_ro",)
    assert not found.superblock_readonly


def test_mount_flag_and_superblock_flag_are_different_things() -> None:
    found = parse_line("1 2 8:1 / /mnt ro,relatime - ext4 /dev/sda1 rw")
    assert (found.readonly, found.superblock_readonly) == (True, False)
    found = parse_line("1 2 8:1 / /mnt rw - btrfs /dev/sda1 ro,space_cache")
    assert (found.readonly, found.superblock_readonly) == (False, True)


def test_names_chosen_by_a_tenant_cannot_forge_a_field() -> None:
    line = r"1 2 0:9 / /a\040-\040ext4\040/dev/sda1\040rw\012x rw - tmpfs none rw"
    found = parse_line(line)
    assert found.fstype == "tmpfs"
    assert found.point == "/a - ext4 /dev/sda1 rw\nx"


@pytest.mark.parametrize(
    "line", ["", "1 2 3", "a b 8:1 / / rw - ext4 x rw", "1 2 8 / / rw - e x r"]
)
def test_what_is_no_line(line: str) -> None:
    with pytest.raises(MountinfoError):
        parse_line(line)


@given(st.text(max_size=120))
def test_no_text_raises_anything_else(line: str) -> None:
    try:
        parse_line(line)
    except MountinfoError:
        return


def test_escapes() -> None:
    assert unescape(r"a\040b\134c\011d") == "a b\\c\td"


@pytest.mark.parametrize("device", [0x0700 + 1, (254 << 8) | 3, (8 << 8) | 0xFF])
def test_device_numbers(device: int) -> None:
    import os

    assert Devno.of(device) == Devno(os.major(device), os.minor(device))


@given(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
def test_device_numbers_agree_with_the_c_library(major: int, minor: int) -> None:
    import os

    assert Devno.of(os.makedev(major, minor)) == Devno(major, minor)
