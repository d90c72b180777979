"""Events laid out as in fs/xfs/libxfs/xfs_fs.h, `struct xfs_health_monitor_event` (Linux 7.0)."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel.xfs_health import Domain, Type, XfsHealthFormatError, parse

TIME_NS = 1_700_000_000_000_000_000


def event(domain: int, kind: int, form: str = "", *values: int) -> bytes:
    """domain, type, time_ns, a union of 32 bytes, two words of padding."""
    body = struct.pack(f"={form}", *values).ljust(32, b"\0")
    return struct.pack("=IIQ", domain, kind, TIME_NS) + body + bytes(16)


@pytest.mark.parametrize(
    ("data", "details"),
    [
        (event(Domain.MOUNT, Type.RUNNING), ""),
        (event(Domain.MOUNT, Type.UNMOUNT), ""),
        (event(Domain.MOUNT, Type.SHUTDOWN, "I", 0b10010), "log I/O error, corruption on disk"),
        (event(Domain.MOUNT, Type.SHUTDOWN, "I", 1 << 9), "reasons 0x200"),
        (event(Domain.FS, Type.SICK, "I", 0x10), "structures of the whole filesystem 0x10"),
        (event(Domain.AG, Type.SICK, "II", 0x4, 3), "structures 0x4 of allocation group 3"),
        (event(Domain.RTGROUP, Type.CORRUPT, "II", 0x4, 3), "structures 0x4 of realtime group 3"),
        (
            event(Domain.INODE, Type.SICK, "IIQ", 0x8, 77, 131),
            "structures 0x8 of inode 131 (generation 77)",
        ),
        (
            event(Domain.DATADEV, Type.MEDIA_ERROR, "QQ", 19, 5),
            "5 sectors at 19 of the data device",
        ),
        (event(Domain.LOGDEV, Type.MEDIA_ERROR, "QQ", 19, 5), "5 sectors at 19 of the log device"),
        (
            event(Domain.FILERANGE, Type.DIOREAD, "QQQII", 4096, 512, 131, 77, errno.EIO),
            "512 bytes at 4096 of inode 131 (generation 77)",
        ),
        (event(99, 99, "Q", 1), ""),
    ],
)
def test_events(data: bytes, details: str) -> None:
    (found,) = parse(data)
    assert (found.details, found.time_ns) == (details, TIME_NS)


def test_what_was_dropped_is_counted() -> None:
    (found,) = parse(event(Domain.MOUNT, Type.LOST, "Q", 512))
    assert found.lost == 512


@pytest.mark.parametrize("number", [errno.ENODATA, (1 << 32) - errno.ENODATA])
def test_the_error_of_a_file_range_is_positive(number: int) -> None:
    (found,) = parse(event(Domain.FILERANGE, Type.DATALOST, "QQQII", 0, 1, 1, 1, number))
    assert found.error == errno.ENODATA


def test_several_events_in_one_read() -> None:
    assert len(parse(event(0, 0) + event(1, 3, "I", 1) + event(0, 6, "I", 1))) == 3
    assert parse(b"") == []


def test_a_cut_event_is_the_parsers_own_error() -> None:
    with pytest.raises(XfsHealthFormatError):
        parse(event(0, 0)[:-1])


@given(st.binary(max_size=256) | st.binary(min_size=64, max_size=64))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        parse(data)
    except XfsHealthFormatError:
        return


@given(st.integers(0, 9), st.integers(0, 13), st.binary(min_size=48, max_size=48))
def test_no_event_of_a_known_kind_raises_anything(domain: int, kind: int, rest: bytes) -> None:
    (found,) = parse(struct.pack("=IIQ", domain, kind, TIME_NS) + rest)
    assert found.details.isprintable()
    assert 0 <= found.error < 1 << 31 or found.error == 1 << 31
