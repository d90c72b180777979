"""What a namespace's root covers, in trees as the kernel listed them on Linux 6.18."""

from __future__ import annotations

from dataclasses import replace

from fswatchd.devno import Devno
from fswatchd.inventory.reach import covered, goes_with, unreached
from fswatchd.kernel.mounts import Mount


def mount(mount_id: int, parent: int, point: str) -> Mount:
    return Mount(
        mount_id=mount_id,
        parent_id=parent,
        old_id=mount_id + 1000,
        devno=Devno(0, 9),
        fstype="ext4",
        root="/",
        point=point,
        source="",
        superblock_options=(),
        superblock_readonly=False,
        readonly=False,
    )


def tree(*mounts: Mount) -> dict[int, Mount]:
    return {one.mount_id: one for one in mounts}


# The node's root and its mounts, the container's root moved over them (systemd-nspawn 252).
MOVED = tree(
    mount(11, 10, "/"),
    mount(12, 11, "/proc"),
    mount(13, 11, "/vz"),
    mount(14, 13, "/vz/101"),
    mount(20, 11, "/"),
    mount(21, 20, "/proc"),
    mount(22, 21, "/proc/sys"),
)


def test_what_lies_beneath_a_root_that_was_moved_over_it() -> None:
    assert covered(MOVED) == {11, 12, 13, 14}


def test_a_root_that_replaced_the_old_one_covers_nothing() -> None:
    assert covered(tree(mount(20, 10, "/"), mount(21, 20, "/proc"))) == frozenset()


def test_a_mount_under_another_one_is_not_covered() -> None:
    """Only roots count: files that were opened before are in use."""
    found = tree(mount(20, 10, "/"), mount(21, 20, "/data"), mount(22, 21, "/data"))
    assert covered(found) == frozenset()


def test_without_a_root_or_with_a_circle_nothing_is_covered() -> None:
    """As a reading in the middle of a change may look."""
    assert covered({}) == frozenset()
    assert covered(tree(mount(20, 21, "/"), mount(21, 20, "/"))) == frozenset()


def test_what_the_first_process_sees_is_in_reach() -> None:
    """It stands beneath the uppermost root: all of the old one is its own."""
    seen = frozenset({1011, 1012, 1013, 1014, 1020})
    assert unreached(MOVED.values(), covered(MOVED), seen) == frozenset()
    inside = frozenset({1020, 1021, 1022})
    assert unreached(MOVED.values(), covered(MOVED), inside) == {11, 12, 13, 14}


def test_a_copy_on_a_slave_goes_with_the_original() -> None:
    original = replace(mount(5, 4, "/vz/101"), parent_peers=(1, 0))
    copy = replace(mount(14, 13, "/vz/101"), parent_peers=(0, 1))
    assert goes_with(copy, original)
    assert not goes_with(replace(copy, parent_peers=(0, 0)), original)
    assert not goes_with(replace(copy, parent_peers=(0, 7)), original)
    assert not goes_with(copy, replace(original, parent_peers=(0, 0)))
    assert not goes_with(copy, replace(original, point="/elsewhere"))
