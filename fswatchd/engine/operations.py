"""What root has asked for by hand, and why: kept, and shown in `status`."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from fswatchd import views
from fswatchd.events import printable
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_KEY = "operation:"
_KEPT = 200


class Operations:
    """The latest of them, oldest first. `load` before use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: deque[tuple[str, dict[str, Any]]] = deque()

    async def load(self) -> None:
        """Read what is kept."""
        self._known.extend(sorted((await self._store.facts(_KEY)).items()))

    def record(self, what: str, target: str, by: str, reason: str, result: str) -> None:
        """`by` asked for `what`, and this is what became of it."""
        now = time.time_ns()
        value = {
            "time": views.timestamp(now),
            "what": what,
            "target": target,
            "by": by,
            "reason": reason or None,
            "result": result,
        }
        told = f"{what} of {target} for {by} ({reason or 'no reason given'}): {result}"
        log.info("%s", printable(told))
        self._known.append((f"{_KEY}{now:020}", value))
        self._store.set_fact(*self._known[-1])
        while len(self._known) > _KEPT:
            self._store.set_fact(self._known.popleft()[0], None)

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The newest ones."""
        return [value for _, value in self._known][-count:]
