"""Going through namespaces. The kernel is a stand-in: it hands out descriptors of /dev/null."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from fswatchd.kernel import mounts


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many namespaces, the first of which is ours."""
    count = 200
    left = {mounts.NS_MNT_GET_PREV: 0, mounts.NS_MNT_GET_NEXT: count - 1}

    def ioctl(_fd: int, request: int, buffer: bytearray) -> int:
        if request == mounts.NS_GET_MNTNS_ID:
            buffer[:] = struct.pack("=Q", 1)
            return 0
        if not left[request]:
            raise FileNotFoundError(errno.ENOENT, "no more")
        left[request] -= 1
        buffer[:] = struct.pack("=IIQ", 16, 0, count - left[request])
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return count


def test_a_node_may_have_more_namespaces_than_a_process_may_have_files(many: int) -> None:
    before = open_files()
    with closing(mounts.namespaces()) as found:
        seen = [(namespace, open_files() - before) for namespace, _ in found]
    assert [namespace for namespace, _ in seen] == list(range(1, many + 1))
    assert max(held for _, held in seen) <= 3
    assert open_files() == before


def test_who_stops_half_way_leaves_nothing_open(many: int) -> None:
    before = open_files()
    with closing(mounts.namespaces()) as found:
        for namespace, _ in found:
            if namespace == many // 2:
                break
    assert open_files() == before


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_want_of_descriptors_is_no_old_kernel(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(mounts, "namespaces", lambda: fails(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        mounts.supported()


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL, errno.EPERM])
def test_a_kernel_that_cannot_is_an_old_one(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(mounts, "namespaces", lambda: fails(number))
    assert mounts.supported() is False


def fails(number: int) -> Iterator[tuple[int, int]]:
    raise OSError(number, os.strerror(number))
    yield
