"""What a look at the node remembers of filesystems."""

from __future__ import annotations

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.model import Backing, Superblock
from fswatchd.inventory.view import NodeView, describe

LOOP, ANONYMOUS = Devno(7, 1), Devno(0, 45)


def superblock(devno: Devno, image: str, sequence: int | None) -> Superblock:
    return Superblock(
        devno=devno,
        fstype="btrfs" if devno == ANONYMOUS else "ext4",
        device="loop1",
        disk_sequence=sequence,
        mounts=(),
        backing=Backing(kind="image", image=image),
    )


@pytest.mark.parametrize(
    ("mounted", "now", "same"),
    [
        (superblock(LOOP, "/a", 7), superblock(LOOP, "/a", 7), True),
        (superblock(LOOP, "/a", 7), superblock(LOOP, "/a", 8), False),
        (superblock(ANONYMOUS, "/a", None), superblock(ANONYMOUS, "/a", None), True),
        (superblock(ANONYMOUS, "/a", None), superblock(ANONYMOUS, "/b", None), False),
    ],
)
def test_what_an_incident_is_about_is_not_mistaken_for_what_has_its_number_now(
    mounted: Superblock, now: Superblock, *, same: bool
) -> None:
    view = NodeView(superblocks={now.devno: now})
    assert view.attached(describe(mounted)) is (now if same else None)


def test_what_is_not_mounted_is_not_attached() -> None:
    assert NodeView().attached(describe(superblock(LOOP, "/a", 7))) is None
