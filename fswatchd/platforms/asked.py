"""What a platform's own tool says, asked for beside the refreshes and never waited for.

A refresh takes the last answer. It asks again when what the driver can see without the tool (its
`signature`: cgroups, times of files) has changed, and now and then besides. A tool that hangs is
killed at its deadline, and holds up nobody meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from fswatchd.errors import FswatchError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_RETRY_S = 10.0
_AGAIN_S = 120.0


class Asked(Generic[Answer]):
    """The last answer to one question. `changed` is called when there is another one.

    `problem` says why the last attempt gave none; the answer before it stays.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]], empty: Answer) -> None:
        self.answer = empty
        self.problem: str | None = None
        self.changed: Callable[[], None] = lambda: None
        self._ask = ask
        self._asked_for: object = None
        self._ended: float | None = None
        self._task: asyncio.Task[None] | None = None

    def look(self, signature: object) -> Answer:
        """The last answer; starts the next question where it is due, one at a time."""
        if self._task is None and self._is_due(signature):
            self._asked_for = signature
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self.answer

    async def settle(self) -> None:
        """Wait for the question that is under way, if any."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """End the question that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_due(self, signature: object) -> bool:
        if self._ended is None or signature != self._asked_for:
            return True
        pause = _AGAIN_S if self.problem is None else _RETRY_S
        return time.monotonic() - self._ended >= pause

    async def _run(self) -> None:
        before = (self.answer, self.problem)
        try:
            self.answer = await self._ask()
            self.problem = None
        except FswatchError as error:
            self.problem = str(error)
        except Exception as error:
            log.exception("the answer of a platform's tool is not understood")
            self.problem = f"its tool's answer is not understood: {error!r}"
        finally:
            self._ended = time.monotonic()
            self._task = None
        if (self.answer, self.problem) != before:
            self.changed()
