"""Events for readers: in pages of JSON, and live as server-sent events (the HTML standard, 9.2).

docs/events.md describes both for those who write a reader.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Protocol

from aiohttp import web

from fswatchd.engine.stream import PAGE, Event, EventStream, Gap, Reader
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.store.store import StoreError

log = logging.getLogger(__name__)

LOG_HEADER = "Fswatchd-Log"
HEARTBEAT_S = 15.0
WRITE_S = 30.0
_BATCH = 200
_CHUNK = 64 << 10
_RETRY_MS = 1000
_LARGEST = 2**63 - 1


class Facade(Protocol):
    """What is needed of the daemon."""

    inventory: Inventory
    stream: EventStream


class EventRoutes:
    """The two routes."""

    def __init__(self, daemon: Facade) -> None:
        self._daemon = daemon

    async def page(self, request: web.Request) -> web.Response:
        """Events after `since`, up to `limit`; without `since` from the oldest that is kept."""
        stream, ve = self._daemon.stream, self._ve(request)
        limit = max(1, min(int(request.query.get("limit", str(PAGE))), PAGE))
        since = request.query.get("since")
        cursor = _cursor(since or "0")
        log_id: str | None = request.query.get("log")
        events: list[str] = []
        gaps: list[dict[str, Any]] = []
        while len(events) < limit:
            batch = await stream.read(cursor, ve, limit=limit - len(events), log_id=log_id)
            events += [item.text for item in batch.items if isinstance(item, Event)]
            found = [item for item in batch.items if isinstance(item, Gap)]
            # Who names no cursor asks for what is kept.
            told = [gap for gap in found if since is not None or gap.reason != "retention"]
            gaps += [gap.document() for gap in told]
            if batch.cursor == cursor and not found:
                break
            cursor, log_id = batch.cursor, None
        around = json.dumps({"log": stream.log_id, "gaps": gaps, "cursor": cursor})
        text = f'{around[:-1]}, "events": [{", ".join(events)}]}}'
        return web.json_response(text=text)

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Events after `since` or Last-Event-ID, and then for ever; without either from now on."""
        stream, ve = self._daemon.stream, self._ve(request)
        # A browser that connects again repeats the address, and says in the header how far it got.
        start = request.headers.get("Last-Event-ID") or request.query.get("since")
        cursor = stream.last if start is None else _cursor(start)
        reader = stream.join(lambda: _connected(request))
        if reader is None:
            raise web.HTTPServiceUnavailable(
                text=json.dumps({"error": "too many readers", "hint": "try again later"}),
                content_type="application/json",
                headers={"Retry-After": "10"},
            )
        try:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-store",
                    LOG_HEADER: stream.log_id,
                }
            )
            await response.prepare(request)
            following = _Following(stream, reader, response, ve)
            await following.run(cursor, request.query.get("log"))
        except ConnectionResetError:
            log.debug("a reader of events has gone")
        except StoreError as error:
            # The answer has begun: all that is left is to end it. The reader comes back.
            log.warning("a reader of events was sent away: %s", error)
        except TimeoutError:
            # It reads nothing any more: its connection would hold the daemon's memory for ever.
            if request.transport is not None:
                request.transport.abort()
        finally:
            stream.leave(reader)
        return response

    def _ve(self, request: web.Request) -> str | None:
        ve = request.query.get("ve")
        return lookup.find_ve(self._daemon.inventory.view, ve).ve_id if ve is not None else None


class _Following:
    """One connection."""

    def __init__(
        self, stream: EventStream, reader: Reader, response: web.StreamResponse, ve: str | None
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._response = response
        self._ve = ve
        self._written = 0.0

    async def run(self, cursor: int, log_id: str | None) -> None:
        """Until the daemon ends, or the reader."""
        await self._write(f"retry: {_RETRY_MS}\n")
        if cursor <= self._stream.last and log_id in {None, self._stream.log_id}:
            # Even who is told nothing knows from where to go on.
            await self._write(f"id: {cursor}\n\n")
        while not self._stream.closed:
            self._reader.expect()
            batch = await self._stream.read(cursor, self._ve, limit=_BATCH, log_id=log_id)
            await self._send(batch.items)
            # Neither reading nor writing need have waited: others want to run between two batches.
            await asyncio.sleep(0)
            moved = batch.cursor != cursor or log_id is not None
            cursor, log_id = batch.cursor, None
            pause_s = self._written + HEARTBEAT_S - _now()
            if pause_s <= 0 or not (moved or await self._reader.wait(pause_s)):
                await self._write(f": still here\nid: {cursor}\n\n")

    async def _send(self, items: tuple[Event | Gap, ...]) -> None:
        text, size = [], 0
        for item in items:
            text.append(message(item))
            size += len(text[-1])
            if size >= _CHUNK:
                await self._write("".join(text))
                text, size = [], 0
        if text:
            await self._write("".join(text))

    async def _write(self, text: str) -> None:
        async with asyncio.timeout(WRITE_S):
            await self._response.write(text.encode())
        self._written = _now()


def message(item: Event | Gap) -> str:
    """One server-sent event."""
    if isinstance(item, Gap):
        return f"event: gap\nid: {item.upto}\ndata: {json.dumps(item.document())}\n\n"
    return f"id: {item.cursor}\ndata: {item.text}\n\n"


def _cursor(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > _LARGEST:
        raise ValueError(f"{text[:100]!r} is not a cursor")
    return int(text)


def _connected(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


def _now() -> float:
    return asyncio.get_running_loop().time()
