"""Questions that may hang."""

import asyncio
import threading

import pytest

from fswatchd.kernel.patience import Patience

LONG_S = 60.0


def test_an_answer_and_a_refusal_come_as_if_one_had_asked_oneself() -> None:
    patience = Patience()

    def refuse() -> int:
        raise FileNotFoundError(2, "gone")

    assert patience.ask("a", lambda: 5, LONG_S) == 5
    with pytest.raises(FileNotFoundError):
        patience.ask("a", refuse, LONG_S)


def test_one_that_hangs_is_not_asked_again_and_holds_up_no_other() -> None:
    patience, answered, asked = Patience(), threading.Event(), []

    def slow() -> bool:
        asked.append(1)
        return answered.wait(LONG_S)

    for _ in range(3):
        with pytest.raises(TimeoutError):
            patience.ask("a", slow, 0.01)
    assert asked == [1]
    assert patience.ask("b", lambda: 5, LONG_S) == 5
    answered.set()
    for thread in threading.enumerate():
        if thread.name == "asking a":
            thread.join()
    assert patience.ask("a", slow, LONG_S)
    assert asked == [1, 1]


async def test_beside_an_event_loop_it_is_the_same() -> None:
    patience, answered, asked = Patience(), threading.Event(), []

    def slow() -> bool:
        asked.append(1)
        return answered.wait(LONG_S)

    def refuse() -> int:
        raise TimeoutError(110, "its own")

    for _ in range(50):
        assert await patience.answer("a", lambda: 5, LONG_S) == 5
        with pytest.raises(TimeoutError, match="its own"):
            await patience.answer("a", refuse, LONG_S)
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"no answer|has not answered"):
            await patience.answer("a", slow, 0.01)
    assert asked == [1]
    answered.set()
    _join("asking a")
    assert await patience.answer("a", slow, LONG_S)


async def test_who_is_cancelled_leaves_a_question_that_is_not_asked_again() -> None:
    patience, answered, began = Patience(), threading.Event(), threading.Event()

    def slow() -> bool:
        began.set()
        return answered.wait(LONG_S)

    asking = asyncio.create_task(patience.answer("a", slow, LONG_S))
    while not began.is_set():
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(TimeoutError, match="has not answered"):
        await patience.answer("a", slow, LONG_S)
    answered.set()
    _join("asking a")


async def test_any_number_that_hang_leave_the_pool_to_others() -> None:
    patience, answered = Patience(), threading.Event()
    for number in range(64):  # more than the pool has threads
        with pytest.raises(TimeoutError):
            await patience.answer(f"hangs {number}", lambda: answered.wait(LONG_S), 0.001)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), LONG_S) == 5
    answered.set()
    for number in range(64):
        _join(f"asking hangs {number}")


def _join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()
