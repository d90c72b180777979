"""Questions that may hang."""

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
