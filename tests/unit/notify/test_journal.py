"""Entries about incidents: which, with what in them, and that nothing waits for journald."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.book import IncidentBook
from fswatchd.events import Domain, Severity
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.notify import journal_socket
from fswatchd.notify.journal import MESSAGE_IDS, JournalNotices, fields
from fswatchd.notify.journal_socket import JournalSocket, encode
from fswatchd.store import store
from tests.unit.builders import NOW_NS, event, filesystem, incident

PROJECT = Path(__file__).parents[3]


class Journald:
    """A socket as journald's, read when the test wants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))

    def stop(self) -> None:
        self._socket.close()

    def entries(self) -> list[dict[str, list[str]]]:
        """What has arrived since the last time."""
        found = []
        while True:
            try:
                found.append(decode(self._socket.recv(1 << 20)))
            except BlockingIOError:
                return found


def decode(entry: bytes) -> dict[str, list[str]]:
    """As journald reads the native protocol."""
    found: dict[str, list[str]] = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found.setdefault(name.decode(), []).append(value.decode())
        entry = rest
    return found


@pytest.fixture
def journald(tmp_path):
    made = Journald(tmp_path / "socket")
    yield made
    made.stop()


@pytest.fixture
async def sender(journald):
    made = JournalSocket(str(journald.path))
    yield made
    made.close()


@pytest.fixture
async def book(tmp_path):
    opened = store.Store(tmp_path / "fswatchd.db")
    await opened.open()
    made = IncidentBook(opened, "hn1")
    yield made
    made.flush()
    await opened.close()


async def until(question) -> None:
    async with asyncio.timeout(20):
        while not question():
            await asyncio.sleep(0.005)


def found_damage(book: IncidentBook) -> Incident:
    fresh = book.new(filesystem(), Domain.DAMAGE, ("lxc:ve101",))
    joined = fresh.joined(event(), NOW_NS)
    book.put(joined)
    return joined


class TestWhat:
    async def test_the_life_of_an_incident_is_three_entries(self, book, sender, journald) -> None:
        JournalNotices(book, sender)
        found = found_damage(book)
        book.note(found.incident_id, "a line more")
        book.put(replace(found, state=State.WAITING, waiting_for="approval"))
        book.put(replace(found, state=State.ACTING))
        broken = replace(found, state=State.NEEDS_OPERATOR).noted(NOW_NS, "e2fsck gave up")
        book.put(broken)
        book.put(broken.noted(NOW_NS, "still so"))
        book.close(broken, Outcome.DISMISSED, "acknowledged by root")
        entries = journald.entries()
        assert [e["MESSAGE_ID"] for e in entries] == [
            [MESSAGE_IDS[kind]] for kind in ("opened", "needs-operator", "closed")
        ]
        for entry in entries:
            assert entry["FSWATCHD_INCIDENT"] == [found.incident_id]
            assert entry["FSWATCHD_VE"] == ["lxc:ve101"]
            assert entry["FSWATCHD_CLASS"] == ["corruption"]
            assert entry["FSWATCHD_DEVICE"] == ["loop3"]
        assert [e["PRIORITY"] for e in entries] == [["2"], ["2"], ["5"]]
        assert "e2fsck gave up" in entries[1]["MESSAGE"][0]
        assert "FSWATCHD_OUTCOME" not in entries[1]
        assert entries[2]["FSWATCHD_OUTCOME"] == ["dismissed"]

    async def test_a_repair_asked_for_by_hand_is_told_too(self, book, sender, journald) -> None:
        JournalNotices(book, sender)
        fresh = book.new(filesystem(), Domain.DAMAGE, ("lxc:ve101",))
        book.put(replace(fresh, sources=("operator",), requested_by="root"))
        assert [e["MESSAGE_ID"] for e in journald.entries()] == [[MESSAGE_IDS["opened"]]]

    async def test_what_an_earlier_run_has_opened_is_not_opened_again(
        self, book, sender, journald
    ) -> None:
        found = found_damage(book)
        book.flush()
        again = IncidentBook(book._store, "hn1")
        JournalNotices(again, sender)
        await again.load()
        again.put(found.joined(event("kmsg"), NOW_NS))
        assert journald.entries() == []
        again.close(found, Outcome.RECOVERED, "it went away")
        assert [e["MESSAGE_ID"] for e in journald.entries()] == [[MESSAGE_IDS["closed"]]]

    @pytest.mark.parametrize(
        ("severity", "priority"),
        [
            (Severity.CRITICAL, "2"),
            (Severity.ERROR, "3"),
            (Severity.WARNING, "4"),
            (Severity.INFO, "6"),
        ],
    )
    def test_priorities_follow_severity(self, severity: Severity, priority: str) -> None:
        found = dict(fields("opened", replace(incident(), severity=severity)))
        assert found["PRIORITY"] == priority

    @pytest.mark.parametrize(
        ("ves", "priority"),
        [(("drill:x-1",), "6"), (("drill:x-1", "lxc:a"), "2"), (("lxc:drill:x",), "2"), ((), "2")],
    )
    def test_a_drill_wakes_nobody(self, ves: tuple[str, ...], priority: str) -> None:
        found = dict(fields("opened", incident(ves=ves)))
        assert found["PRIORITY"] == priority
        assert ("FSWATCHD_DRILL" in found) == (priority == "6")

    @given(text=st.text(st.characters(codec=None), max_size=50))
    def test_what_a_tenant_chose_cannot_make_a_field_or_act_on_a_terminal(self, text: str) -> None:
        hostile = incident(
            filesystem=filesystem(device=f"x{text}", fstype=f"y{text}"), ves=(f"lxc:{text}",)
        ).noted(NOW_NS, f"z{text}\nPRIORITY=7\x1b[2J")
        entry = decode(encode(fields("opened", hostile)))
        assert entry["PRIORITY"] == ["2"]
        assert set(entry) <= {
            "MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "FSWATCHD_INCIDENT",
            "FSWATCHD_NODE", "FSWATCHD_STATE", "FSWATCHD_CLASS", "FSWATCHD_SEVERITY",
            "FSWATCHD_CONFIRMED", "FSWATCHD_TIME", "FSWATCHD_VE", "FSWATCHD_DEVICE",
            "FSWATCHD_DEVNO", "FSWATCHD_FSTYPE", "FSWATCHD_RULE", "FSWATCHD_OUTCOME",
            "FSWATCHD_ERRNO", "FSWATCHD_DRILL",
        }  # fmt: skip
        for values in entry.values():
            assert not any(re.search(r"[\x00-\x1f\x7f-\x9f]", value) for value in values)

    def test_the_longest_entry_fits_into_a_datagram(self) -> None:
        long = "ü" * 5000
        found = incident(
            filesystem=filesystem(device=long, fstype=long),
            ves=tuple(f"lxc:{number}{long}" for number in range(500)),
            rule=long,
            node=long,
        ).noted(NOW_NS, long)
        assert len(encode(fields("closed", found))) <= journal_socket.ENTRY_LIMIT

    @given(values=st.lists(st.text(max_size=20)))
    def test_any_value_survives_the_protocol(self, values: list[str]) -> None:
        clean = [value.encode(errors="backslashreplace").decode() for value in values]
        found = decode(encode(("A", value) for value in clean))
        assert found.get("A", []) == clean


