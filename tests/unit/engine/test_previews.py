"""A question shows what a yes would do, and nothing else is looked at for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from fswatchd.engine.previews import Previews
from fswatchd.errors import RefusedError
from fswatchd.incidents import Filesystem, Incident, State
from fswatchd.rules.model import RuleSet, assemble
from tests.unit import builders

RULE = '[[rule]]\nname = "ask"\nmode = "approve"\n[[rule.step]]\ndo = "{}"\n{}'
SEEN = {"would_do": "2 problems fixed", "seconds": 0.5, "clean": False, "output": "long"}


class Book:
    """One incident, and who is told of its changes."""

    def __init__(self) -> None:
        self.last: Incident | None = None
        self.listener: Callable[[Incident | None, Incident], None] | None = None

    def subscribe(self, listener: Callable[[Incident | None, Incident], None]) -> None:
        self.listener = listener

    def get(self, _: str) -> Incident | None:
        return self.last

    def put(self, incident: Incident) -> None:
        before, self.last = self.last, incident
        assert self.listener is not None
        self.listener(before, incident)


def rules(do: str, more: str) -> RuleSet:
    found, problems = assemble([("ask.toml", RULE.format(do, more))])
    assert not problems
    return found


class Looks:
    """What is asked for, and the answer when `go` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error = error
        self.given_up = asyncio.Event()

    async def __call__(self, _: Filesystem, ves: tuple[str, ...]) -> dict[str, Any]:
        self.asked.append(ves)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        if self.error is not None:
            raise self.error
        return dict(SEEN)


def asking(**more: Any) -> Incident:
    return builders.incident(state=State.WAITING, waiting_for="approval", rule="ask", **more)


def previews(book: Book, look: Looks, do: str = "fsck", more: str = "") -> Previews:
    found = rules(do, more)
    return Previews(cast("Any", book), lambda: found, look)


async def test_a_question_gets_what_a_yes_would_do() -> None:
    book, look = Book(), Looks()
    made = previews(book, look)
    book.put(asking())
    await asyncio.gather(*made._tasks.values())
    assert book.last is not None
    assert book.last.preview == {key: SEEN[key] for key in SEEN if key != "output"}
    assert "2 problems fixed" in book.last.log[-1][1]
    assert len(look.asked) == 1  # not again for the change that it has made itself


@pytest.mark.parametrize(
    ("incident", "do", "more"),
    [
        ({"waiting_for": "budget"}, "fsck", ""),
        ({"state": State.OPEN}, "fsck", ""),
        ({"asks": "beyond bounds"}, "fsck", ""),
        ({"rule": "another"}, "fsck", ""),
        ({}, "fsck", 'strategy = "offline"\n'),
        ({}, "stop", ""),
    ],
    ids=["no question", "no wait", "a step asks", "no rule", "no clone", "no repair"],
)
async def test_what_asks_nothing_that_a_clone_could_show_is_not_looked_at(
    incident: dict[str, Any], do: str, more: str
) -> None:
    book, look = Book(), Looks()
    made = previews(book, look, do, more)
    book.put(replace(asking(), **incident))
    assert not made._tasks
    assert not look.asked


async def test_a_preview_that_cannot_be_made_is_told_and_not_tried_again() -> None:
    book, look = Book(), Looks(RefusedError("no preview: the host cannot share blocks"))
    made = previews(book, look)
    book.put(asking())
    await asyncio.gather(*made._tasks.values())
    assert book.last is not None
    assert book.last.preview == {}
    assert "cannot share blocks" in book.last.log[-1][1]
    book.put(book.last.noted(1, "something else"))
    assert not made._tasks


async def test_one_that_never_ends_is_given_up_and_the_next_has_its_turn(monkeypatch) -> None:
    monkeypatch.setattr("fswatchd.engine.previews._MOST_S", 0.01)
    book, look = Book(), Looks()
    look.go.clear()
    made = previews(book, look)
    book.put(asking())
    await asyncio.gather(*made._tasks.values())
    assert look.given_up.is_set()
    assert book.last is not None
    assert "given up" in book.last.log[-1][1]
    assert not made._one_at_a_time.locked()


@pytest.mark.parametrize("how", ["answered", "stopped"])
async def test_it_is_given_up_when_the_question_is_answered(how: str) -> None:
    book, look = Book(), Looks()
    look.go.clear()
    made = previews(book, look)
    book.put(asking())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert look.asked
    if how == "answered":
        book.put(replace(asking(), state=State.ACTING, waiting_for=""))
    else:
        await made.stop()
    await asyncio.wait_for(look.given_up.wait(), 10)
    assert book.last is not None
    assert book.last.preview is None


async def test_a_look_that_is_given_up_is_given_up_once() -> None:
    """A plan changes its incident with each step; the clone is being deleted meanwhile."""
    book = Book()
    deleting, deleted, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def look(*_: Any) -> dict[str, Any]:
        try:
            await over.wait()
        finally:
            deleting.set()
            await over.wait()
            deleted.set()
        raise AssertionError

    made = Previews(cast("Any", book), lambda: rules("fsck", ""), look)
    book.put(asking())
    await asyncio.sleep(0)
    (task,) = made._tasks.values()
    book.put(replace(asking(), state=State.ACTING))
    await deleting.wait()
    for number in range(3):
        book.put(replace(asking(), state=State.ACTING).noted(number, "a step"))
        await asyncio.sleep(0)
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert deleted.is_set()
