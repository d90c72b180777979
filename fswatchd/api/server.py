"""Routes of the API: read by whoever may open the socket, changed by root.

Errors are JSON, `{"error", "hint"}`: 400 wrong request, 403 not permitted, 404 no such VE, device
or incident, 409 not now, 422 refused by a guard.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from fswatchd import views
from fswatchd.api import prose
from fswatchd.api.auth import Peer, peer_of
from fswatchd.api.event_stream import EventRoutes
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.freezer import USUAL_S, Freezer
from fswatchd.engine.operator import Operator
from fswatchd.engine.snapshots import Snapshots
from fswatchd.engine.stream import EventStream
from fswatchd.errors import (
    ConfigError,
    ConflictError,
    FswatchError,
    RefusedError,
    UnknownTargetError,
)
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.units import parse_duration

log = logging.getLogger(__name__)

_STATUS = {
    UnknownTargetError: 404,
    ConflictError: 409,
    RefusedError: 422,
    ConfigError: 400,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Facade(Protocol):
    """What the daemon offers to the API beyond its parts."""

    inventory: Inventory
    stream: EventStream
    operator: Operator
    freezer: Freezer
    snapshots: Snapshots
    evidence: EvidenceRoom

    def status(self, ve: str | None) -> dict[str, Any]:
        """The document of `status`."""
        ...

    async def doctor(self) -> list[dict[str, Any]]:
        """The findings of `doctor`."""
        ...

    async def register_scratch_ve(self, peer: Peer, body: dict[str, Any]) -> str:
        """Take in a scratch VE of a drill; returns its id."""
        ...

    async def forget_scratch_ve(self, ve_id: str) -> None:
        """Drop a scratch VE."""
        ...


def application(daemon: Facade, *, changes: bool = True) -> web.Application:
    """The API; without `changes` only what reads (for the loopback page)."""
    api = _Api(daemon)
    events = EventRoutes(daemon)
    app = web.Application(middlewares=[_errors])
    app.router.add_get("/v1/status", api.status)
    app.router.add_get("/v1/incidents", api.incidents)
    app.router.add_get("/v1/incidents/{id}", api.incident)
    app.router.add_get("/v1/incidents/{id}/why", api.why)
    app.router.add_get("/v1/events", events.page)
    if changes:  # what processes have open is for root alone, who is not known there
        app.router.add_get("/v1/incidents/{id}/evidence", api.evidence)
    app.router.add_get("/v1/events/stream", events.follow, allow_head=False)
    app.router.add_get("/v1/doctor", api.doctor)
    if changes:
        app.router.add_post("/v1/repair", api.repair)
        app.router.add_post("/v1/incidents/{id}/rollback", api.rollback)
        app.router.add_post("/v1/incidents/{id}/approve", api.approve)
        app.router.add_post("/v1/incidents/{id}/deny", api.deny)
        app.router.add_post("/v1/incidents/{id}/ack", api.acknowledge)
        app.router.add_post("/v1/freeze", api.freeze)
        app.router.add_post("/v1/thaw", api.thaw)
        app.router.add_post("/v1/snapshot", api.snapshot)
        app.router.add_post("/v1/disarm", api.disarm)
        app.router.add_post("/v1/arm", api.arm)
        app.router.add_post("/v1/scratch-ves", api.register_scratch_ve)
        app.router.add_delete("/v1/scratch-ves/{id}", api.forget_scratch_ve)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except FswatchError as error:
        document = {"error": error.message, "hint": error.hint or None}
        return web.json_response(document, status=_STATUS.get(type(error), 500))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        return web.json_response({"error": f"wrong request: {error}", "hint": None}, status=400)


class _Api:
    def __init__(self, daemon: Facade) -> None:
        self._daemon = daemon

    # --- reading --------------------------------------------------------------------------------

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._daemon.status(request.query.get("ve")))

    async def incidents(self, request: web.Request) -> web.Response:
        ve = request.query.get("ve")
        wanted = lookup.find_ve(self._daemon.inventory.view, ve).ve_id if ve else None
        operator = self._daemon.operator
        everything = request.query.get("all") == "1"
        found = await operator.incidents() if everything else operator.open_incidents()
        documents = [
            views.incident(incident)
            for incident in found
            if (wanted is None or wanted in incident.ves)
            and (everything or wanted or not operator.told_elsewhere(incident))
        ]
        return web.json_response({"incidents": documents})

    async def incident(self, request: web.Request) -> web.Response:
        found = await self._daemon.operator.find(request.match_info["id"])
        return web.json_response(views.incident(found))

    async def why(self, request: web.Request) -> web.Response:
        found = await self._daemon.operator.find(request.match_info["id"])
        came_of_it = await self._daemon.operator.consequences(found, prose.CONSEQUENCES_SHOWN)
        text = prose.why(found, came_of_it)
        return web.json_response({"id": found.incident_id, "text": text})

    async def evidence(self, request: web.Request) -> web.Response:
        await _change(request)
        found = await self._daemon.operator.find(request.match_info["id"])
        return web.json_response(await asyncio.to_thread(self._daemon.evidence.read, found))

    async def doctor(self, _request: web.Request) -> web.Response:
        return web.json_response({"findings": await self._daemon.doctor()})

    # --- changing -------------------------------------------------------------------------------

    async def repair(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        target = _text(body, "target")
        if body.get("dry_run"):
            return web.json_response(await self._daemon.operator.preview(target))
        force = body.get("force") is True
        incident = await self._daemon.operator.repair(target, by.name, force=force)
        return web.json_response(views.incident(incident), status=202)

    async def rollback(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        incident = await self._daemon.operator.roll_back(
            request.match_info["id"], by.name, discard_newer=bool(body.get("discard_newer"))
        )
        return web.json_response(views.incident(incident), status=202)

    async def approve(self, request: web.Request) -> web.Response:
        by, _ = await _change(request)
        incident = await self._daemon.operator.approve(request.match_info["id"], by.name)
        return web.json_response(views.incident(incident))

    async def deny(self, request: web.Request) -> web.Response:
        by, _ = await _change(request)
        incident = await self._daemon.operator.deny(request.match_info["id"], by.name)
        return web.json_response(views.incident(incident))

    async def acknowledge(self, request: web.Request) -> web.Response:
        by, _ = await _change(request)
        incident = await self._daemon.operator.acknowledge(request.match_info["id"], by.name)
        return web.json_response(views.incident(incident))

    async def freeze(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        duration, reason = _text_or_none(body, "for"), _text_or_none(body, "reason") or ""
        for_s = parse_duration(duration) if duration else USUAL_S
        target = _text(body, "target")
        return web.json_response(
            await self._daemon.freezer.freeze(target, by.name, reason, for_s), status=201
        )

    async def thaw(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        target, reason = _text(body, "target"), _text_or_none(body, "reason") or ""
        return web.json_response(await self._daemon.freezer.thaw(target, by.name, reason))

    async def snapshot(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        target, reason = _text(body, "target"), _text_or_none(body, "reason") or ""
        return web.json_response(
            await self._daemon.snapshots.take(target, by.name, reason), status=201
        )

    async def disarm(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        duration = _text_or_none(body, "for")
        for_s = parse_duration(duration) if duration else None
        name = await self._daemon.operator.disarm(
            _text_or_none(body, "target"), _text(body, "reason"), by.name, for_s
        )
        return web.json_response({"disarmed": name})

    async def arm(self, request: web.Request) -> web.Response:
        _, body = await _change(request)
        name = await self._daemon.operator.arm(_text_or_none(body, "target"))
        return web.json_response({"armed": name})

    async def register_scratch_ve(self, request: web.Request) -> web.Response:
        by, body = await _change(request)
        ve_id = await self._daemon.register_scratch_ve(by, body)
        return web.json_response({"id": ve_id}, status=201)

    async def forget_scratch_ve(self, request: web.Request) -> web.Response:
        await _change(request)
        await self._daemon.forget_scratch_ve(request.match_info["id"])
        return web.json_response({})


async def _change(request: web.Request) -> tuple[Peer, dict[str, Any]]:
    """Who asks for a change, and the body; anybody but root is refused, and that is logged."""
    peer = peer_of(request)
    if peer is None or not peer.may_change:
        who = peer.name if peer else request.remote
        log.warning("refused %s %s for %s", request.method, request.path, who)
        raise web.HTTPForbidden(
            text=json.dumps({"error": "only root may change anything", "hint": "use sudo"}),
            content_type="application/json",
        )
    body = await request.json() if request.can_read_body else {}
    if not isinstance(body, dict):
        raise ValueError("the body must be an object")
    return peer, body


def _text_or_none(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f'"{key}" must be a text')
    return value


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{key}" is missing')
    return value
