"""What `fswatch why` says of identity and of guards."""

from __future__ import annotations

import pytest

from fswatchd import guards, policy
from fswatchd.api import prose
from fswatchd.rules.model import Budget
from tests.unit import builders

RULE = """
[[rule]]
name = "r"
mode = "MODE"
[[rule.step]]
do = "fsck"
"""


def decided(mode: str) -> tuple[tuple[str, bool, str], ...]:
    rules = builders.rules(RULE.replace("MODE", mode))
    found, scope, state = builders.incident(), builders.scope(), builders.policy_state()
    answers = policy.decide(rules, found, scope, state, builders.NOW_NS).answers
    return tuple((one.guard, one.passed, one.text) for one in answers)


def test_where_the_asking_ended_the_guards_that_were_left_out_are_named() -> None:
    answers = decided("approve")
    assert answers[-1][:2] == ("approval", False)
    told = prose.why(builders.incident(guards=answers))
    assert "not asked after that: asked, copies, flap, cooldown, budget" in told


def test_where_all_were_asked_none_is_named() -> None:
    answers = decided("auto")
    assert "budget" in [guard for guard, _, _ in answers]
    assert guards.not_asked([guard for guard, _, _ in answers]) == []
    assert "not asked after that" not in prose.why(builders.incident(guards=answers))


@pytest.mark.parametrize(
    ("running", "now"), [(0, "none run now"), (1, "1 runs now"), (3, "3 run now")]
)
def test_the_rules_budget_is_told_wherever_the_asking_ended(running: int, now: str) -> None:
    found = builders.incident(guards=decided("approve"))
    budget = Budget(node=2, filesystem=3, label={"rack": 1})
    told = prose.why(found, budget=(budget, running))
    limits = (
        "2 on the node, 1 on a device, 3 on a filesystem with images, 1 with the same label rack"
    )
    assert f"budget is {limits}; {now}" in told


def test_where_no_rule_matches_there_was_nothing_to_ask() -> None:
    found = builders.incident(guards=(("rule", False, "no rule matches this incident"),))
    assert "not asked after that" not in prose.why(found)


def test_what_proves_that_it_is_the_same_filesystem_is_told() -> None:
    told = prose.why(builders.incident())
    uuid = "11111111-2222-3333-4444-555555555555"
    assert f"attachment 42 of 7:3 (DISKSEQ), UUID {uuid}, image inode 77 on 8:1" in told
    unknown = builders.filesystem(disk_sequence=None, uuid=None, image_inode=None)
    assert "Identity" not in prose.why(builders.incident(filesystem=unknown))
