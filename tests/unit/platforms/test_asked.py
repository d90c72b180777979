from __future__ import annotations

import asyncio

from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms.asked import Asked


class Tool:
    """Answers with how often it was asked, when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.may = asyncio.Event()
        self.may.set()
        self.fails = False

    async def __call__(self) -> int:
        self.asked += 1
        await self.may.wait()
        if self.fails:
            raise PlatformError("it hangs")
        return self.asked


async def test_the_first_answer_is_not_waited_for() -> None:
    tool, told = Tool(), []
    asked = Asked(tool, 0)
    asked.changed = lambda: told.append(asked.answer)
    assert asked.look("a") == 0
    await asked.settle()
    assert (asked.look("a"), told) == (1, [1])


async def test_the_same_signature_asks_no_more() -> None:
    tool = Tool()
    asked = Asked(tool, 0)
    for signature in "aaabbb":
        asked.look(signature)
        await asked.settle()
    assert tool.asked == 2


async def test_a_tool_that_hangs_is_asked_once_and_holds_up_nobody() -> None:
    tool = Tool()
    asked = Asked(tool, 0)
    tool.may.clear()
    for signature in "abc":
        assert asked.look(signature) == 0
        await asyncio.sleep(0)
    assert tool.asked == 1
    tool.may.set()
    await asked.settle()
    asked.look("c")  # what changed meanwhile is asked for afterwards
    await asked.settle()
    assert asked.answer == 2


async def test_after_a_failure_the_last_answer_stays_and_the_reason_is_kept() -> None:
    tool, told = Tool(), []
    asked = Asked(tool, 0)
    asked.look("a")
    await asked.settle()
    tool.fails = True
    asked.changed = lambda: told.append(asked.problem)
    asked.look("b")
    await asked.settle()
    assert (asked.answer, asked.problem, told) == (1, "it hangs", ["it hangs"])
    asked.look("b")  # not at every refresh
    assert tool.asked == 2


async def test_it_can_be_ended() -> None:
    tool = Tool()
    tool.may.clear()
    asked = Asked(tool, 0)
    asked.look("a")
    await asyncio.sleep(0)
    await asked.close()
    assert asked.answer == 0
