"""Messages of the family VFS_DQUOT as the kernel lays them out (fs/quota/netlink.c)."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.event.dquot import MarshalDQuot, dquotmsg

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Severity
from fswatchd.sources import quota
from fswatchd.sources.quota import QuotaSource, limits_after
from tests.collected import Collected

FAMILY = 17


def attribute(number: int, value: int, form: str) -> bytes:
    body = struct.pack(form, value)
    return struct.pack("=HH", 4 + len(body), number) + body


def message(warning: int, kind: int = 0) -> bytes:
    """nlmsghdr, genlmsghdr (QUOTA_NL_C_WARNING, version 1), attributes."""
    body = struct.pack("=BBH", 1, 1, 0) + b"".join(
        attribute(number, value, form)
        for number, value, form in (
            (1, kind, "=I"),
            (2, 100001, "=Q"),
            (3, warning, "=I"),
            (4, 7, "=I"),
            (5, 3, "=I"),
            (6, 1000, "=Q"),
        )
    )
    return struct.pack("=IHHII", 16 + len(body), FAMILY, 0, 0, 0) + body


def decoded(data: bytes) -> dict[str, object]:
    marshal = MarshalDQuot()
    marshal.msg_map[FAMILY] = dquotmsg
    (found,) = marshal.parse(data)
    return dict(found["attrs"])


@pytest.mark.parametrize(
    ("warning", "klass", "severity", "words"),
    [
        (1, EventClass.QUOTA, Severity.ERROR, "hard limit of files"),
        (2, EventClass.QUOTA, Severity.ERROR, "soft limit of files for too long"),
        (3, EventClass.QUOTA, Severity.WARNING, "soft limit of files"),
        (4, EventClass.QUOTA, Severity.ERROR, "hard limit of space"),
        (5, EventClass.QUOTA, Severity.ERROR, "soft limit of space for too long"),
        (6, EventClass.QUOTA, Severity.WARNING, "soft limit of space"),
        (7, EventClass.RECOVERED, Severity.INFO, "hard limit of files again"),
        (8, EventClass.RECOVERED, Severity.INFO, "soft limit of files again"),
        (9, EventClass.RECOVERED, Severity.INFO, "hard limit of space again"),
        (10, EventClass.RECOVERED, Severity.INFO, "soft limit of space again"),
    ],
)
@pytest.mark.parametrize(("kind", "owner"), [(0, "user"), (1, "group"), (2, "project")])
def test_warnings_and_their_all_clear(warning, klass, severity, words, kind, owner) -> None:
    sink = Collected()
    QuotaSource(sink).handle(decoded(message(warning, kind)))
    (found,) = sink.events
    assert (found.klass, found.severity, found.devno) == (klass, severity, Devno(7, 3))
    assert found.detail.startswith(f"{owner} 100001 ")
    assert found.detail.endswith(words)


@pytest.mark.parametrize("data", [message(0), message(11), message(4, kind=3)])
def test_what_is_no_warning_is_nothing(data: bytes) -> None:
    sink = Collected()
    QuotaSource(sink).handle(decoded(data))
    assert sink.events == []


NAMES = ["QTYPE", "EXCESS_ID", "WARNING", "DEV_MAJOR", "DEV_MINOR", "CAUSED_ID"]


@given(
    st.dictionaries(
        st.sampled_from([f"QUOTA_NL_A_{name}" for name in NAMES]),
        st.integers() | st.none() | st.text() | st.lists(st.integers()),
    )
)
def test_no_attributes_raise_anything(attributes: dict[str, object]) -> None:
    QuotaSource(Collected()).handle(attributes)


class Connection:
    """A socket of pyroute2: messages, or what it raises."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.closed = False

    async def get(self) -> AsyncIterator[dict[str, object]]:
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield {"attrs": answer}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOBUFS, "No buffer space available"),
        struct.error("unpack_from requires a buffer"),
        ValueError("not a message"),
    ],
)
async def test_after_an_overflow_or_nonsense_it_says_so_and_listens_anew(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    warning = list(decoded(message(4)).items())
    first, second = Connection(warning, failure), Connection(warning)
    connections = iter([first, second])

    async def connect() -> Connection:
        return next(connections)

    monkeypatch.setattr(quota, "_connect", connect)
    monkeypatch.setattr(quota, "_REOPEN_S", 0)
    sink = Collected()
    source = QuotaSource(sink)
    await source.start()
    async with asyncio.timeout(5):
        while len(sink.events) < 2:
            await asyncio.sleep(0)
    await source.stop()
    assert len(sink.losses) == source.status.lost == 1
    assert first.closed
    assert second.closed


@pytest.mark.parametrize(
    ("warnings", "left"),
    [
        ([(4, 1000)], ("user 1000 hard space",)),
        ([(4, 1000), (10, 2000)], ("user 1000 hard space",)),
        ([(6, 1000), (4, 1000), (9, 1000)], ("user 1000 soft space",)),
        ([(6, 1000), (4, 1000), (10, 1000)], ()),
        ([(3, 7), (2, 7), (4, 7), (8, 7)], ("user 7 hard space",)),
    ],
)
def test_who_is_above_a_limit_after_all_that_was_said(
    warnings: list[tuple[int, int]], left: tuple[str, ...]
) -> None:
    sink = Collected()
    source = QuotaSource(sink)
    for warning, owner in warnings:
        attributes = decoded(message(warning)) | {"QUOTA_NL_A_EXCESS_ID": owner}
        source.handle(attributes)
    limits: tuple[str, ...] = ()
    for found in sink.events:
        limits = limits_after(limits, found.detail)
    assert limits == left
