"""What happens to what is printed when nobody can take it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fswatchd.cli.streams import Output, OutputError


@pytest.fixture
def unread() -> Iterator[Output]:
    reading, writing = os.pipe()
    os.close(reading)
    yield Output(writing)
    os.close(writing)


@pytest.fixture
def full() -> Iterator[Output]:
    fd = os.open("/dev/full", os.O_WRONLY)
    yield Output(fd)
    os.close(fd)


def test_what_nobody_reads_any_more_is_taken_all_the_same(unread: Output) -> None:
    assert [unread.write(b"text"), unread.write(b"more")] == [4, 4]


def test_a_command_that_would_print_for_ever_ends_with_its_reader(unread: Output) -> None:
    unread.endless = True
    with pytest.raises(OutputError) as caught:
        unread.write(b"text")
    assert caught.value.reason is None
    assert unread.write(b"what is left when the program ends") == 34


def test_a_disk_that_is_full_is_told_once(full: Output) -> None:
    with pytest.raises(OutputError, match="No space left"):
        full.write(b"text")
    assert full.write(b"text") == 4
