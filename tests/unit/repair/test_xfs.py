"""The exit codes and words of xfs_repair(8) and btrfs-check(8), and what has no safe way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fswatchd.process import Completed
from fswatchd.repair import btrfs, findings, tools, xfs

FINISHED = (
    "Phase 7 - verify link counts...\nNo modify flag set, skipping filesystem flush and exiting.\n"
)
DIRTY = "ALERT: The filesystem has valuable metadata changes in a log which is being\nignored\n"
LOST = "".join(f"disconnected inode {n}, would move to lost+found\n" for n in (1, 2, 3))


def ended(code: int, output: str = "", *, timed_out: bool = False) -> Completed:
    return Completed(
        argv=("tool", "x"), returncode=code, output=output, duration_s=0.1, timed_out=timed_out
    )


@pytest.mark.parametrize(
    ("code", "output", "clean", "damaged"),
    [(0, FINISHED, True, False), (1, LOST + FINISHED, False, True)],
)
def test_a_check_of_xfs_that_came_to_its_end(
    code: int, output: str, clean: bool, damaged: bool
) -> None:
    found = xfs.interpret_check(ended(code, output))
    assert (found.clean, found.damaged, found.usable) == (clean, damaged, True)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (1, "xfs_repair: cannot open /x: Permission denied\n"),  # 1 means that, too
        (0, ""),
        (0, DIRTY + FINISHED),
        (1, DIRTY + LOST + FINISHED),
        (2, FINISHED),
        (4, FINISHED),
        (8, FINISHED),
        (-9, FINISHED),
    ],
)
def test_what_proves_nothing_about_an_xfs(code: int, output: str) -> None:
    assert not xfs.interpret_check(ended(code, output)).usable
    assert not xfs.interpret_check(ended(0, FINISHED, timed_out=True)).usable


@pytest.mark.parametrize(("code", "clean", "fixed"), [(0, True, False), (4, False, True)])
def test_a_repair_of_xfs(code: int, clean: bool, fixed: bool) -> None:
    found = xfs.interpret_repair(ended(code, LOST))
    assert (found.clean, found.fixed, found.damaged) == (clean, fixed, False)


@pytest.mark.parametrize("code", [1, 2, 3, 5, 6, 16, 127, -11])
def test_a_repair_of_xfs_that_failed(code: int) -> None:
    found = xfs.interpret_repair(ended(code))
    assert not found.usable
    assert found.what
    assert not xfs.interpret_repair(ended(0, timed_out=True)).usable


LINKS = "resetting inode 262272 nlinks from 2 to 1\ndone\n"


@pytest.mark.parametrize(
    ("first", "second", "runs", "usable"),
    [
        (ended(4, LINKS), ended(4, LINKS), 2, True),
        (ended(4, LINKS), ended(0, "done\n"), 2, True),
        (ended(4, LINKS), ended(1, "xfs_repair: cannot open /x\n"), 2, False),
        (ended(4, "done\n"), None, 1, True),
        (ended(0, "done\n"), None, 1, True),
        (ended(139, LINKS), None, 1, False),
    ],
)
async def test_links_that_were_counted_are_counted_once_more(
    monkeypatch: pytest.MonkeyPatch, first: Completed, second: Completed, runs: int, usable: bool
) -> None:
    """What the first run has done is what is told."""
    left = [first, second]
    done: list[tuple[str, ...]] = []

    async def run(options: tuple[str, ...], *_: object) -> Completed:
        done.append(options)
        return left.pop(0)

    monkeypatch.setattr(xfs, "_run", run)
    found = await xfs.repair("/x", 60.0)
    assert (len(done), found.usable) == (runs, usable)
    assert not usable or found.output == first.output


def test_a_dirty_log_is_said_to_be_for_a_person() -> None:
    assert "for a person to decide" in xfs.interpret_repair(ended(2)).what


VERIFIER = "Metadata corruption detected at 0x559fb0b45020, inode 0x40 dinode"
RESET = "would have reset inode 262209 nlinks from 2 to 1"
CHECKSUM, AGNO = "bad CRC for inode 64,", "        - agno = 1"
ENTRY, JUNK = "entry #4 extends past end of dir in shortform dir 64", ", would junk 11 entries"


@pytest.mark.parametrize(
    ("apart", "tangled"),
    [
        (f"{VERIFIER}\n{RESET}\n", f"{VERIFIER}{RESET}\n\n"),
        (f"{CHECKSUM} would rewrite\n{AGNO}\n", f"{CHECKSUM}{AGNO}\n would rewrite\n"),
        (f"{VERIFIER}\n{ENTRY}{JUNK}\n", f"{ENTRY}{VERIFIER}\n{JUNK}\n"),
    ],
    ids=["verifier", "checksum", "entry"],
)
def test_what_threads_say_into_one_another_counts_the_same(apart: str, tangled: str) -> None:
    counted = [
        (xfs.interpret_check(done).questions, findings.of("xfs_repair", done.output))
        for text in (apart, tangled)
        for done in [ended(1, xfs.untangled(text + FINISHED))]
    ]
    assert counted[0] == counted[1]
    assert counted[0][0] == 1


@pytest.mark.parametrize("code", [0, 1, 4])
def test_an_xfs_that_cannot_be_read_is_not_damaged(code: int) -> None:
    """What xfsprogs 6.1 says of a directory block that its disk does not give back."""
    said = (
        "xfs_repair: read failed: Input/output error\n"
        "can't read block 0 for directory inode 262272\n"
        "would have cleared inode 262272\n"
    )
    for interpret in (xfs.interpret_check, xfs.interpret_repair):
        found = interpret(ended(code, said + FINISHED))
        assert not found.usable
        assert "look after the device" in found.what
    beyond = said.replace("Input/output error", "Invalid argument")
    assert xfs.interpret_check(ended(1, beyond + FINISHED)).damaged


def test_a_btrfs_that_cannot_be_read_is_not_damaged() -> None:
    unread = "Error reading 22036480, -1\n"
    found = btrfs.interpret(ended(1, f"{unread}found 123 bytes used, error(s) found\n"))
    assert not found.usable
    assert not found.last_resort
    assert not btrfs.interpret_repair(
        ended(0, f"{unread}found 1 bytes used, no error found\n")
    ).usable
    # the second copy was there
    assert btrfs.interpret(ended(0, f"{unread}found 123 bytes used, no error found\n")).clean


def test_an_xfs_or_btrfs_of_which_too_much_is_said_cannot_be_judged() -> None:
    said = replace(ended(1, LOST + FINISHED + "found 1 bytes used, error(s) found\n"), cut=True)
    assert not xfs.interpret_check(said).usable
    assert not xfs.interpret_repair(replace(said, returncode=4)).usable
    assert not btrfs.interpret(said).usable
    assert not btrfs.interpret_repair(said).usable


def test_what_an_xfs_loses_is_counted_once() -> None:
    again = "Metadata CRC error detected at 0x55f6, xfs_dir3_data block 0x78/0x1000\n"
    found = xfs.interpret_check(ended(1, again * 3 + LOST + LOST + FINISHED))
    assert (found.questions, found.reconnected) == (3, 3)


@pytest.mark.parametrize(
    ("code", "output", "clean", "damaged", "usable"),
    [
        (0, "found 123 bytes used, no error found\n", True, False, True),
        (1, "ERROR: errors\nfound 123 bytes used, error(s) found\n", False, True, True),
        (1, "ERROR: cannot open file system\n", False, False, False),
        (0, "", False, False, False),
        (2, "found 123 bytes used, error(s) found\n", False, False, False),
        (-9, "found 123 bytes used, no error found\n", False, False, False),
    ],
)
def test_btrfs_check(code: int, output: str, clean: bool, damaged: bool, usable: bool) -> None:
    found = btrfs.interpret(ended(code, output))
    assert (found.clean, found.damaged, found.usable) == (clean, damaged, usable)


@pytest.mark.parametrize(
    ("fstype", "strategy"),
    [("ext4", "online"), ("nilfs2", "offline"), ("nilfs2", "clone"), (None, "clone")],
)
def test_what_has_no_safe_way_is_refused_with_words(fstype: str | None, strategy: str) -> None:
    refused = tools.refusal(fstype, strategy)
    assert refused
    assert (fstype or "unknown") in refused


@pytest.mark.parametrize(
    ("fstype", "strategy"),
    [
        ("ext4", "clone"),
        ("ext3", "offline"),
        ("xfs", "clone"),
        ("xfs", "offline"),
        ("btrfs", "clone"),
        ("btrfs", "offline"),
    ],
)
def test_what_has_one_is_not(fstype: str, strategy: str) -> None:
    assert tools.refusal(fstype, strategy) is None
