"""What a disk is asked for that may not answer, or a server: beside the event loop.

A thread of its own asks, and where that is late the answer from before is taken, until it comes
back. (`kinds` does the same for paths, each of which may be on another server.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from fswatchd.events import printable
from fswatchd.kernel.patience import Patience

Answer = TypeVar("Answer")

ANSWER_S = 2.0


class Beside(Generic[Answer]):
    """One question; `nothing` is the answer while there was none yet."""

    def __init__(self, nothing: Answer) -> None:
        self._patience = Patience()
        self._before = nothing

    async def ask(self, question: Callable[[], Answer], what: str) -> tuple[Answer, list[str]]:
        """The answer, and what to tell an admin, with `what` was asked, where it is an old one.

        Raises what the question raises.
        """

        def asked() -> Answer:
            self._before = question()  # also where it comes too late: for the next one who asks
            return self._before

        try:
            return await asyncio.to_thread(self._patience.ask, "question", asked, ANSWER_S), []
        except TimeoutError:
            return self._before, [f"{printable(what)} does not answer"]
