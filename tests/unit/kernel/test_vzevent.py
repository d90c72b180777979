"""Messages as kernel/ve/vzevent.c of the Virtuozzo kernel prints them: "%s@%s"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel.vzevent import VzEventFormatError, parse


@pytest.mark.parametrize(
    ("data", "action", "ve"),
    [
        (b"ve-start@101", "ve-start", "101"),
        (b"ve-stop@101\0", "ve-stop", "101"),
        (b"ve-mount@3f2504e0-4f89-41d3-9a0c-0305e82c3301\n\0", "ve-mount", None),
        (b"ve-reboot@1", "ve-reboot", "1"),
    ],
)
def test_events(data: bytes, action: str, ve: str | None) -> None:
    found = parse(data)
    assert (found.action, found.ve) == (action, ve or "3f2504e0-4f89-41d3-9a0c-0305e82c3301")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ve-start",
        b"@101",
        b"ve-start@",
        b"ve-start@ 101",
        b"ve-start@101 102",
        b"ve-start@101\0ve-stop@102",
        b"v" * 32 + b"@1",
        b"ve-start@" + b"1" * 37,
        b"ve-start@\xff",
        b"\x01\x00\x00\x00",
    ],
)
def test_what_is_no_event_is_the_parsers_own_error(data: bytes) -> None:
    with pytest.raises(VzEventFormatError):
        parse(data)


@given(st.binary(max_size=100) | st.binary(max_size=40).map(lambda tail: b"ve-start@" + tail))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        found = parse(data)
    except VzEventFormatError:
        return
    assert found.action.isascii()
    assert found.ve.isascii()
