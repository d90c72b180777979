"""What the kernel's log says of when, in times of ours."""

from __future__ import annotations

from typing import Any

from fswatchd.kernel.logclock import LogClock
from fswatchd.kernlog.grammar import shipped
from fswatchd.sources import kernel_lines
from fswatchd.sources.kernel_lines import CANARY, KernelLineSource
from tests.collected import NothingLost

SECOND = 1_000_000_000


def test_a_record_of_ours_tells_how_far_the_clocks_are_apart() -> None:
    clock = LogClock()
    assert clock.monotonic_ns(5_000_000) == 5 * SECOND
    clock.wrote("a", 10 * SECOND, 10 * SECOND + 2000)
    clock.read("b", 1)  # of an earlier run
    assert clock.monotonic_ns(5_000_000) == 5 * SECOND
    clock.read("a", 9_000_001)  # a second behind
    assert clock.monotonic_ns(5_000_000) == 6 * SECOND
    clock.wrote("c", 20 * SECOND, 21 * SECOND)  # interrupted: it may have been any time
    clock.read("c", 20_900_000)
    assert clock.monotonic_ns(5_000_000) == 6 * SECOND


def test_who_reads_the_log_reads_that_too(monkeypatch: Any) -> None:
    clock = LogClock()
    monkeypatch.setattr(kernel_lines, "log_clock", clock)
    clock.wrote("a", 10 * SECOND, 10 * SECOND)
    source = KernelLineSource(NothingLost(), shipped())
    source.expect_canary("a")
    source._take(f"{CANARY}a", 8_000_000, facility=1)
    assert clock.monotonic_ns(8_000_000) == 10 * SECOND
