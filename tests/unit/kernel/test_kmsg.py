from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel.kmsg import KmsgFormatError, attachments, disk, parse


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


GROWS = ": detected capacity change from 0 to 131072"


def test_the_kernel_says_when_a_device_is_attached_and_the_last_time_counts() -> None:
    records = [
        f"6,1,100,-;loop3{GROWS}\n SUBSYSTEM=block\n DEVICE=b7:3\n",
        "2,2,150,-;EXT4-fs error (device loop3): oops",
        f"6,3,200,-,caller=T123;loop3{GROWS}",
        f"6,4,300,-;dm-12{GROWS}",
    ]
    assert attachments(one.encode() for one in records) == {"loop3": 200, "dm-12": 300}


@pytest.mark.parametrize(
    "record",
    [
        f"14,1,100,-;loop3{GROWS}",  # of user space
        f"2,1,100,-;EXT4-fs error (device loop4): comm loop3{GROWS}",
        "6,1,100,-;loop3: detected capacity change from 8192 to 131072",
        "6,1,100,-;loop3: detected capacity change from 131072 to 0",
        f"6,1,100,-;sdb{GROWS}",
    ],
)
def test_what_attaches_nothing(record: str) -> None:
    assert attachments([record.encode()]) == {}


@pytest.mark.parametrize(
    ("device", "of"), [("loop3", "loop3"), ("loop3p1", "loop3"), ("dm-3", "dm-3"), ("sdp1", "sdp1")]
)
def test_a_partition_is_attached_with_its_disk(device: str, of: str) -> None:
    assert disk(device) == of
