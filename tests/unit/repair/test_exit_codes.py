"""Every exit code that there is, and every signal: only what is known says something."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fswatchd.actions import scrub
from fswatchd.process import Completed
from fswatchd.repair import btrfs, e2fsck, xfs
from fswatchd.repair.check import CheckResult

CODES = range(-64, 256)
OUTPUT = (
    "No modify flag set, skipping filesystem flush and exiting.\n"
    "found 123 bytes used, no error found\n"
    "/x: 11/1024 files (0.0% non-contiguous), 1350/4096 blocks\n"
    "\tcorrected_errors: 0\n\tuncorrectable_errors: 0\n"
)


def ended(code: int) -> Completed:
    return Completed(argv=("tool", "x"), returncode=code, output=OUTPUT, duration_s=0.1)


@pytest.mark.parametrize(
    ("interpret", "clean", "fixed", "damaged"),
    [
        # 12 to 15: -n gives up (8) at damage (4) that it may not repair
        (e2fsck.interpret, {0}, {1, 3}, {4, 5, 6, 7, 12, 13, 14, 15}),
        (xfs.interpret_check, {0}, set(), {1}),
        (xfs.interpret_repair, {0}, {4}, set()),
        (btrfs.interpret, {0}, set(), {1}),
        (btrfs.interpret_repair, set(), {0, 1}, set()),
    ],
    ids=["e2fsck", "xfs_repair -n", "xfs_repair -e", "btrfs check", "btrfs check --repair"],
)
def test_what_a_tool_of_a_filesystem_says(
    interpret: Callable[[Completed], CheckResult],
    clean: set[int],
    fixed: set[int],
    damaged: set[int],
) -> None:
    found = {code: interpret(ended(code)) for code in CODES}
    assert {code for code, said in found.items() if said.clean} == clean
    assert {code for code, said in found.items() if said.fixed} == fixed
    assert {code for code, said in found.items() if said.damaged} == damaged
    assert all(said.what for said in found.values() if not said.usable)


@pytest.mark.parametrize(
    ("interpret", "known", "left"),
    [(scrub.interpret_btrfs, {0, 3}, {3}), (scrub.interpret_xfs, {0, 1, 2, 3}, {1, 3})],
    ids=["btrfs scrub", "xfs_scrub"],
)
def test_what_a_scrub_says(
    interpret: Callable[[Completed], scrub.Verdict], known: set[int], left: set[int]
) -> None:
    found = {code: interpret(ended(code)) for code in CODES}
    assert {code for code, said in found.items() if said.left is not None} == known
    assert {code for code, said in found.items() if said.left} == left
