from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.kernel import cgroup, mountinfo, pseudofile
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
    assert Devno.of(device) == Devno(os.major(device), os.minor(device))


@given(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
def test_device_numbers_agree_with_the_c_library(major: int, minor: int) -> None:
    assert Devno.of(os.makedev(major, minor)) == Devno(major, minor)


# As Linux 6.18 prints them: of what ends a line for Python, only the newline is escaped.
TABLE = (
    b"21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
    b"22 21 0:9 / /a\rb\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8\xff\\012c rw - tmpfs none\rx rw\n"
    b"what this is nobody knows\n"
    b"23 21 0:24 / /sys/fs/cgroup/a\rb rw - cgroup2 cgroup2 rw,nsdelegate\n"
    b"24 21 0:25 / /cpu\\040x rw - cgroup cgroup rw,cpu\n"
    b"25 21 0:26 / /fr\x0c rw - cgroup cgroup rw,freezer\n"
)


def test_a_mount_point_ends_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudofile, "read", lambda *_: TABLE)
    unread: list[str] = []
    found = {mount.mount_id: mount for mount in mountinfo.read("self", unread)}
    assert list(found) == [21, 22, 23, 24, 25]
    point = b"/a\rb\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8\xff\nc"
    assert (found[22].point, found[22].source) == (os.fsdecode(point), "none\rx")
    assert unread == ["what this is nobody knows"]


def test_where_cgroups_are_is_told_by_lines_that_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudofile, "read", lambda *_: TABLE)
    found = cgroup.hierarchies.__wrapped__()
    assert found == (Path("/sys/fs/cgroup/a\rb"), Path("/fr\x0c"), Path("/cpu x"))
