"""`fswatch events`: what it shows, and how it goes on when the daemon goes away."""

from __future__ import annotations

import io
import json
import time

import pytest

from fswatchd import views
from fswatchd.cli import events as events_command
from fswatchd.cli.events import Shown
from fswatchd.client import ClientError, Message, _messages
from fswatchd.exitcode import Exit
from fswatchd.store.store import StoredEvent
from tests.unit.builders import event


def message(cursor: int) -> Message:
    stored = StoredEvent(cursor=cursor, event=event(), ves=("lxc:a",), incident_id=None)
    return Message("message", views.stored_event(stored), str(cursor))


def gap(after: int, upto: int) -> Message:
    return Message("gap", views.gap(after, upto, upto - after, "retention"), str(upto))


UNREACHABLE = ClientError("cannot reach the daemon", "", Exit.UNKNOWN)
REFUSED = ClientError("there is no VE 'x'", "", Exit.USAGE)
OPEN = Message("open", "log1", None)


class Daemon:
    """Answers with a list of messages a connection; an error in it is raised there."""

    def __init__(self, *connections: list) -> None:
        self._connections = list(connections)
        self.asked: list[dict] = []

    def follow(self, path: str, **query: object):
        assert path == "/v1/events/stream"
        self.asked.append(query)
        for one in self._connections.pop(0):
            if isinstance(one, BaseException):
                raise one
            yield one


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def follow(daemon: Daemon, *, as_json: bool = True, since: int | None = 3) -> None:
    with pytest.raises((ClientError, KeyboardInterrupt)):
        events_command.follow(daemon, Shown(as_json=as_json), since=since, ve="a")


def cursors(out: str) -> list:
    documents = [json.loads(line) for line in out.splitlines()]
    return [d["cursor"] if "cursor" in d else d["gap"]["to"] for d in documents]


def test_it_goes_on_from_the_last_cursor_in_the_same_log(capsys, pauses) -> None:
    daemon = Daemon(
        [OPEN, Message("message", None, "3"), message(4), message(5)],
        [OPEN, Message("message", None, "9"), UNREACHABLE],
        [OPEN, message(12), KeyboardInterrupt()],
    )
    follow(daemon)
    assert cursors(capsys.readouterr().out) == [4, 5, 12]
    assert daemon.asked == [
        {"since": 3, "log": None, "ve": "a"},
        {"since": 5, "log": "log1", "ve": "a"},
        {"since": 9, "log": "log1", "ve": "a"},
    ]


def test_who_began_with_now_misses_nothing_either(capsys, pauses) -> None:
    daemon = Daemon([OPEN, Message("message", None, "7")], [KeyboardInterrupt()])
    follow(daemon, since=None)
    assert [query["since"] for query in daemon.asked] == [None, 7]


def test_pauses_grow_and_begin_anew_when_something_came(capsys, pauses) -> None:
    daemon = Daemon(
        [OPEN, message(4)],
        *[[UNREACHABLE]] * 9,
        [OPEN, message(5)],
        [KeyboardInterrupt()],
    )
    follow(daemon)
    assert len(pauses) == 11
    assert pauses[0] < pauses[3] < pauses[6]
    assert max(pauses) <= 12.5
    assert pauses[-1] < 1
    assert capsys.readouterr().err.count("connecting again") == 2


def test_a_daemon_that_was_never_there_is_an_error(pauses) -> None:
    with pytest.raises(ClientError):
        events_command.follow(Daemon([UNREACHABLE]), Shown(as_json=True), since=3, ve=None)
    assert pauses == []


def test_a_refusal_ends_it(pauses) -> None:
    with pytest.raises(ClientError, match="no VE"):
        events_command.follow(
            Daemon([OPEN, message(4)], [REFUSED]), Shown(as_json=True), since=3, ve="x"
        )


def test_gaps_are_lines_of_json_and_words_otherwise(capsys, pauses) -> None:
    connection = [OPEN, gap(3, 8), message(9), KeyboardInterrupt()]
    follow(Daemon(list(connection)))
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[0])["gap"]["count"] == 5
    assert cursors(out) == [8, 9]
    follow(Daemon(list(connection)), as_json=False)
    out, err = capsys.readouterr()
    assert out.startswith("9\t")
    assert "5 events after 3 up to 8 are missing (retention)" in err


class Pages:
    def __init__(self, *pages: dict) -> None:
        self._pages = list(pages)
        self.asked: list = []

    def get(self, _path: str, **query: object) -> dict:
        self.asked.append(query["since"])
        return self._pages.pop(0)


def test_pages_are_read_to_the_end_with_gaps_in_their_places(capsys) -> None:
    pages = Pages(
        {
            "events": [message(9).data, message(12).data],
            "gaps": [gap(3, 8).data, gap(10, 11).data],
            "cursor": 12,
        },
        {"events": [], "gaps": [], "cursor": 15},
    )
    events_command.page(pages, Shown(as_json=True), since=3, ve=None)
    assert cursors(capsys.readouterr().out) == [8, 9, 11, 12]
    assert pages.asked == [3, 12]


def test_a_message_that_was_cut_off_is_none() -> None:
    text = b'id: 4\ndata: {"a": 1}\n\n: x\nid: 5\n\nevent: gap\nid: 6\ndata: {"gap": 1}\n\n'
    whole = list(_messages(io.BytesIO(text)))
    assert whole == [
        Message("message", {"a": 1}, "4"),
        Message("message", None, "5"),
        Message("gap", {"gap": 1}, "6"),
    ]
    for end in range(len(text)):
        assert list(_messages(io.BytesIO(text[:end]))) in (whole[:0], whole[:1], whole[:2])
