from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel.kmsg import KmsgFormatError, parse


def test_the_kernels_own_record() -> None:
    found = parse(b"2,1234,749807367,-;EXT4-fs error (device loop1): oops\n SUBSYSTEM=block\n")
    assert (found.facility, found.level) == (0, 2)
    assert (found.sequence, found.time_us) == (1234, 749807367)
    assert found.text == "EXT4-fs error (device loop1): oops"


@pytest.mark.parametrize("prefix", [8, 10, 11, 12, 2048])
def test_what_user_space_wrote_is_never_facility_0(prefix: int) -> None:
    assert parse(f"{prefix},1,1,-;EXT4-fs error".encode()).facility != 0


def test_more_fields_and_a_semicolon_in_the_text() -> None:
    found = parse(b"6,1,2,c,caller=T123;a;b")
    assert (found.text, found.continued) == ("a;b", True)


@pytest.mark.parametrize("data", [b"", b"x", b"1,2,3", b"1,2;x", b"a,b,c,d;x", b"-1,2,3,-;x"])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(KmsgFormatError):
        parse(data)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        parse(data)
    except KmsgFormatError:
        return
