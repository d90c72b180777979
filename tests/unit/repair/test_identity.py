"""Which file is which: after an exchange, after a reboot, and when several are kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.repair import clone, swap
from fswatchd.repair.journal import read_file
from fswatchd.repair.volume import ImageFile

ELSEWHERE = Devno(0, 99)


def free_path(image: ImageFile) -> str:
    return swap.free_name(clone.clone_path(image, "x1", "clone"))


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    return made(tmp_path / "ve101.raw")


def made(path: Path) -> ImageFile:
    path.write_bytes(b"x")
    return ImageFile.at(str(path))


def test_after_the_exchange_the_clones_path_leads_to_the_original_and_that_stays(
    image: ImageFile,
) -> None:
    copy = made(Path(free_path(image)))
    swap.exchange(image, copy)
    clone.discard(copy)
    assert image.is_at(copy.path)
    assert swap.is_exchanged(image, copy)


def test_a_clone_that_is_still_the_clone_is_deleted(image: ImageFile) -> None:
    copy = made(Path(free_path(image)))
    clone.discard(copy)
    assert not os.path.exists(copy.path)
    clone.discard(copy)


def test_after_a_reboot_with_other_device_numbers_files_are_known_again(image: ImageFile) -> None:
    copy = made(Path(free_path(image)))
    swap.exchange(image, copy)
    earlier = read_file(replace(copy, devno=ELSEWHERE).describe())
    assert earlier is not None
    assert swap.is_exchanged(image, earlier)
    assert earlier.today(image.path).devno == image.devno


def test_another_file_with_the_same_inode_number_is_another_file(image: ImageFile) -> None:
    assert image.birth_ns is not None
    assert not replace(image, birth_ns=image.birth_ns - 1).is_at(image.path)
    assert replace(image, devno=ELSEWHERE, birth_ns=None).today(image.path).devno == ELSEWHERE


def test_what_was_written_down_before_births_were_is_told_by_device_and_inode(
    image: ImageFile,
) -> None:
    facts = image.describe()
    del facts["birth_ns"]
    known = read_file(facts)
    assert known is not None
    assert known.is_at(image.path)
    assert not replace(known, devno=ELSEWHERE).is_at(image.path)


def test_a_name_that_is_taken_is_not_used_again(image: ImageFile) -> None:
    first = made(Path(swap.free_name(swap.damaged_path(image, "x1"))))
    second = made(Path(swap.free_name(swap.damaged_path(image, "x1"))))
    assert (first.path, second.path) == (
        f"{image.path}.damaged-x1",
        f"{image.path}.damaged-x1-2",
    )
    made(Path(free_path(image)))
    assert free_path(image).endswith(".fswatchd-clone-x1-2")
