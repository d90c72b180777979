"""The live stream as bytes on a connection: who reads, who does not, who has gone."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from aiohttp import web

from fswatchd.api import event_stream, server
from fswatchd.client import Message, _messages
from fswatchd.engine import stream as stream_module
from fswatchd.engine.stream import EventStream
from fswatchd.events import VeState
from fswatchd.inventory.model import NamespaceKey, Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.store.store import Store, StoredEvent
from tests.schema import problems
from tests.unit.builders import event

A, B = "lxc:a", "lxc:b"


@dataclass
class Answer:
    """A response as far as it has been read."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def lines(self) -> AsyncIterator[str]:
        """Lines of a chunked body, until its end; ends without one raise."""
        rest = b""
        while size := int(await self.reader.readline(), 16):
            rest += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield line.decode()

    async def messages(self) -> AsyncIterator[Message]:
        """Server-sent events, through the client's own parser."""
        block: list[bytes] = []
        async for line in self.lines():
            block.append(f"{line}\n".encode())
            if not line:
                for message in _messages(block):
                    yield message
                block = []

    async def events(self, until: int) -> list[int]:
        """Cursors of events up to this one; a gap or a wrong id fails."""
        seen: list[int] = []
        async for message in self.messages():
            assert message.event == "message"
            if message.data is not None:
                assert problems(message.data) == []
                assert message.cursor == str(message.data["cursor"])
                seen.append(message.data["cursor"])
                if seen[-1] >= until:
                    break
        return seen


class Server:
    """The API on socket pairs: no listening socket, so no connection either."""

    def __init__(self, store: Store) -> None:
        ves = {
            VeId(f"lxc:{name}"): Ve(
                ve_id=VeId(f"lxc:{name}"),
                platform="lxc",
                native_id=name,
                name=name,
                state=VeState.RUNNING,
            )
            for name in ("a", "b")
        }
        view = NodeView(node_namespace=NamespaceKey(1), ves=ves)
        self.stream = EventStream(store)
        self.stream.begin()
        self._store = store
        daemon = SimpleNamespace(
            refusals=None, stream=self.stream, inventory=SimpleNamespace(view=view)
        )
        self._runner = web.AppRunner(server.application(daemon), shutdown_timeout=1)
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        await self._runner.setup()

    async def close(self) -> None:
        self.stream.close()
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await self._runner.cleanup()

    async def write(self, *ves: str, detail: str = "x") -> int:
        """One more event, stored and told."""
        cursor = self._store.next_cursor()
        told = asyncio.get_running_loop().create_future()

        def committed(stored: StoredEvent, moment: int | None) -> None:
            self.stream.publish(replace(stored, stored_ns=moment or 0))
            told.set_result(None)

        stored = StoredEvent(cursor=cursor, event=event(detail=detail), ves=ves, incident_id=None)
        self._store.add_event(stored, committed)
        await told
        return cursor

    async def get(
        self, path: str, *, window: int | None = None, method: str = "GET", **headers: str
    ) -> Answer:
        """Ask; `window` is how many bytes may wait in the socket."""
        ours, theirs = socket.socketpair()
        if window is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, window)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self._runner.server, theirs)
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 16)
        self._writers.append(writer)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        status = int((await reader.readline()).split()[1])
        found: dict[str, str] = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(": ")
            found[name] = value
        return Answer(status, found, reader, writer)

    async def document(self, path: str) -> dict:
        answer = await self.get(path)
        size = int(answer.headers["Content-Length"])
        return json.loads(await answer.reader.readexactly(size)) | {"status": answer.status}


@pytest.fixture
async def api(tmp_path):
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    made = Server(store)
    await made.start()
    yield made
    await made.close()
    await store.close()


