"""Notices wait here, on the disk, until their receiver has answered with success.

One worker per channel delivers in order, so that nobody reads "repaired" before "opened". Failures
are repeated with growing pauses; what has not arrived after `GIVE_UP_S` is kept as failed. How long
that is no step of the wall clock decides: CLOCK_BOOTTIME tells it of a notice of this run, and of
an older one how long its channel has been failing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp

from fswatchd import codes, views
from fswatchd.kernel import proc
from fswatchd.notify.webhook import Attempt, Channel, post
from fswatchd.store.store import Delivery, Store, StoreError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
GIVE_UP_S = 3 * 86400.0
NS = 1_000_000_000
_FAILING = "channel-fails:"

Delivered = Callable[[Delivery], None]


class Outbox:
    """See the module."""

    def __init__(self, store: Store, node: str, on_delivered: Delivered) -> None:
        self._store = store
        self._node = node
        self._on_delivered = on_delivered
        self._channels: dict[str, Channel] = {}
        self._waiting: dict[str, list[Delivery]] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self.failures: dict[str, str] = {}
        # Notices of this run → when they were handed over (CLOCK_BOOTTIME, ns).
        self._sent_ns: dict[str, int] = {}
        # Channel → since when every attempt has failed, also of earlier runs.
        self._failing: dict[str, dict[str, Any]] = {}

    async def start(self, channels: list[Channel]) -> None:
        """Begin to deliver, with what an earlier run has left."""
        self._session = aiohttp.ClientSession()
        await self._load_failing({channel.name for channel in channels})
        for channel in channels:
            self.add_channel(channel)
        for delivery in await self._store.waiting_deliveries():
            if delivery.channel in self._channels:
                self._waiting[delivery.channel].append(delivery)
                self._wakes[delivery.channel].set()
            else:
                abandoned = replace(delivery, state="failed", last_error="the channel is gone")
                self._store.add_delivery(abandoned)

    async def stop(self) -> None:
        """Stop; what has not arrived stays on the disk."""
        for worker in self._workers.values():
            worker.cancel()
        for worker in self._workers.values():
            with suppress(asyncio.CancelledError):
                await worker
        if self._session is not None:
            await self._session.close()

    def add_channel(self, channel: Channel) -> None:
        """Deliver to this channel from now on."""
        self._channels[channel.name] = channel
        self._waiting.setdefault(channel.name, [])
        self._wakes.setdefault(channel.name, asyncio.Event())
        if channel.name not in self._workers:
            self._workers[channel.name] = asyncio.create_task(self._work(channel.name))

    def remove_channel(self, name: str) -> None:
        """Deliver there no more."""
        self._channels.pop(name, None)
        self._waiting.pop(name, None)
        self._wakes.pop(name, None)
        self.failures.pop(name, None)
        self._forget_failing(name)
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.cancel()

    @property
    def names(self) -> list[str]:
        """The channels there are."""
        return list(self._channels)

    def waiting(self) -> dict[str, int]:
        """Channel → notices that have not arrived."""
        return {name: len(waiting) for name, waiting in self._waiting.items()}

    def send(
        self,
        channel: str,
        kind: str,
        incident_id: str,
        subject: str,
        data: Any,
        *,
        about: str = "incident",
    ) -> None:
        """Hand a notice over; it is kept before it is tried."""
        if channel not in self._channels:
            return
        now = time.time_ns()
        delivery_id, body = self._envelope(about, kind, subject, data, now)
        delivery = Delivery(
            delivery_id=delivery_id,
            channel=channel,
            incident_id=incident_id,
            type=kind,
            body=body,
            created_ns=now,
        )
        self._store.add_delivery(delivery)
        self._sent_ns[delivery_id] = _boottime_ns()
        self._waiting[channel].append(delivery)
        self._wakes[channel].set()

    async def try_now(self, name: str, subject: str, data: Any) -> dict[str, Any]:
        """Deliver a test at once, past what waits, and say how that went."""
        channel = self._channels[name]
        _, body = self._envelope("channel", "test", subject, data, time.time_ns())
        begun = time.monotonic()
        attempt = (
            await post(self._session, channel, body)
            if self._session is not None
            else Attempt(delivered=False, error="the daemon is about to end")
        )
        return {
            "channel": name,
            "delivered": attempt.delivered,
            "status": attempt.status,
            "latency_s": round(time.monotonic() - begun, 4),
            "error": attempt.error or None,
            "signed": channel.secret is not None,
            "through_outbox": False,
            "waiting": len(self._waiting.get(name, ())),
        }

    def _envelope(
        self, about: str, kind: str, subject: str, data: Any, now_ns: int
    ) -> tuple[str, bytes]:
        delivery_id = str(uuid.uuid4())
        body = {
            "specversion": "1.0",
            "id": delivery_id,
            "source": f"/fswatchd/{self._node}",
            "type": f"org.fswatchd.{about}.{kind}",
            "subject": subject,
            "time": views.timestamp(now_ns),
            "datacontenttype": "application/json",
            "fswatchdcode": codes.of_notice(kind),
            "data": data,
        }
        return delivery_id, json.dumps(body).encode()

    async def _work(self, name: str) -> None:
        while True:
            try:
                await self._next(name)
            except Exception:  # a task border: a channel without a worker would be silent for ever
                log.exception("the channel %s goes on after an error", name)
                await asyncio.sleep(FIRST_PAUSE_S)

    async def _next(self, name: str) -> None:
        """Wait for what is to be delivered next, and try it once."""
        if not self._waiting[name]:
            self._wakes[name].clear()
            await self._wakes[name].wait()
            return
        delivery = self._waiting[name][0]
        pause_s = (delivery.next_ns - time.time_ns()) / NS
        if pause_s > 0:
            await asyncio.sleep(min(pause_s, LONGEST_PAUSE_S))
        delivery = await self._try(delivery)
        if delivery.state == "waiting":
            self._waiting[name][0] = delivery
        else:
            self._waiting[name].pop(0)
            self._sent_ns.pop(delivery.delivery_id, None)

    async def _try(self, delivery: Delivery) -> Delivery:
        if self._session is None:
            return delivery
        attempt = await self._post(self._session, delivery)
        attempts = delivery.attempts + 1
        now = time.time_ns()
        if attempt.delivered:
            self.failures.pop(delivery.channel, None)
            self._forget_failing(delivery.channel)
            delivery = replace(delivery, attempts=attempts, state="delivered", last_error="")
            self._tell_delivered(delivery)
        elif self._waits_for_s(delivery) > GIVE_UP_S:
            delivery = replace(
                delivery, attempts=attempts, state="failed", last_error=attempt.error
            )
            log.error("gave up a notice to %s: %s", delivery.channel, attempt.error)
        else:
            self.failures[delivery.channel] = attempt.error
            asked_s = attempt.retry_after_s or pause_after(attempts)
            pause_s = min(asked_s, LONGEST_PAUSE_S)
            delivery = replace(
                delivery,
                attempts=attempts,
                next_ns=now + int(pause_s * NS),
                last_error=attempt.error,
            )
        with suppress(StoreError):
            await self._store.add_delivery(delivery)
        return delivery

    async def _post(self, session: aiohttp.ClientSession, delivery: Delivery) -> Attempt:
        """An error that nobody has thought of is a failure as any other: the next attempt waits,
        and what cannot be sent at all is given up in time."""
        try:
            return await post(session, self._channels[delivery.channel], delivery.body)
        except Exception as error:
            log.exception("cannot send a notice to %s", delivery.channel)
            return Attempt(delivered=False, error=f"{type(error).__name__}: {error}")

    def _tell_delivered(self, delivery: Delivery) -> None:
        """It has arrived, whatever becomes of that: nobody is to get it twice."""
        try:
            self._on_delivered(delivery)
        except Exception:
            log.exception("what follows from a notice to %s failed", delivery.channel)

    async def _load_failing(self, channels: set[str]) -> None:
        for key, value in (await self._store.facts(_FAILING)).items():
            name = key.removeprefix(_FAILING)
            if name in channels:
                self._failing[name] = value
            else:
                self._store.set_fact(key, None)

    def _forget_failing(self, channel: str) -> None:
        if self._failing.pop(channel, None) is not None:
            self._store.set_fact(f"{_FAILING}{channel}", None)

    def _waits_for_s(self, delivery: Delivery) -> float:
        """How long a notice that has just failed has been waiting, at the least."""
        now_ns, wall_ns = _boottime_ns(), time.time_ns()
        since = self._failing.get(delivery.channel)
        if since is None:
            since = {"boot": proc.boot_id(), "boottime_ns": now_ns, "wall_ns": wall_ns}
            self._failing[delivery.channel] = since
            self._store.set_fact(f"{_FAILING}{delivery.channel}", since)
        sent_ns = self._sent_ns.get(delivery.delivery_id)
        if sent_ns is not None:
            return (now_ns - sent_ns) / NS
        same_boot = since["boot"] == proc.boot_id()
        fails_ns = now_ns - since["boottime_ns"] if same_boot else wall_ns - since["wall_ns"]
        return float(min(fails_ns, wall_ns - delivery.created_ns)) / NS


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def pause_after(attempts: int) -> float:
    """Seconds until the next attempt: doubling, capped, with jitter so that nodes do not march."""
    pause = min(FIRST_PAUSE_S * 2.0 ** (attempts - 1), LONGEST_PAUSE_S)
    return pause * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, protects nothing
