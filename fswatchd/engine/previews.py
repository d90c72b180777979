"""Shows with a question what a yes to it would do.

An incident that waits for somebody's approval gets a preview of its repair, as `fswatch repair
--dry-run` makes it: nothing of the VE or its volume changes. One at a time, and given up when the
question is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fswatchd.book import IncidentBook
from fswatchd.errors import FswatchError
from fswatchd.incidents import Filesystem, Incident, State
from fswatchd.rules.model import FsckStep, RuleSet
from fswatchd.units import show_duration

log = logging.getLogger(__name__)

# The next question waits for this one; a disk that does not answer must not hold up them all.
_MOST_S = 3600.0

Look = Callable[[Filesystem, tuple[str, ...]], Awaitable[dict[str, Any]]]
"""What a repair of a filesystem of these VEs would find and do. Raises FswatchError, OSError."""


class Previews:
    """Looks as soon as something asks, and puts what is seen into the incident."""

    def __init__(self, book: IncidentBook, rules: Callable[[], RuleSet], look: Look) -> None:
        self._book = book
        self._rules = rules
        self._look = look
        self._one_at_a_time = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        book.subscribe(self._changed)

    async def stop(self) -> None:
        """Give up what is being looked at, and leave nothing of it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            _give_up(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _changed(self, _before: Incident | None, after: Incident) -> None:
        known = self._tasks.get(after.incident_id)
        if not self._asks(after):
            if known is not None:
                _give_up(known)
        elif known is None and after.preview is None:
            task = asyncio.get_running_loop().create_task(self._see(after.incident_id))
            self._tasks[after.incident_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(after.incident_id, None))

    def _asks(self, incident: Incident) -> bool:
        """Whether a repair by clone waits for a yes. What a step asks shows its own preview."""
        if incident.state is not State.WAITING or incident.waiting_for != "approval":
            return False
        rule = self._rules().by_name.get(incident.rule or "")
        steps = rule.step if rule is not None else ()
        first = next((step for step in steps if isinstance(step, FsckStep)), None)
        return not incident.asks and first is not None and first.strategy == "clone"

    async def _see(self, incident_id: str) -> None:
        async with self._one_at_a_time:
            incident = self._book.get(incident_id)
            if incident is None or not self._asks(incident):
                return
            try:
                async with asyncio.timeout(_MOST_S):
                    seen = await self._look(incident.filesystem, incident.direct_ves)
                seen.pop("output", None)  # of the tool: too long for every notice
                text = f"preview: a repair would do: {seen['would_do']}"
            except TimeoutError:
                seen, text = {}, f"preview: given up after {show_duration(_MOST_S)}"
            except (FswatchError, OSError) as error:
                seen, text = {}, f"preview: {getattr(error, 'message', error)}"
            except Exception:  # a task border: a question can be answered without it
                log.exception("no preview for %s", incident_id)
                return
        incident = self._book.get(incident_id)
        if incident is not None and self._asks(incident):
            self._book.put(replace(incident, preview=seen).noted(time.time_ns(), text))


def _give_up(look: asyncio.Task[None]) -> None:
    """Once, however often the incident changes: twice would cut off what deletes the clone."""
    if not look.cancelling():
        look.cancel()
