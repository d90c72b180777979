"""Notices wait until they have arrived, and are given up in time only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from fswatchd.notify import outbox
from fswatchd.notify.outbox import GIVE_UP_S, Outbox
from fswatchd.notify.webhook import Attempt, Channel
from fswatchd.store.store import Delivery, Store

NS = 1_000_000_000
OPS = Channel(name="ops", url="http://192.0.2.1/")
DAY_S = 86400.0


class Receiver:
    """Answers or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.well = False
        self.asked = 0
        self._turn = asyncio.Event()
        monkeypatch.setattr(outbox, "post", self._post)
        monkeypatch.setattr(outbox, "pause_after", lambda _: 0.0)

    async def _post(self, *_: object) -> Attempt:
        self.asked += 1
        self._turn.set()
        return Attempt(delivered=self.well, error="" if self.well else "no route")

    async def asked_again(self, times: int = 3) -> None:
        wanted = self.asked + times
        async with asyncio.timeout(10):
            while self.asked < wanted:
                self._turn.clear()
                await self._turn.wait()


class Clocks:
    """Those of the machine, put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s = self.boottime_s = 0.0
        wall, boottime = time.time_ns, outbox._boottime_ns
        monkeypatch.setattr(time, "time_ns", lambda: wall() + int(self.wall_s * NS))
        monkeypatch.setattr(outbox, "_boottime_ns", lambda: boottime() + int(self.boottime_s * NS))

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.boottime_s += seconds


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Receiver:
    return Receiver(monkeypatch)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def told(_: Delivery) -> None:
    """Nobody listens."""


async def begun(store: Store, on_delivered: Callable[[Delivery], None] = told) -> Outbox:
    made = Outbox(store, "hn1", on_delivered)
    await made.start([OPS])
    return made


async def become(store: Store, **wanted: int) -> None:
    """Return when so many notices are in these states."""
    async with asyncio.timeout(10):
        while await store.delivery_counts() != wanted:
            pass


async def test_a_clock_that_is_stepped_forward_gives_up_no_notice(
    store: Store, receiver: Receiver, clocks: Clocks
) -> None:
    clocks.wall_s = -20 * 365 * DAY_S  # no battery
    sending = await begun(store)
    sending.send("ops", "opened", "i", "s", {})
    await receiver.asked_again()
    clocks.wall_s = 0.0
    await receiver.asked_again()
    assert sending.waiting() == {"ops": 1}
    receiver.well = True
    await become(store, delivered=1)
    await sending.stop()


async def test_nor_does_a_restart_after_the_step(
    store: Store, receiver: Receiver, clocks: Clocks
) -> None:
    clocks.wall_s = -20 * 365 * DAY_S
    sending = await begun(store)
    sending.send("ops", "opened", "i", "s", {})
    await receiver.asked_again()
    await sending.stop()
    clocks.wall_s = 0.0
    sending = await begun(store)
    await receiver.asked_again()
    await sending.stop()
    await become(store, waiting=1)


async def test_a_channel_that_is_gone_fails_no_more(
    store: Store, receiver: Receiver, clocks: Clocks
) -> None:
    """The receiver of a drill ends with it."""
    sending = await begun(store)
    sending.send("ops", "opened", "i", "s", {})
    await receiver.asked_again()
    assert sending.failures == {"ops": "no route"}
    sending.remove_channel("ops")
    assert sending.failures == {}
    await sending.stop()


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_nobody_takes_is_given_up_in_time(
    store: Store, receiver: Receiver, clocks: Clocks, *, restarted: bool
) -> None:
    sending = await begun(store)
    for number in range(3):
        sending.send("ops", "opened", f"{number}", "s", {})
    await receiver.asked_again()
    if restarted:
        await sending.stop()
        sending = await begun(store)
    clocks.pass_s(GIVE_UP_S + 1)
    await become(store, failed=3)
    await sending.stop()


async def test_a_channel_that_has_answered_once_fails_anew(
    store: Store, receiver: Receiver
) -> None:
    sending = await begun(store)
    sending.send("ops", "opened", "1", "s", {})
    await receiver.asked_again()
    assert await store.facts(outbox._FAILING) != {}
    receiver.well = True
    await become(store, delivered=1)
    await sending.stop()
    assert await store.facts(outbox._FAILING) == {}


async def test_an_error_after_a_delivery_does_not_end_its_channel(
    store: Store, receiver: Receiver
) -> None:
    def fails(_: Delivery) -> None:
        raise LookupError("nobody knows it")

    receiver.well = True
    sending = await begun(store, fails)
    for number in range(2):
        sending.send("ops", "opened", f"{number}", "s", {})
    await become(store, delivered=2)
    await sending.stop()
    assert receiver.asked == 2


async def test_an_error_while_sending_does_not_end_its_channel(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> Attempt:
        monkeypatch.setattr(outbox, "post", receiver._post)
        raise LookupError("unknown encoding")

    receiver.well = True
    monkeypatch.setattr(outbox, "post", fails)
    sending = await begun(store)
    sending.send("ops", "opened", "i", "s", {})
    await become(store, delivered=1)
    await sending.stop()


async def test_an_error_in_the_database_does_not_end_a_channel(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.well = True
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.0)
    sending = await begun(store)
    keep = store.add_delivery

    def fails(delivery: Delivery) -> asyncio.Future[None]:
        if delivery.state == "waiting":
            return keep(delivery)
        monkeypatch.setattr(store, "add_delivery", keep)
        raise OverflowError("an attempt too many")

    monkeypatch.setattr(store, "add_delivery", fails)
    sending.send("ops", "opened", "i", "s", {})
    await become(store, delivered=1)
    await sending.stop()
