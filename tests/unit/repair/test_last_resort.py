"""What nobody trusts is not let run for ever either."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fswatchd.repair import cure, tools
from fswatchd.repair.check import CheckResult

CLEAN = CheckResult(returncode=0, output="", duration_s=0.1, clean=True, tool="btrfs check")
DAMAGED = replace(CLEAN, returncode=1, clean=False, damaged=True, last_resort=True)


async def limits(
    monkeypatch: pytest.MonkeyPatch, *, usual: CheckResult, usual_s: float, replayed: CheckResult
) -> list[float]:
    """How long the tools may take that are run, the last resort at the end."""
    found = tools.of("btrfs")
    assert found is not None
    asked: list[float] = []
    clock = [0.0]

    async def run(which: tools.Tools, *, timeout_s: float, **_: Any) -> cure.Cure:
        asked.append(timeout_s)
        clock[0] += usual_s
        return cure.Cure(repaired=usual, proof=usual)

    monkeypatch.setattr(cure, "cure", run)
    monkeypatch.setattr(cure.time, "monotonic", lambda: clock[0])
    await cure.cure_at_last(
        found, "/clone", replayed, image="/image", timeout_s=14400.0, open_files={}, begin=Any
    )
    return asked


@pytest.mark.parametrize(("usual_s", "limit_s"), [(0.1, 30.0), (60.0, 1800.0), (3600.0, 14400.0)])
async def test_it_may_take_so_many_times_what_a_check_takes(
    monkeypatch: pytest.MonkeyPatch, usual_s: float, limit_s: float
) -> None:
    found = await limits(monkeypatch, usual=DAMAGED, usual_s=usual_s, replayed=CLEAN)
    assert found == [14400.0, limit_s]


async def test_where_nothing_was_checked_before_it_has_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreadable = replace(CLEAN, returncode=2, clean=False, last_resort=True, what="no log")
    found = await limits(monkeypatch, usual=CLEAN, usual_s=0.1, replayed=unreadable)
    assert found == [14400.0]


async def test_what_the_usual_tools_cure_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await limits(monkeypatch, usual=CLEAN, usual_s=0.1, replayed=CLEAN)
    assert found == [14400.0]
