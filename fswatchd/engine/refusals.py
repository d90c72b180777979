"""Requests for a change by somebody who may not: kept, counted, and shown in `status`."""

from __future__ import annotations

import logging
import time
from typing import Any

from fswatchd import views
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_KEY = "refused:"
_KEPT = 64
# Who asks again and again is counted, and must not keep the disk busy.
_WRITE_EVERY_S = 10.0


class Refusals:
    """One entry for each who and what. `load` before use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, dict[str, Any]] = {}
        self._written: dict[str, float] = {}

    async def load(self) -> None:
        """Read what is kept."""
        kept = await self._store.facts(_KEY)
        self._known = dict(sorted(kept.items(), key=lambda entry: str(entry[1]["last"])))

    def record(self, who: str, uid: int | None, what: str) -> None:
        """`who` has asked for `what`, and was refused."""
        now = views.timestamp(time.time_ns())
        key = f"{_KEY}{uid}:{what}"
        entry = self._known.pop(key, None) or {
            "who": who,
            "uid": uid,
            "what": what,
            "first": now,
            "count": 0,
        }
        self._known[key] = {**entry, "last": now, "count": entry["count"] + 1}
        if time.monotonic() - self._written.get(key, -_WRITE_EVERY_S) >= _WRITE_EVERY_S:
            self._written[key] = time.monotonic()
            log.warning("refused %s for %s: only root may change anything", what, who)
            self._store.set_fact(key, self._known[key])
        while len(self._known) > _KEPT:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._written.pop(oldest, None)
            self._store.set_fact(oldest, None)

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The newest ones, the newest last."""
        return list(self._known.values())[-count:]
