"""A log read in pieces gives what its lines give one by one."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fswatchd.kernlog.grammar import MESSAGE_MAX, LineClass, shipped
from fswatchd.kernlog.prefix import classify_line, finder

PREFIXES = [b"", b"[    1.0] ", b"Jul 30 05:09:46 host kernel: [    1.0] ", b"2,1,1,-;", b"h app: "]
MESSAGES = [
    sample.line.encode()
    for family in shipped().families
    for pattern in family.patterns
    for sample in pattern.samples
]
LINES = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.sampled_from(PREFIXES), st.sampled_from(MESSAGES)).map(b"".join),
    st.tuples(st.sampled_from(MESSAGES), st.binary(max_size=9)).map(b"".join),
    st.sampled_from(
        [b"", b"\0", b"\r", b"\xff\xfe", b"Jul 30 05:09:46 host kernel: ", b"x" * 40000]
    ),
)
LOGS = st.builds(
    lambda lines, ends, last: b"".join(a + b for a, b in zip(lines, ends, strict=False)) + last,
    st.lists(LINES, max_size=8),
    st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=8, max_size=8),
    LINES,
)


def in_pieces(log: bytes, size: int) -> list[tuple[int, LineClass | None]]:
    """All that was found, and the number of the last line."""
    return found_in(log[start : start + size] for start in range(0, len(log), size))


def found_in(
    pieces: Iterable[bytes], *, problems_only: bool = False
) -> list[tuple[int, LineClass | None]]:
    found = list(finder(shipped()).scan(pieces, problems_only=problems_only))
    return [one for one in found if one[1]] + found[-1:]


def one_by_one(log: bytes) -> list[tuple[int, LineClass | None]]:
    lines = log.split(b"\n")
    if not lines[-1]:
        del lines[-1]
    found = [
        (number, classify_line(shipped(), line.decode("latin-1")))
        for number, line in enumerate(lines, 1)
    ]
    return [(number, line) for number, line in found if line] + [(len(lines), None)]


@given(LOGS, st.one_of(st.integers(1, 200), st.just(1 << 20)))
@example(b"", 1)
@example(b"\n", 1)
@example(b"EXT4-fs (sda1): mount failed", 3)
@example(b"a\nEXT4-fs (sda1): mount failed\r\n\n", 7)
def test_pieces_and_lines_agree(log: bytes, size: int) -> None:
    assert in_pieces(log, size) == one_by_one(log)


@given(LOGS)
def test_asked_only_for_problems_it_gives_those(log: bytes) -> None:
    everything = in_pieces(log, 1 << 20)
    problems = found_in([log], problems_only=True)
    assert problems == [found for found in everything if found[1] is None or found[1].problem]


@given(LOGS)
def test_how_bytes_are_read_as_text_changes_nothing(log: bytes) -> None:
    for line in log.split(b"\n"):
        as_bytes = classify_line(shipped(), line.decode("latin-1"))
        assert classify_line(shipped(), line.decode("utf-8", "surrogateescape")) == as_bytes


def test_a_line_is_found_wherever_a_piece_ends() -> None:
    line = b"Jul 30 05:09:46 host kernel: [    1.0] EXT4-fs error (device loop7): a:1: b"
    log = b"\n".join([b"before", line, b"after", line])
    for size in range(1, len(log) + 1):
        found = in_pieces(log, size)
        assert [number for number, _ in found] == [2, 4, 4]
        assert all(one.device == "loop7" for _, one in found if one)


@pytest.mark.parametrize("piece", [100, 1 << 14, 1 << 20])
def test_a_line_without_an_end_is_not_kept_and_not_classified(piece: int) -> None:
    head = b"EXT4-fs error (device loop7): a:1: "
    log = head + b"b" * (10 * MESSAGE_MAX) + b"\n" + head + b"c\n"
    found = in_pieces(log, piece)
    assert [(number, one and one.device) for number, one in found] == [(2, "loop7"), (2, None)]


def test_thousands_of_lines_have_their_numbers() -> None:
    choice = random.Random(7)
    lines, expected = [], []
    for number in range(1, 5001):
        if choice.random() < 0.05:
            expected.append(number)
            lines.append(b"[    1.0] Buffer I/O error on dev sda2, logical block 0")
        else:
            lines.append(b"Jul 30 05:09:46 host sshd[1]: I/O error, dev sda, sector 5")
    found = in_pieces(b"\n".join(lines) + b"\n", 4096)
    assert [number for number, one in found if one] == expected
    assert found[-1] == (5000, None)
