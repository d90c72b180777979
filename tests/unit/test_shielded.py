"""What must not be left in the middle comes to its end, however often who waits is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from fswatchd.shielded import ended, to_the_end


class Work:
    """Something that ends when `go` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.over = False
        self.error = error

    async def __call__(self) -> str:
        self.begun.set()
        await self.go.wait()
        self.over = True
        if self.error is not None:
            raise self.error
        return "done"


async def test_who_is_not_cancelled_gets_its_result_or_its_error() -> None:
    work, failing = Work(), Work(ValueError("no"))
    work.go.set()
    failing.go.set()
    assert await to_the_end(work()) == "done"
    with pytest.raises(ValueError, match="no"):
        await to_the_end(failing())


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("error", [None, ValueError("no")], ids=["well", "failing"])
async def test_who_is_cancelled_hears_of_it_when_the_work_is_over(
    caplog: pytest.LogCaptureFixture, times: int, error: Exception | None
) -> None:
    work = Work(error)
    waiting = asyncio.create_task(to_the_end(work()))
    await work.begun.wait()
    for _ in range(times):
        waiting.cancel()
        await asyncio.sleep(0)
    assert not waiting.done()
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.over
    assert not caplog.records, "an error that nobody has asked for is nobody's"


async def test_a_task_that_was_cancelled_itself_has_ended_as_any_other() -> None:
    task = asyncio.create_task(Work()())
    task.cancel()
    await ended(task)
    assert task.cancelled()
