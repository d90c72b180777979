"""The parser on bytes captured from Linux 6.18, and on anything else."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel import fanotify
from fswatchd.kernel.fanotify import FanotifyFormatError, parse

# echo x > /sys/fs/ext4/loop1/trigger_fs_error
TRIGGERED = bytes.fromhex(
    "38000000030018000080000000000000ffffffffd20e0000"
    "01001400343c7573ee4227ce00000000ff000000"
    "05000c007500000001000000"
)
# FAN_MNT_DETACH of a namespace that died
DETACHED = bytes.fromhex(
    "28000000030018000000000200000000ffffffff960e000007001000000000004200008000000000"
)


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def event(*records: bytes, mask: int = fanotify.FAN_FS_ERROR, version: int = 3) -> bytes:
    body = b"".join(records)
    return struct.pack("=IBBHQii", 24 + len(body), version, 0, 24, mask, -1, 77) + body


ERROR = record(5, struct.pack("=iI", errno.EUCLEAN, 1))
FID = record(1, bytes(8) + struct.pack("=Ii", 8, 1) + struct.pack("=II", 12, 3))


def test_an_error_of_the_superblock() -> None:
    (found,) = parse(TRIGGERED)
    assert found.fsid == bytes.fromhex("343c7573ee4227ce")
    assert (found.error, found.count, found.handle) == (errno.EUCLEAN, 1, (255, bytes(4))) or (
        found.error,
        found.count,
        found.handle,
    ) == (errno.EUCLEAN, 1, None)


def test_several_events_in_one_read() -> None:
    assert len(parse(TRIGGERED + DETACHED + TRIGGERED)) == 3


def test_a_mount_event_carries_no_error() -> None:
    (found,) = parse(DETACHED)
    assert (found.mask, found.error, found.fsid) == (fanotify.FAN_MNT_DETACH, 0, None)
    assert found.mount_id == 0x80000042


def test_a_cut_mount_record_is_refused() -> None:
    with pytest.raises(FanotifyFormatError):
        parse(event(record(7, bytes(4))))


def test_a_negative_errno_is_made_positive() -> None:
    negative = record(5, struct.pack("=iI", -errno.EUCLEAN, 4))
    (found,) = parse(event(FID, negative))
    assert (found.error, found.count) == (errno.EUCLEAN, 4)


@pytest.mark.parametrize("records", [(FID, ERROR), (ERROR, FID), (record(99, b"new"), FID, ERROR)])
def test_records_come_in_any_order_and_unknown_ones_are_skipped(records) -> None:
    (found,) = parse(event(*records))
    assert found.handle == (1, struct.pack("=II", 12, 3))
    assert found.error == errno.EUCLEAN


def test_overflow_has_no_filesystem() -> None:
    (found,) = parse(event(mask=fanotify.FAN_Q_OVERFLOW))
    assert found.overflow
    assert found.fsid is None


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 10,
        event(FID, version=2),
        TRIGGERED[:-1],
        event(record(1, b"short")),
        event(record(5, b"1234")),
        event(struct.pack("=BBH", 1, 0, 2)),
        event(record(1, bytes(8) + struct.pack("=Ii", 4000, 1))),
        struct.pack("=IBBHQii", 8, 3, 0, 24, 0, -1, 0),
    ],
)
def test_what_is_no_event_is_the_parsers_own_error(data: bytes) -> None:
    with pytest.raises(FanotifyFormatError):
        parse(data)


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        parse(data)
    except FanotifyFormatError:
        return


@given(st.integers(0, len(TRIGGERED) - 1), st.integers(0, 255))
def test_no_changed_byte_raises_anything_else(place: int, value: int) -> None:
    data = bytearray(TRIGGERED)
    data[place] = value
    try:
        parse(bytes(data))
    except FanotifyFormatError:
        return
