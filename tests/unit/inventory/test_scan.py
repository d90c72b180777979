"""What could not be read is not taken for what is not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from fswatchd.inventory import scan
from fswatchd.inventory.model import NamespaceKey
from fswatchd.inventory.scan import MountinfoScanner, StatmountScanner
from fswatchd.kernel import mountinfo, mounts, proc, pseudofile


def short(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def ended(*_: object) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def own_only() -> Iterator[tuple[int, int]]:
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield 1, fd
    finally:
        os.close(fd)


def test_a_namespace_that_cannot_be_read_has_not_lost_its_mounts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its filesystems would be forgotten, and nobody would hear them."""
    monkeypatch.setattr(mounts, "namespaces", own_only)
    monkeypatch.setattr(mounts, "list_mounts", short)
    monkeypatch.setattr(mountinfo, "read", short)
    for scanner in (StatmountScanner(), MountinfoScanner()):
        with pytest.raises(OSError, match="Too many open files"):
            scanner.scan()


def test_one_that_has_ended_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "namespaces", own_only)
    monkeypatch.setattr(mounts, "list_mounts", ended)
    monkeypatch.setattr(mountinfo, "read", ended)
    for scanner in (StatmountScanner(), MountinfoScanner()):
        assert scanner.scan() == {}


def test_what_has_moved_is_read_by_the_next_look_where_this_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described: list[int] = []

    def describe(_namespace: int, mount_id: int) -> NoReturn:
        described.append(mount_id)
        raise ProcessLookupError

    monkeypatch.setattr(mounts, "namespaces", own_only)
    monkeypatch.setattr(mounts, "list_mounts", short)
    scanner = StatmountScanner()
    scanner._known = {1: scan._Namespace(frozenset({7}), (), frozenset())}
    scanner.moved([7])
    with pytest.raises(OSError, match="Too many open files"):
        scanner.scan()
    monkeypatch.setattr(mounts, "list_mounts", lambda _: [7])
    monkeypatch.setattr(mounts, "stat_mount", describe)
    scanner.scan()
    assert described == [7]


def test_a_line_that_is_not_understood_costs_no_other_one_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else whoever gets one into his namespace would be heard no more, and nobody would say so."""
    lines = [b"21 1 8:1 / / rw - ext4 /dev/sda1 rw", b"22 21 8:1 what\x1b this", b"23 21 8:2 /"]
    text = b"\n".join([*lines, b"24 21 8:3 / /a\rb rw - ext4 /dev/sda3 rw", b""])
    monkeypatch.setattr(proc, "pids", lambda: iter([os.getpid()]))
    monkeypatch.setattr(pseudofile, "read", lambda *_: text)
    scanner = MountinfoScanner()
    (places,) = scanner.scan().values()
    assert [place.mount.point for place in places] == ["/", "/a\rb"]
    told = "has mounts that are not understood, such as 22 21 8:1 what\\x1b this"
    assert scanner.unread() == f"process {os.getpid()} {told}"
    monkeypatch.setattr(pseudofile, "read", lambda *_: lines[0])
    scanner.scan()
    assert scanner.unread() == ""


def test_without_descriptors_nobody_can_say_that_a_namespace_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mounts, "namespaces", short)
    with pytest.raises(OSError, match="Too many open files"):
        scan.open_namespace(NamespaceKey(1), None)


def test_many_questions_at_once_read_a_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = MountinfoScanner()
    read = mountinfo.read
    scanner.scan()
    key = NamespaceKey(os.stat("/proc/self/ns/mnt").st_ino)
    scanner._pids[key] = os.getpid()
    mounted = read("self")
    readings: list[object] = []

    def count(pid: int | str) -> list[mounts.Mount]:
        readings.append(pid)
        return read(pid)

    monkeypatch.setattr(mountinfo, "read", count)
    with scanner.at_once():
        found = [scanner.current(key, mount) for mount in mounted]
    assert (found, len(readings)) == (mounted, 1)
    # After that a mount is as it is at the moment of the question.
    assert [scanner.current(key, mount) for mount in mounted[:2]] == mounted[:2]
    assert len(readings) == 3
