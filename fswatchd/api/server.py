"""Routes of the API: read by whoever may open the socket, changed by root.

Errors are JSON, `{"error", "hint", "code"}`: 400 wrong request, 403 not permitted, 404 no such VE,
device or incident, 409 not now, 422 refused by a guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from fswatchd import views
from fswatchd.api import prose
from fswatchd.api.auth import Peer, peer_of
from fswatchd.api.event_stream import EventRoutes
from fswatchd.api.policy_routes import PolicyRoutes
from fswatchd.api.requests import REFUSALS, answer, body_of, change, text, text_or_none
from fswatchd.engine.arming import Arming
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.freezer import USUAL_S, Freezer
from fswatchd.engine.muting import Muting
from fswatchd.engine.operator import Operator
from fswatchd.engine.refusals import Refusals
from fswatchd.engine.rehearsal import Rehearsal
from fswatchd.engine.rulekeeper import RuleKeeper
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
from fswatchd.notify.notices import Notices
from fswatchd.notify.outbox import Outbox
from fswatchd.store.store import Store
from fswatchd.units import parse_duration

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
    arming: Arming
    operator: Operator
    freezer: Freezer
    snapshots: Snapshots
    evidence: EvidenceRoom
    muting: Muting
    rules: RuleKeeper
    rehearsal: Rehearsal
    refusals: Refusals
    outbox: Outbox
    notices: Notices
    store: Store

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
    policy = PolicyRoutes(daemon)
    app = web.Application(middlewares=[_errors])
    app[REFUSALS] = daemon.refusals
    app.router.add_get("/v1/status", api.status)
    app.router.add_get("/v1/incidents", api.incidents)
    app.router.add_get("/v1/incidents/{id}", api.incident)
    app.router.add_get("/v1/incidents/{id}/why", api.why)
    app.router.add_get("/v1/events", events.page)
    if changes:  # what processes have open is for root alone, who is not known there
        app.router.add_get("/v1/incidents/{id}/evidence", api.evidence)
    app.router.add_get("/v1/events/stream", events.follow, allow_head=False)
    app.router.add_get("/v1/doctor", api.doctor)
    app.router.add_get("/v1/rules", policy.rules)
    app.router.add_get("/v1/decisions", policy.decisions)
    if changes:
        app.router.add_get("/v1/record", policy.record)
        app.router.add_post("/v1/rules/test", policy.test)
        app.router.add_post("/v1/incidents/{id}/mute", policy.mute)
        app.router.add_post("/v1/incidents/{id}/unmute", policy.unmute)
        app.router.add_post("/v1/notify/test", policy.notify_test)
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
        document = {"error": error.message, "hint": error.hint or None, "code": error.code}
        return web.json_response(document, status=_STATUS.get(type(error), 500))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        document = {"error": f"wrong request: {error}", "hint": None, "code": "FSW-REQUEST"}
        return web.json_response(document, status=400)


class _Api:
    def __init__(self, daemon: Facade) -> None:
        self._daemon = daemon

    # --- reading --------------------------------------------------------------------------------

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._daemon.status(request.query.get("ve")))

    async def incidents(self, request: web.Request) -> web.Response:
        ve = request.query.get("ve")
        wanted = lookup.find_ve(self._daemon.inventory.view, ve).ve_id if ve is not None else None
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
        story = prose.why(found, came_of_it, self._daemon.operator.budget(found))
        return web.json_response({"id": found.incident_id, "text": story})

    async def evidence(self, request: web.Request) -> web.Response:
        await change(request)
        found = await self._daemon.operator.find(request.match_info["id"])
        return web.json_response(await asyncio.to_thread(self._daemon.evidence.read, found))

    async def doctor(self, _request: web.Request) -> web.Response:
        return web.json_response({"findings": await self._daemon.doctor()})

    # --- changing -------------------------------------------------------------------------------

    async def repair(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        target = text(body, "target")
        if body.get("dry_run"):
            return web.json_response(await self._daemon.operator.preview(target))
        force = body.get("force") is True
        incident = await self._daemon.operator.repair(target, by.name, force=force)
        return web.json_response(views.incident(incident), status=202)

    async def rollback(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        incident = await self._daemon.operator.roll_back(
            request.match_info["id"],
            by.name,
            discard_newer=bool(body.get("discard_newer")),
            to=text_or_none(body, "to"),
        )
        return web.json_response(views.incident(incident), status=202)

    async def approve(self, request: web.Request) -> web.Response:
        by, rule, reason = await self._answerer(request)
        incident = await self._daemon.operator.approve(
            request.match_info["id"], by.name, reason, rule
        )
        return web.json_response(views.incident(incident))

    async def deny(self, request: web.Request) -> web.Response:
        by, rule, reason = await self._answerer(request)
        incident = await self._daemon.operator.deny(request.match_info["id"], by.name, reason, rule)
        return web.json_response(views.incident(incident))

    async def _answerer(self, request: web.Request) -> tuple[Peer, str | None, str]:
        """Who answers, the rule whose question it is, and why; not any incident's that does not
        exist: who may not answer anything is not told which there are."""
        peer = await peer_of(request)
        if peer is not None and not peer.may_change:
            try:
                found = await self._daemon.operator.find(request.match_info["id"])
            except UnknownTargetError:
                return await answer(request, (), None), None, ""
            rule = self._daemon.rules.current.by_name.get(found.rule or "")
            by = await answer(request, rule.approvers if rule else (), found.rule)
            return by, found.rule, text_or_none(await body_of(request), "reason") or ""
        by, body = await change(request)
        return by, None, text_or_none(body, "reason") or ""

    async def acknowledge(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        reason = text_or_none(body, "reason") or ""
        incident = await self._daemon.operator.acknowledge(
            request.match_info["id"], by.name, reason, recovered=body.get("recovered") is True
        )
        return web.json_response(views.incident(incident))

    async def freeze(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        duration, reason = text_or_none(body, "for"), text_or_none(body, "reason") or ""
        for_s = parse_duration(duration) if duration else USUAL_S
        target = text(body, "target")
        return web.json_response(
            await self._daemon.freezer.freeze(target, by.name, reason, for_s), status=201
        )

    async def thaw(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        target, reason = text(body, "target"), text_or_none(body, "reason") or ""
        return web.json_response(await self._daemon.freezer.thaw(target, by.name, reason))

    async def snapshot(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        target, reason = text(body, "target"), text_or_none(body, "reason") or ""
        return web.json_response(
            await self._daemon.snapshots.take(target, by.name, reason), status=201
        )

    async def disarm(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        duration = text_or_none(body, "for")
        for_s = parse_duration(duration) if duration else None
        name = await self._daemon.arming.disarm(
            text_or_none(body, "target"),
            text_or_none(body, "label"),
            text(body, "reason"),
            by.name,
            for_s,
        )
        return web.json_response({"disarmed": name})

    async def arm(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        target, label = text_or_none(body, "target"), text_or_none(body, "label")
        reason = text_or_none(body, "reason") or ""
        name, accepted = await self._daemon.arming.arm(target, label, reason, by.name)
        return web.json_response({"armed": name, "accepted": accepted})

    async def register_scratch_ve(self, request: web.Request) -> web.Response:
        by, body = await change(request)
        ve_id = await self._daemon.register_scratch_ve(by, body)
        return web.json_response({"id": ve_id}, status=201)

    async def forget_scratch_ve(self, request: web.Request) -> web.Response:
        await change(request)
        await self._daemon.forget_scratch_ve(request.match_info["id"])
        return web.json_response({})
