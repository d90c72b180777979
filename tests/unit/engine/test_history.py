"""What decisions remember, across restarts, reboots and wall clocks that jump."""

from __future__ import annotations

from typing import Any, cast

from fswatchd.book import IncidentBook
from fswatchd.engine.history import History
from fswatchd.situation import Disarm
from fswatchd.store.store import Store
from tests.simulator import Clock
from tests.unit import builders

NS = 1_000_000_000


async def remembered(store: Store, clock: Clock) -> History:
    """What a daemon that starts now knows."""
    found = History(store, cast("Any", clock))
    await found.load()
    return found


async def test_a_restart_forgets_nothing(store: Store) -> None:
    clock = Clock()
    history = await remembered(store, clock)
    history.acted("rule", "volume", failed=True)
    history.acted("rule", "volume", failed=True)
    history.repaired("volume")
    history.begun("lxc:a")
    history.failed("lxc:a")
    history.failed("lxc:b")
    history.forget_failures("lxc:b")
    await history.disarm(Disarm(target="node", reason="x", by="op", until_ns=None))
    clock.jumped_s = 86400.0
    again = await remembered(store, clock)
    for name in ("last_action_ns", "failures", "repaired_ns", "begun_ns", "failed_ns", "disarms"):
        assert getattr(again, name) == getattr(history, name), name
    assert again.failures == {("rule", "volume"): 2}


async def test_a_plan_that_ends_well_ends_the_failures_in_a_row(store: Store) -> None:
    history = await remembered(store, Clock())
    history.acted("rule", "volume", failed=True)
    history.acted("rule", "volume")
    assert history.failures == {("rule", "volume"): 0}


async def test_after_a_reboot_the_wall_clock_tells_how_long_ago_it_was(store: Store) -> None:
    clock = Clock()
    (await remembered(store, clock)).acted("rule", "volume")
    clock.now_s, clock.booted_s, clock.boots = 3600.0, 3570.0, 1
    history = await remembered(store, clock)
    passed_ns = clock.boottime_ns() - history.last_action_ns["rule", "volume"]
    assert passed_ns == 3600 * NS


async def test_open_incidents_come_onto_the_clock_of_this_boot(store: Store) -> None:
    """An earlier boot's CLOCK_BOOTTIME would make an old error a young one, or one to come."""
    book = IncidentBook(store, "hn1")
    when_ns = builders.NOW_NS + 7
    found = builders.incident(builders.event(count=2), approved_ns=when_ns, requested_ns=when_ns)
    boot, ahead_ns = book.clock()
    await cast(
        "Any", book.put(found.on_clock("an earlier boot", ahead_ns + 3600 * NS), durable=True)
    )
    again = IncidentBook(store, "hn1")
    (loaded,) = await again.load()
    assert loaded.clock is not None
    assert loaded.clock[0] == boot
    shift = loaded.recent[0][0] - found.recent[0][0]
    assert abs(shift - 3600 * NS) < 3600 * NS // 10  # the clocks go on between the two readings
    assert (loaded.approved_ns, loaded.requested_ns) == (when_ns + shift, when_ns + shift)
