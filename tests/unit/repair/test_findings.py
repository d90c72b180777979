"""What e2fsck and xfs_repair print, in kinds and names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.kernel import jbd2
from fswatchd.repair import cure, findings
from fswatchd.repair.check import CheckResult
from fswatchd.repair.names_back import NamesBack, damaged_directories

DIRECTORY = """\
Pass 1: Checking inodes, blocks, and sizes
Pass 2: Checking directory structure
Directory inode 12, block #0, offset 0: directory corrupted
Salvage? yes

Missing '.' in directory inode 12.
Fix? yes

Entry 'gone' in /victim (12) has deleted/unused inode 99.  Clear? yes

Pass 3: Checking directory connectivity
Unconnected directory inode 13 (was in /victim)
Connect to /lost+found? yes

Pass 4: Checking reference counts
Unattached inode 14
Connect to /lost+found? yes

Inode 14 ref count is 2, should be 1.  Fix? yes

Pass 5: Checking group summary information
Block bitmap differences:  -(100--200)
Fix? yes

Free blocks count wrong (10, counted=20).
Fix? yes


n.img: ***** FILE SYSTEM WAS MODIFIED *****
"""


def test_what_e2fsck_puts_right_by_kind_and_name() -> None:
    found = findings.of("e2fsck", DIRECTORY)
    assert dict(found.kinds) == {
        "directory block": 2,
        "directory entry": 1,
        "unattached inode": 2,
        "link count": 1,
        "bitmap": 1,
    }
    assert found.changes == 7
    assert found.dropped == ("/victim/gone",)
    assert found.moved == (13, 14)
    assert 12 in damaged_directories(DIRECTORY)


def test_counters_alone_are_no_change() -> None:
    output = "Free blocks count wrong (10, counted=20).\nFix? yes\n"
    assert findings.of("e2fsck", output).changes == 0


def test_an_inode_that_is_cleared_has_the_name_of_its_entry() -> None:
    output = (
        "Inode 99 seems to contain garbage.  Clear? yes\n\n"
        "Entry 'name' in ??? (12) has deleted/unused inode 99.  Clear? yes\n"
    )
    assert findings.of("e2fsck", output).dropped == ("<12>/name",)
    assert findings.of("e2fsck", output.split("Entry")[0]).dropped == ("#99",)


def test_what_nobody_knows_counts_all_the_same() -> None:
    found = findings.of("e2fsck", "Something new is wrong.  Mend? yes\n")
    assert found.kinds == (("other", 1),)


def test_xfs_repair_by_its_lines() -> None:
    output = (
        "Phase 3 - for each AG...\n        - scan and clear agi unlinked lists...\n"
        "cleared inode 131\ndisconnected inode 132, moving to lost+found\ndone\n"
    )
    found = findings.of("xfs_repair", output)
    assert found.dropped == ("#131",)
    assert found.moved == (132,)
    assert found.changes == 2


def done(lost: int, changes: int) -> cure.Cure:
    result = CheckResult(returncode=1, output="", duration_s=1.0, fixed=True)
    return cure.Cure(
        repaired=result,
        proof=result,
        findings=findings.Findings(changes=changes),
        names=NamesBack(unnamed=tuple(range(lost))),
    )


@pytest.mark.parametrize(
    ("lost", "changes", "permitted"),
    [(0, 10, True), (1, 10, False), (0, 11, False), (0, 0, True)],
)
def test_beyond_a_bound_somebody_is_asked(lost: int, changes: int, permitted: bool) -> None:
    step = cast("Any", SimpleNamespace(max_lost_files=0, max_changes=10))
    assert (cure.beyond(step, done(lost, changes), None) is None) is permitted


def test_without_bounds_nobody_is_asked() -> None:
    step = cast("Any", SimpleNamespace(max_lost_files=None, max_changes=None))
    assert cure.beyond(step, done(999, 999), None) is None


def test_an_approval_is_for_what_was_seen() -> None:
    step = cast("Any", SimpleNamespace(max_lost_files=0, max_changes=None))
    seen = done(5, 10).document()
    assert cure.beyond(step, done(5, 12), seen) is None
    assert cure.beyond(step, done(6, 12), seen) is not None


class TestJournal:
    """Bytes of a tenant's: what does not fit is nothing, and nothing is raised."""

    @pytest.mark.parametrize(
        "block",
        [b"", b"\xff" * 4096, b"\0" * 4096, b"\x0c\0\0\0\x0c\0\xff\1" + b"a" * 4088],
    )
    def test_what_is_no_directory_has_no_entries(self, block: bytes) -> None:
        assert list(jbd2.directory_entries(block)) == []

    def test_names_and_inodes(self) -> None:
        first = (12).to_bytes(4, "little") + (12).to_bytes(2, "little") + b"\1\1a\0\0\0"
        last = (13).to_bytes(4, "little") + (52).to_bytes(2, "little") + b"\2\1bc" + b"\0" * 42
        assert list(jbd2.directory_entries(first + last)) == [(12, b"a"), (13, b"bc")]

    @pytest.mark.parametrize("head", [b"", b"\0" * 1024, b"\xc0\x3b\x39\x98" + b"\xff" * 1020])
    def test_what_is_no_journal_has_no_copies(self, head: bytes) -> None:
        assert jbd2.copies(lambda _: head, 8) == []
