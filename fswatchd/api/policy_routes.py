"""Routes about rules, mutes and channels: see `server` for who may use them."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from fswatchd import views
from fswatchd.api.requests import body_of, change, text, text_or_none
from fswatchd.engine.muting import Muting
from fswatchd.engine.operator import Operator
from fswatchd.engine.rehearsal import Rehearsal
from fswatchd.engine.rulekeeper import RuleKeeper
from fswatchd.errors import ConfigError, UnknownTargetError
from fswatchd.notify.notices import Notices
from fswatchd.notify.outbox import Outbox
from fswatchd.store.store import RECORD_COLUMNS, Store
from fswatchd.units import parse_duration

# Of rules that somebody brings along: as large as a thousand of them.
_RULES_LIMIT = 512 << 10
_DECISIONS = 5000


class Facade(Protocol):
    """What is needed of the daemon."""

    operator: Operator
    muting: Muting
    rules: RuleKeeper
    rehearsal: Rehearsal
    outbox: Outbox
    notices: Notices
    store: Store

    def status(self, ve: str | None) -> dict[str, Any]:
        """The document of `status`."""
        ...


class PolicyRoutes:
    """See the module."""

    def __init__(self, daemon: Facade) -> None:
        self._daemon = daemon

    async def rules(self, _request: web.Request) -> web.Response:
        """`fswatch rules list`"""
        return web.json_response(self._daemon.rules.document(self._daemon.status(None)["mode"]))

    async def decisions(self, _request: web.Request) -> web.Response:
        """What was decided about each incident, and from which facts, for `rules replay`."""
        found = await self._daemon.operator.incidents(_DECISIONS)
        return web.json_response({"decisions": [views.decided(one) for one in found]})

    async def record(self, request: web.Request) -> web.Response:
        """All events that are kept, in short, for `rules replay`; a reader takes `events`."""
        rows, end = await self._daemon.store.record(int(request.query.get("after", "0")))
        return web.json_response({"columns": RECORD_COLUMNS, "rows": rows, "end": end})

    async def test(self, request: web.Request) -> web.Response:
        """`fswatch rules test`: whoever may read may ask; nothing is done."""
        body = await body_of(request)
        brought = body.get("rules")
        files = None if brought is None else [(str(name), str(text)) for name, text in brought]
        if files and sum(len(text) for _, text in files) > _RULES_LIMIT:
            raise ConfigError(f"the rules are larger than {_RULES_LIMIT >> 10} KiB together")
        return web.json_response(await self._daemon.rehearsal.decide(body.get("event"), files))

    async def mute(self, request: web.Request) -> web.Response:
        """`fswatch mute`"""
        by, body = await change(request)
        for_s = parse_duration(text(body, "for"))
        incident = await self._daemon.operator.find(request.match_info["id"])
        reason = text_or_none(body, "reason") or ""
        return web.json_response(
            views.incident(self._daemon.muting.mute(incident, by.name, reason, for_s))
        )

    async def unmute(self, request: web.Request) -> web.Response:
        """`fswatch unmute`"""
        by, _ = await change(request)
        incident = await self._daemon.operator.find(request.match_info["id"])
        return web.json_response(views.incident(self._daemon.muting.unmute(incident, by.name)))

    async def notify_test(self, request: web.Request) -> web.Response:
        """`fswatch notify test`"""
        by, body = await change(request)
        wanted, names = text_or_none(body, "channel"), self._daemon.notices.channels()
        if wanted is not None and wanted not in names:
            raise UnknownTargetError(
                f"there is no channel {wanted!r}",
                hint=f"there are: {', '.join(names)}" if names else "none is configured",
                code="FSW-UNKNOWN-CHANNEL",
            )
        node = str(self._daemon.status(None)["node"])
        data = {"text": f"{by.name} tests this channel of fswatchd on {node}", "by": by.name}
        tried = [
            await self._daemon.outbox.try_now(name, node, data)
            for name in (names if wanted is None else [wanted])
        ]
        return web.json_response({"channels": tried})
