"""Which records may become events at all."""

from __future__ import annotations

import pytest

from fswatchd.events import EventClass, LostWrite, Severity
from fswatchd.kernlog.grammar import shipped
from fswatchd.sources.kernel_lines import KernelLineSource
from tests.collected import Collected

REAL = "EXT4-fs error (device loop1): ext4_lookup:1789: inode #2: comm ls: deleted inode referenced"


def take(text: str, facility: int = 0, past: str | None = None) -> Collected:
    sink = Collected()
    KernelLineSource(sink, shipped())._take(text, 5, facility=facility, past=past)
    return sink


def test_a_line_of_the_kernel_is_an_event_that_confirms_nothing() -> None:
    (found,) = take(REAL).events
    assert (found.device, found.confirms) == ("loop1", False)
    assert found.record == f"5:{REAL}"


@pytest.mark.parametrize("facility", [1, 2, 16, 128])
def test_the_same_line_of_anybody_else_is_nothing(facility: int) -> None:
    assert take(REAL, facility).events == []


@pytest.mark.parametrize(
    "text",
    [
        REAL.replace("comm ls", "comm a\\x0ab"),
        REAL.replace("comm ls", "comm a\nb"),
        "EXT4-fs (loop1): re-mounted. Opts: errors=remount-ro",
        "EXT4-fs (dm-3): error count since last fsck: 10",
        "EXT4-fs (loop1): mounted filesystem with ordered data mode",
        "nothing we know",
    ],
)
def test_what_is_refused_or_harmless(text: str) -> None:
    assert take(text).events == []


def test_two_lines_of_the_kernels_own_are_one_event() -> None:
    text = (
        "md/raid1:md0: Disk failure on sdb1, disabling device.{}"
        "md/raid1:md0: Operation continuing on 1 devices."
    )
    for newline in ("\n", "\\x0a"):
        (found,) = take(text.format(newline)).events
        assert found.device == "sdb1"


def test_an_escaped_letter_hides_nothing() -> None:
    (found,) = take(REAL.replace("comm ls", "comm \\xc3\\xa9")).events
    assert found.device == "loop1"


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (REAL.replace("comm ls", "comm \\xc3\\xa9"), REAL.replace("comm ls", "comm é")),
        (
            "CIFS: VFS: \\x5c\\x5cnas has not responded in 180 seconds. Reconnecting...",
            "CIFS: VFS: \\\\nas has not responded in 180 seconds. Reconnecting...",
        ),
    ],
)
def test_kmsg_and_the_journal_agree_on_which_record_it_is(escaped: str, plain: str) -> None:
    (one,), (other,) = take(escaped).events, take(plain).events
    assert one.record == other.record


def test_suppressed_lines_are_a_loss() -> None:
    sink = take("EXT4-fs error: 1267 callbacks suppressed")
    assert sink.events == []
    assert len(sink.losses) == 1


def test_of_an_earlier_boot_they_are_no_loss_of_now_and_told_all_the_same() -> None:
    sink = take("EXT4-fs error: 1267 callbacks suppressed", past="before this boot")
    (found,) = sink.events
    assert sink.losses == []
    assert found.detail == "before this boot: EXT4-fs error: 1267 callbacks suppressed"
    assert (found.klass, found.past) == (EventClass.LOST, True)


def test_a_line_of_an_earlier_boot_keeps_its_class_and_is_known_as_the_same_record() -> None:
    (now,), (then,) = take(REAL).events, take(REAL, past="before this boot").events
    assert (then.klass, then.severity) == (now.klass, now.severity)
    assert then.record == now.record
    assert (now.past, then.past) == (False, True)
    assert then.detail == f"before this boot: {REAL}"


def test_what_a_tenant_chose_is_escaped_where_it_is_shown() -> None:
    (found,) = take(REAL.replace("comm ls", "comm \x1b[2J")).events or [None]
    assert found is None or "\x1b" not in found.detail


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (
            (
                "EXT4-fs warning (device loop4): ext4_end_bio:368: I/O error 3 writing to inode 13 "
                "starting block 9217)"
            ),
            LostWrite(inode=13),
        ),
        (
            (
                "EXT4-fs (loop4): Delayed block allocation failed for inode 13 at logical offset 0 "
                "with max blocks 2 with error 28"
            ),
            LostWrite(inode=13, blocks=2),
        ),
        (
            (
                "EXT4-fs (sda1): failed to convert unwritten extents to written extents -- "
                "potential data loss!  (inode 12, offset 0, size 4096, error -5)"
            ),
            LostWrite(inode=12, offset=0, size=4096),
        ),
        (
            "loop5: writeback error on inode 133, offset 8192, sector 2240",
            LostWrite(inode=133, offset=8192),
        ),
        (
            "XFS (sdb1): page discard on page ffffea0004d2c1c0, inode 0x85, offset 4096.",
            LostWrite(inode=133, offset=4096),
        ),
    ],
)
def test_a_line_that_names_a_file_whose_data_is_lost_is_an_event_of_that(text, lost) -> None:
    (found,) = take(text).events
    assert (found.klass, found.severity) == (EventClass.DATA_LOSS, Severity.CRITICAL)
    assert found.lost == lost


@pytest.mark.parametrize(
    "text",
    [
        "critical space allocation error, dev loop5, sector 2240 op 0x1:(WRITE) flags 0x800",
        (
            "EXT4-fs warning (device loop1): htree_dirblock_to_tree:1003: inode #2: lblock 0: "
            "comm ls: error -5 reading directory block"
        ),
    ],
)
def test_an_error_that_names_no_lost_data_keeps_its_class(text: str) -> None:
    (found,) = take(text).events
    assert found.klass is not EventClass.DATA_LOSS
    assert found.lost is None
