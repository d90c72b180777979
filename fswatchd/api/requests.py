"""What all routes that change something have in common: who asks, and what for."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from fswatchd.api.auth import Peer, peer_of
from fswatchd.engine.refusals import Refusals

log = logging.getLogger(__name__)

REFUSALS = web.AppKey("refusals", Refusals)


async def change(request: web.Request) -> tuple[Peer, dict[str, Any]]:
    """Who asks for a change, and the body; anybody but root is refused, and that is recorded."""
    peer = await peer_of(request)
    if peer is None or not peer.may_change:
        raise _refused(
            request, peer, "only root may change anything", "use sudo", "FSW-REFUSED-NOT-ROOT"
        )
    return peer, await body_of(request)


async def answer(request: web.Request, approvers: Sequence[str], rule: str | None) -> Peer:
    """Who answers a question that `rule` has asked; anybody but root and those whom the rule names
    is refused, and that is recorded."""
    peer = await peer_of(request)
    if peer is None or not await peer.is_one_of(approvers):
        named = f", or whom rule {rule} names: {', '.join(approvers)}" if approvers else ""
        text = f"only root may answer this{named}"
        raise _refused(request, peer, text, "approvers of the rule", "FSW-REFUSED-NOT-APPROVER")
    return peer


def _refused(
    request: web.Request, peer: Peer | None, text: str, hint: str, code: str
) -> web.HTTPForbidden:
    who = peer.name if peer else str(request.remote)
    request.app[REFUSALS].record(who, peer.uid if peer else None, _what(request))
    document = {"error": text, "hint": hint, "code": code}
    return web.HTTPForbidden(text=json.dumps(document), content_type="application/json")


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object that was sent, empty where none was; raises ValueError."""
    body = await request.json() if request.can_read_body else {}
    if not isinstance(body, dict):
        raise ValueError("the body must be an object")
    return body


def text_or_none(body: dict[str, Any], key: str) -> str | None:
    """A value that may be missing; raises ValueError."""
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f'"{key}" must be a text')
    return value


def text(body: dict[str, Any], key: str) -> str:
    """A value that must be there; raises ValueError."""
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{key}" is missing')
    return value


def _what(request: web.Request) -> str:
    """The route, not the path: a name in it could be anything."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical if resource else 'an unknown route'}"
