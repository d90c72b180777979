"""What must not be left in the middle, nor go on beside what follows it.

A task may be cancelled more than once: by the deadline of its step, by who has changed his mind, by
the end of the daemon. asyncio.shield() keeps the work going each time, but whoever waited for it is
gone with the second one, and deletes, closes or starts again what is still worked on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; who is cancelled meanwhile, however often, hears of it afterwards."""
    task = asyncio.create_task(work)
    await ended(task)
    return task.result()


async def ended(task: asyncio.Future[Any]) -> None:
    """Return when the task is done, however it has ended.

    Who is cancelled meanwhile, however often, gets CancelledError then and not before.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at: who was cancelled hears of that alone
        raise cancelled
