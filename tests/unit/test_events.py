from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.events import printable, witnesses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("new\nline", r"new\x0aline"),
        ("\x1b[2Jred", r"\x1b[2Jred"),
        ("ümläut", "ümläut"),
        ("rtl\u202eoverride", r"rtl\u202eoverride"),
        (b"bad\xff".decode("utf-8", "surrogateescape"), r"bad\xff"),
    ],
)
def test_what_could_act_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=5000))
def test_nothing_unprintable_comes_out_and_never_too_much(text: str) -> None:
    shown = printable(text)
    assert not any(ord(char) < 0x20 or ord(char) == 0x7F for char in shown)
    assert len(shown) <= 8 * 1000


def test_kmsg_and_journal_are_one_witness() -> None:
    assert witnesses(["kmsg", "journal", "fanotify"]) == {"log", "fanotify"}