async def until(question: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not question():
            await asyncio.sleep(0.005)


async def test_out_of_the_store_into_what_comes_now(api: Server) -> None:
    for _ in range(5):
        await api.write(A)
    answer = await api.get("/v1/events/stream?since=2")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Fswatchd-Log"] == api.stream.log_id
    reading = asyncio.create_task(answer.events(until=7))
    await api.write(A)
    await api.write(A)
    assert await reading == [3, 4, 5, 6, 7]


async def test_without_a_cursor_it_begins_now_and_says_where_that_is(api: Server) -> None:
    await api.write(A)
    answer = await api.get("/v1/events/stream")
    messages = answer.messages()
    assert await anext(messages) == Message("message", None, "1")
    await api.write(A)
    assert (await anext(messages)).cursor == "2"


async def test_the_header_of_a_browser_that_comes_back_wins_over_its_address(api: Server) -> None:
    for _ in range(4):
        await api.write(A)
    answer = await api.get("/v1/events/stream?since=1", Last_Event_ID="3")
    assert await answer.events(until=4) == [4]


async def test_one_ve_only_and_the_cursor_moves_on_with_the_others(
    api: Server, monkeypatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    answer = await api.get("/v1/events/stream?since=0&ve=a")
    for ve in (B, A, B, B):
        await api.write(ve)
    seen = []
    async for message in answer.messages():
        if message.data is not None:
            seen.append(message.data["ves"])
        if message.cursor == "4":
            break
    assert seen == [[A]]


async def test_a_ve_that_does_not_exist_is_404(api: Server) -> None:
    assert (await api.document("/v1/events/stream?ve=c"))["status"] == 404


@pytest.mark.parametrize("since", ["x", "-1", "1.5", "%C2%B2", "9223372036854775808", "1_0"])
async def test_what_is_no_cursor_is_refused(api: Server, since: str) -> None:
    for path in ("/v1/events", "/v1/events/stream"):
        document = await api.document(f"{path}?since={since}")
        assert document["status"] == 400
        assert "not a cursor" in document["error"]


async def test_a_heartbeat_is_a_comment_with_the_cursor(api: Server, monkeypatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    await api.write(A)
    answer = await api.get("/v1/events/stream?since=1")
    lines = [line async for _, line in _numbered(answer.lines(), 9)]
    assert lines == ["retry: 1000", "id: 1", "", *[": still here", "id: 1", ""] * 2]


async def _numbered(lines: AsyncIterator[str], count: int) -> AsyncIterator[tuple[int, str]]:
    for number in range(count):
        yield number, await anext(lines)


async def test_heartbeats_come_while_only_other_ves_have_events(api: Server, monkeypatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    answer = await api.get("/v1/events/stream?ve=a")

    async def others() -> None:
        while True:
            await api.write(B)

    writing = asyncio.create_task(others())
    lines = answer.lines()
    async with asyncio.timeout(20):
        while await anext(lines) != ": still here":
            pass
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing


async def test_who_is_slow_loses_nothing(api: Server, monkeypatch) -> None:
    """The reader sleeps while far more comes than sockets and memory hold."""
    monkeypatch.setattr(stream_module, "_TAIL", 16)
    answer = await api.get("/v1/events/stream?since=0", window=4096)
    for _ in range(1500):
        await api.write(A, detail="y" * 500)
    assert await answer.events(until=1500) == list(range(1, 1501))


async def test_who_does_not_read_at_all_is_cut_off_and_goes_on_later(
    api: Server, monkeypatch
) -> None:
    monkeypatch.setattr(event_stream, "WRITE_S", 0.05)
    answer = await api.get("/v1/events/stream?since=0", window=4096)
    for _ in range(1500):
        await api.write(A, detail="y" * 500)
    await until(lambda: not api.stream._readers)
    seen: list[int] = []
    with suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
        async for message in answer.messages():
            if message.data is not None:
                seen.append(message.data["cursor"])
    assert seen[-1] < 1500
    monkeypatch.undo()  # who reads on a busy machine is slow, and not to be cut off
    again = await api.get(f"/v1/events/stream?since={seen[-1]}")
    assert seen + await again.events(until=1500) == list(range(1, 1501))


async def test_who_has_gone_leaves_at_a_heartbeat(api: Server, monkeypatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    answer = await api.get("/v1/events/stream")
    assert len(api.stream._readers) == 1
    answer.writer.close()
    await until(lambda: not api.stream._readers)


async def test_who_asks_only_for_the_head_is_no_reader(api: Server) -> None:
    answer = await api.get("/v1/events/stream", method="HEAD")
    assert answer.status == 405
    assert not api.stream._readers


async def test_one_reader_too_many_is_sent_away_with_words(api: Server, monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_READERS", 1)
    first = await api.get("/v1/events/stream")
    document = await api.document("/v1/events/stream")
    assert document["status"] == 503
    assert document["error"] == "too many readers"
    first.writer.close()

    async def served() -> int:
        return (await api.get("/v1/events/stream")).status

    # Long before a heartbeat finds out that the first one has gone.
    async with asyncio.timeout(5):
        while await served() != 200:
            await asyncio.sleep(0.005)


async def test_when_the_daemon_stops_the_stream_ends_as_a_whole_answer(api: Server) -> None:
    answer = await api.get("/v1/events/stream")
    await api.write(A)
    api.stream.close()
    # `lines` ends only after the last chunk of length zero.
    lines = [line async for line in answer.lines()]
    assert lines[-2].startswith("data: ")
    late = await api.get("/v1/events/stream?since=0")
    assert [line async for line in late.lines() if line.startswith("data")] == []


async def test_who_does_not_read_does_not_hold_up_the_stop(api: Server) -> None:
    await api.get("/v1/events/stream?since=0", window=4096)
    for _ in range(1500):
        await api.write(A, detail="y" * 500)
    async with asyncio.timeout(10):  # of the 30 s that a write may take
        await api.close()


async def test_a_cursor_of_another_log_is_a_gap(api: Server) -> None:
    for _ in range(2):
        await api.write(A)
    for query in ("since=900", "since=1&log=0123456789abcdef"):
        answer = await api.get(f"/v1/events/stream?{query}")
        messages = answer.messages()
        gap = await anext(messages)
        assert gap.event == "gap"
        assert gap.cursor == "0"
        assert gap.data["gap"]["reason"] == "foreign"
        assert problems(gap.data) == []
        assert [(await anext(messages)).cursor for _ in range(2)] == ["1", "2"]


async def test_pages_tell_where_to_go_on_and_what_is_missing(api: Server) -> None:
    for ve in (A, B, A, B, A):
        await api.write(ve)
    page = await api.document("/v1/events?since=1&limit=1&ve=a")
    assert [e["cursor"] for e in page["events"]] == [3]
    assert page["gaps"] == []
    page = await api.document(f"/v1/events?since={page['cursor']}&ve=a&log={page['log']}")
    assert [e["cursor"] for e in page["events"]] == [5]
    page = await api.document(f"/v1/events?since={page['cursor']}")
    assert page["events"] == []
    assert page["cursor"] == 5
    page = await api.document("/v1/events?since=900")
    assert [e["cursor"] for e in page["events"]] == [1, 2, 3, 4, 5]
    assert [problems(gap) for gap in page["gaps"]] == [[]]
