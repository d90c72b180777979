from __future__ import annotations

import pytest

from fswatchd.process import Completed
from fswatchd.repair.e2fsck import interpret


def answer(code: int, output: str = "", *, timed_out: bool = False):
    argv = ("e2fsck", "-fn", "x")
    ended = Completed(
        argv=argv, returncode=code, output=output, duration_s=0.1, timed_out=timed_out
    )
    return interpret(ended)


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


def test_what_is_counted() -> None:
    output = (
        "Entry 'x' in /d (12) has deleted/unused inode 13.  Clear? yes\n\n"
        "Unattached inode 14\nConnect to /lost+found? yes\n\n"
        "Inode 14 ref count is 2, should be 1.  Fix? yes\n"
    )
    found = answer(1, output)
    assert (found.questions, found.cleared, found.reconnected) == (3, 1, 1)
    assert found.summary() == "3 problems, 1 cleared, 1 to lost+found fixed"
