"""Which records may become events at all."""

from __future__ import annotations

import pytest

from fswatchd.kernlog.grammar import shipped
from fswatchd.sources.kernel_lines import KernelLineSource
from tests.collected import Collected

REAL = "EXT4-fs error (device loop1): ext4_lookup:1789: inode #2: comm ls: deleted inode referenced"


def take(text: str, facility: int = 0) -> Collected:
    sink = Collected()
    KernelLineSource(sink, shipped())._take(text, 5, facility=facility)
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


def test_what_a_tenant_chose_is_escaped_where_it_is_shown() -> None:
    (found,) = take(REAL.replace("comm ls", "comm \x1b[2J")).events or [None]
    assert found is None or "\x1b" not in found.detail
