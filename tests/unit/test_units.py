from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.units import (
    parse_duration,
    parse_size,
    parse_threshold,
    show_duration,
    show_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172800), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10x", "-5s", "1h and 3m", "ten minutes"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        parse_duration(text)


@given(st.text(max_size=40))
def test_only_value_errors_come_out(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_threshold):
        try:
            parse(text)
        except ValueError:
            continue


def test_thresholds() -> None:
    found = parse_threshold("3 in 10m")
    assert (found.count, found.window_s) == (3, 600)


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("1K", 1024), ("500M", 500 << 20), ("2GiB", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0031, "3.1 ms"), (0.26, "0.26 s"), (45, "45 s"), (600, "10 min"), (12000, "3 h 20 min")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_sizes_for_people() -> None:
    assert show_size(3 << 30) == "3 GiB"