class TestHow:
    async def test_a_burst_that_journald_is_too_slow_for_arrives_in_order(
        self, sender, journald
    ) -> None:
        for number in range(200):
            sender.send([("N", str(number))])
        assert sender.waiting > 0
        assert sender.problem
        found: list[str] = []

        def read() -> bool:
            found.extend(entry["N"][0] for entry in journald.entries())
            return len(found) == 200

        await until(read)
        assert found == [str(number) for number in range(200)]
        assert (sender.sent, sender.waiting, sender.dropped) == (200, 0, 0)
        assert sender.problem is None

    async def test_what_is_too_much_is_counted(self, sender, journald, monkeypatch) -> None:
        monkeypatch.setattr(journal_socket, "WAITING_LIMIT", 5)
        for number in range(100):
            sender.send([("N", str(number))])
        assert sender.sent + sender.waiting + sender.dropped == 100
        assert sender.waiting == 5
        assert sender.dropped > 0

    async def test_an_entry_that_is_too_long_is_counted(self, sender, journald) -> None:
        sender.send([("N", "x" * journal_socket.ENTRY_LIMIT)])
        assert (sender.waiting, sender.dropped) == (0, 1)

    async def test_a_journald_that_is_not_there_yet_gets_it_later(self, tmp_path) -> None:
        sender = JournalSocket(str(tmp_path / "none"))
        sender.send([("N", "1")])
        assert "No such file" in (sender.problem or "")
        late = Journald(tmp_path / "none")
        await until(lambda: sender.waiting == 0)
        assert late.entries() == [{"N": ["1"]}]
        late.stop()
        sender.close()

    async def test_a_journald_that_was_started_again_gets_the_next(self, sender, journald) -> None:
        sender.send([("N", "1")])
        assert journald.entries()
        journald.stop()
        sender.send([("N", "2")])
        assert sender.waiting == 1
        journald.start()
        await until(lambda: sender.waiting == 0)
        assert journald.entries() == [{"N": ["2"]}]

    async def test_what_was_not_taken_at_the_end_is_counted(self, tmp_path) -> None:
        sender = JournalSocket(str(tmp_path / "none"))
        for _ in range(3):
            sender.send([("N", "1")])
        assert sender.close() == 3
        assert sender.dropped == 3


class TestCatalogue:
    TEXT = (PROJECT / "data" / "systemd" / "fswatchd.catalog").read_text(encoding="utf-8")

    def test_every_kind_of_entry_has_its_text(self) -> None:
        ids = re.findall(r"^-- ([0-9a-f]{32})$", self.TEXT, re.MULTILINE)
        assert sorted(ids) == sorted(MESSAGE_IDS.values())
        assert len(set(ids)) == len(ids) == 5

    def test_the_manual_for_programmers_names_every_id_and_field(self) -> None:
        text = (PROJECT / "docs" / "events.md").read_text(encoding="utf-8")
        names = {name for name, _ in fields("closed", replace(
            incident(rule="r", errno=117, ves=("drill:a",)), outcome=Outcome.REPAIRED
        ))}  # fmt: skip
        for word in [*MESSAGE_IDS.values(), *names]:
            assert f"`{word}`" in text, word

    def test_the_fields_in_the_texts_exist(self) -> None:
        full = replace(incident(), outcome=Outcome.REPAIRED)
        names = {name for name, _ in fields("closed", full)}
        assert set(re.findall(r"@([A-Z_]+)@", self.TEXT)) <= {*names, "FSWATCHD_DOUBT"}
