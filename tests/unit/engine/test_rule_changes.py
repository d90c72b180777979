"""A preview shows what the rule would do, and is made anew when that would do something else."""

from __future__ import annotations

import pytest

from tests.unit import builders
from tests.unit.engine.test_cause_incident import Engine, engine

__all__ = ["engine"]

RULE = """
[[rule]]
name = "ask"
mode = "approve"
[[rule.step]]
do = "fsck"
"""
SEEN: dict[str, object] = {"would_do": "2 problems fixed", "seconds": 0.5}


@pytest.mark.parametrize(
    ("new", "stays"),
    [
        (RULE, True),
        (f'{RULE}[[rule.step]]\ndo = "notify"\nto = ["ops"]\n', True),
        (f'{RULE}strategy = "offline"\n', False),
        (f'{RULE}[[rule.step]]\ndo = "stop"\n', False),
    ],
    ids=["read again", "tells others", "another way", "more steps"],
)
async def test_what_was_shown_goes_with_what_the_rule_would_do(
    engine: Engine, new: str, *, stays: bool
) -> None:
    engine.decider.rules = builders.rules(RULE)
    first = await engine.open("one", preview=SEEN)  # of an earlier version, which kept no digest
    assert (first.preview, first.rule_does) == (SEEN, engine.decider.rules.rules[0].does)
    engine.decider.rules = builders.rules(new)
    assert (await engine.decide("one")).preview == (SEEN if stays else None)
