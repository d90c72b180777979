"""How far it is, and how long it still takes."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.repair import progress


@pytest.mark.parametrize(
    ("said", "share"),
    [
        (b"1 0 16 /x\n", 0.0),
        (b"1 8 16 /x\n", 0.35),
        (b"1 16 16 /x\n2 5 10 /x\n", 0.8),
        (b"5 10 10 /x\n", 1.0),
        (b"5 99 10 /x\n", 1.0),
        (b"1 8 1", None),
        (b"9 1 2 /x\n", None),
        (b"1 1 0 /x\n", None),
        (b"nonsense\n", None),
    ],
)
def test_the_lines_of_e2fsck(said: bytes, share: float | None) -> None:
    found = progress.share_of(said)
    assert found == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_heading_tells_also_where_it_comes_in_pieces(cut: int) -> None:
    said = b"Phase 1 - find\n  - agno = 0\nPhase 3 - for each AG...\nnot Phase 4 - \nPhase 5 - re"
    told: list[float] = []
    pattern = re.compile(rb"Phase (\d) - ")
    read = progress.of_headings(told.append, pattern, lambda found: int(found[1]) / 10)
    for begin in range(0, len(said), cut):
        read(said[begin : begin + cut])
    assert told[-1] == 0.3
    read(b"build\n")
    assert told[-1] == 0.5


def test_an_estimate_comes_of_what_was_done(monkeypatch) -> None:
    now, told = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    context = SimpleNamespace(progress=lambda share, text: told.append((share, text)))
    report = progress.begin(cast("Any", context), "copying")
    report(0.1)  # too soon to be told
    now[0] += 10
    report(0.25)
    assert told == [(None, "copying"), (0.25, "copying: 25%, about 30 s left")]
