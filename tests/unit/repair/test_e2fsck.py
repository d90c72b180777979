from __future__ import annotations

import pytest

from fswatchd import process
from fswatchd.kernel import extfs
from fswatchd.process import Completed
from fswatchd.repair import e2fsck
from fswatchd.repair.e2fsck import interpret, proven


def answer(code: int, output: str = "", *, timed_out: bool = False, cut: bool = False):
    argv = ("e2fsck", "-fn", "x")
    ended = Completed(
        argv=argv, returncode=code, output=output, duration_s=0.1, timed_out=timed_out, cut=cut
    )
    return interpret(ended)


SUMMARY = "/x: 11/1024 files (0.0% non-contiguous), 1350/4096 blocks\n"


@pytest.mark.parametrize(
    ("code", "clean", "fixed", "damaged"),
    [
        (0, True, False, False),
        (1, False, True, False),
        (3, False, True, False),  # fixed, and a reboot is advised: only for the root filesystem
        (4, False, False, True),
        (5, False, False, True),
        (12, False, False, True),  # -n gives up at damage that it may not repair
    ],
)
def test_the_bits_of_the_exit_code(code: int, clean: bool, fixed: bool, damaged: bool) -> None:
    found = answer(code)
    assert (found.clean, found.fixed, found.damaged) == (clean, fixed, damaged)
    assert found.usable


@pytest.mark.parametrize("code", [8, 16, 32, 128, 9, 64, 20, 36, 132, -9, -11])
def test_what_says_nothing_about_the_filesystem(code: int) -> None:
    assert not answer(code).usable


def test_a_check_that_was_cut_off_says_nothing() -> None:
    assert not answer(0, timed_out=True).usable


@pytest.mark.parametrize(
    "said",
    [
        "Error reading block 41 (Input/output error).  Ignore error? no\n",
        (
            "Error reading block 9 (Input/output error) while reading inode and block bitmaps.  "
            "Ignore error? yes\n\nForce rewrite? yes\n"
        ),
        "Error reading block 9 (Structure needs cleaning).  Ignore error? yes\n",
        "Error writing block 9 (No space left on device).  Ignore error? yes\n",
        "e2fsck: Input/output error while checking journal for /x\n",
    ],
)
@pytest.mark.parametrize("code", [0, 1, 4, 8, 12])
def test_what_cannot_be_read_is_not_damaged(code: int, said: str) -> None:
    found = answer(code, f"Pass 1: Checking inodes, blocks, and sizes\n{said}{SUMMARY}")
    assert not found.usable
    assert "look after the device" in found.what


@pytest.mark.parametrize(
    "said",
    [
        "Error reading block 4294967000 (Invalid argument).  Ignore error? no\n",
        "Error writing block 16385 (Bad file descriptor).  Ignore error? no\n",
        (
            "Error reading block 99999 (Attempt to read block from filesystem resulted in short "
            "read) while reading directory block.  Ignore error? no\n"
        ),
    ],
)
def test_a_place_beyond_the_end_is_damage(said: str) -> None:
    assert answer(4, said).damaged


@pytest.mark.parametrize("code", [0, 1, 4])
def test_a_run_that_says_more_than_is_kept_cannot_be_judged(code: int) -> None:
    """How much it would lose was cut off, or that the disk has failed."""
    assert not answer(code, "Clear? yes\n" * 1000, cut=True).usable


def test_a_check_that_ends_with_0_and_says_nothing_is_no_proof() -> None:
    assert not proven(answer(0)).usable
    assert not proven(answer(0, "e2fsck 1.47.0 (5-Feb-2023)\n")).usable
    assert proven(answer(0, SUMMARY)).clean
    assert proven(answer(4, "damaged")).damaged


def test_what_is_counted() -> None:
    output = (
        "Entry 'x' in /d (12) has deleted/unused inode 13.  Clear? yes\n\n"
        "Unattached inode 14\nConnect to /lost+found? yes\n\n"
        "Inode 14 ref count is 2, should be 1.  Fix? yes\n"
    )
    found = answer(1, output)
    assert (found.questions, found.cleared, found.reconnected) == (3, 1, 1)
    assert found.summary() == "3 problems, 1 cleared, 1 to lost+found fixed"


async def test_in_place_nothing_is_begun_where_the_look_before_was_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[str, ...]] = []

    async def run(argv: tuple[str, ...], **options: object) -> Completed:
        ran.append(argv)
        said = "Error reading block 41 (Input/output error).  Ignore error? no\n"
        return Completed(argv=argv, returncode=12, output=said, duration_s=0.1)

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(extfs, "needs_recovery", lambda path: True)
    assert not (await e2fsck.repair("/x", 60, undo_file="/undo/x")).usable
    assert not (await e2fsck.replay("/x", 60)).usable
    assert [("-n" in argv) for argv in ran] == [True, True]
