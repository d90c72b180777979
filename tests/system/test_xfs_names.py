"""A sector of an XFS that cannot be read leads to the name of the file that is hurt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.kernel import loop
from fswatchd.repair import xfs_names
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings, StepEnded

NO_RESERVE = ActionSettings(reserve_bytes=0, reserve_share=0.0)


@pytest.fixture
def image(host: Path) -> ImageFile:
    """An XFS in use, with much in its log."""
    path, point = host / "ve101.img", host.parent / "point"
    with path.open("xb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", path], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", path, point], check=True)
    (point / "dir a").mkdir()
    (point / "dir a" / "file one").write_bytes(os.urandom(200_000))
    (point / "file two").write_bytes(os.urandom(200_000))
    os.sync()
    return ImageFile.at(str(path))


def first_sector(file: Path) -> int:
    listed = subprocess.run(["xfs_bmap", file], check=True, capture_output=True, text=True).stdout
    return int(listed.splitlines()[1].split()[-1].partition("..")[0])


async def test_sectors_lead_to_names_and_nothing_is_left_or_changed(image, host) -> None:
    point = host.parent / "point"
    one, two = first_sector(point / "dir a" / "file one"), first_sector(point / "file two")
    attached = loop.holders(image.devno, image.inode)
    found = await xfs_names.of_sectors(image, [one, one + 64, two + 8, 1 << 40], NO_RESERVE)
    assert {file.path for file in found} == {"/dir a/file one", "/file two"}
    inodes = {(point / "dir a" / "file one").stat().st_ino, (point / "file two").stat().st_ino}
    assert {file.inode for file in found} == inodes
    assert loop.holders(image.devno, image.inode) == attached
    assert [path.name for path in host.iterdir()] == ["ve101.img"]


async def test_what_holds_no_data_leads_to_no_name(image) -> None:
    assert await xfs_names.of_sectors(image, [0, (300 << 20) // 512], NO_RESERVE) == []


async def test_without_room_for_a_clone_there_is_no_name(image) -> None:
    with pytest.raises(StepEnded, match="no room"):
        await xfs_names.of_sectors(image, [0], ActionSettings(reserve_bytes=1 << 60))


async def test_another_file_under_the_images_name_is_not_read(image) -> None:
    os.rename(image.path, f"{image.path}.moved")
    Path(image.path).write_bytes(bytes(1 << 20))
    assert Devno.of(os.stat(image.path).st_dev) == image.devno
    with pytest.raises(OSError, match="another file"):
        await xfs_names.of_sectors(image, [0], NO_RESERVE)
