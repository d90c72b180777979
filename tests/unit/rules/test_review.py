"""Rules that are never used, or act in spite of an earlier one: warned about, and only those."""

from __future__ import annotations

import pytest

from fswatchd.rules.review import warnings
from tests.system import rules as system_rules
from tests.unit.builders import rules


def rule(name: str, keys: str = "", step: str = 'do = "fsck"') -> str:
    return f'[[rule]]\nname = "{name}"\n{keys}\n[[rule.step]]\n{step}\n'


def codes(*texts: str) -> list[tuple[str, str]]:
    return [(found.rule, found.code) for found in warnings(rules("\n".join(texts)))]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("", 'match.class = "corruption"'),
        ('match.class = "*"', 'match.class = "space"'),
        ('match.class = ["corruption", "readonly"]', 'match.class = "readonly"'),
        ('match.severity = ">= error"', 'match.severity = "critical"'),
        ('match.ve = "web-*"', 'match.ve = ["web-1", "web-2"]'),
        ('match.ve = "web-*"', 'match.ve = "web-prod-*"'),
        ('match.label.tier = "*"', 'match.label.tier = "gold"'),
        ('match.fstype = "ext*"', 'match.fstype = "ext4"\nmatch.label.tier = "gold"'),
    ],
)
def test_a_rule_that_an_earlier_one_leaves_nothing_to_is_unreachable(
    earlier: str, later: str
) -> None:
    assert codes(rule("a", earlier), rule("b", later)) == [("b", "FSW-RULE-UNREACHABLE")]
    assert codes(rule("b", later), rule("a", earlier)) == []
    assert codes(rule("a", f"{earlier}\ncontinue = true"), rule("b", later)) == []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ('match.class = "corruption"', ""),
        ('match.class = "corruption"', 'match.class = ["corruption", "space"]'),
        ('match.severity = ">= error"', 'match.severity = ">= warning"'),
        ('match.ve = "web-*"', 'match.ve = "*-web"'),
        ('match.label.tier = "gold"', 'match.ve = "web-*"'),
        ('match.label.tier = "gold"', 'match.label.tier = ["gold", "silver"]'),
        ('match.fstype = "ext?"', 'match.fstype = "ext*"'),
    ],
)
def test_a_rule_that_matches_something_of_its_own_is_no_warning(earlier: str, later: str) -> None:
    assert codes(rule("a", earlier), rule("b", later)) == []


TELL = 'do = "notify"'


@pytest.mark.parametrize(
    "keys",
    [
        'match.class = "corrected"',
        'match.class = ["recovered", "reminder", "lost"]',
        "match.not = {}",
        'match.fstype = "ext4"\nmatch.not = { fstype = "ext*" }',
        'match.ve = "web-1"\nmatch.not = [{ fstype = "xfs" }, { ve = "web-*" }]',
    ],
)
def test_a_rule_that_no_incident_can_match_is_never_used(keys: str) -> None:
    """Once: it is not also unreachable, nor is one after it because of it."""
    found = rule("a", 'match.class = "space"'), rule("b", keys), rule("c")
    assert codes(*found) == [("b", "FSW-RULE-NEVER")]


@pytest.mark.parametrize(
    "keys",
    [
        'match.class = ["corrected", "corruption"]',
        'match.class = "*"',
        'match.fstype = "ext*"\nmatch.not = { fstype = "ext4" }',
        'match.not = [{ ve = "web-*", fstype = "ext4" }]\nmatch.ve = "web-1"',
        'match.all = [{ not = { ve = "web-*" } }]',
    ],
)
def test_a_rule_that_something_is_left_to_is_no_warning(keys: str) -> None:
    assert codes(rule("a", keys)) == []


def test_the_class_none_is_that_of_a_repair_which_somebody_asks_for() -> None:
    assert codes(rule("a", 'match.class = "none"')) == []
    assert codes(rule("a", 'match.class = "none"', TELL)) == [("a", "FSW-RULE-NEVER")]


def test_a_rule_that_acts_where_an_earlier_one_wanted_less_is_warned_about() -> None:
    careful = rule("careful", 'match.ve = "db-*"\nmode = "observe"\ncontinue = true', TELL)
    assert codes(careful, rule("repair", 'mode = "auto"')) == [("repair", "FSW-RULE-WIDENS")]
    assert codes(careful, rule("repair", 'mode = "auto"\nmatch.ve = "web-*"')) == []
    assert codes(careful, rule("repair", 'mode = "observe"')) == []
    assert codes(careful, rule("tell", 'mode = "auto"', TELL)) == []
    stops = rule("careful", 'match.ve = "db-*"\nmode = "observe"', TELL)
    assert codes(stops, rule("repair", 'mode = "auto"')) == []


def test_options_that_only_a_clone_has_are_no_use_elsewhere() -> None:
    options = 'max_write_pause = "1s"\non_long_pause = "ask"\nsalvage_max = "1G"'
    step = 'do = "fsck"\nstrategy = "{}"\n' + options
    assert codes(rule("a", step=step.format("clone"))) == []
    for strategy in ("offline", "online"):
        found = warnings(rules(rule("a", step=step.format(strategy))))
        assert [one.key for one in found] == [
            "step[1].max_write_pause",
            "step[1].on_long_pause",
            "step[1].salvage_max",
        ]
        assert {one.code for one in found} == {"FSW-RULE-UNUSED-OPTION"}
    kept = 'do = "fsck"\nstrategy = "offline"\nkeep_original = "1d"'
    assert codes(rule("a", step=kept)) == []


@pytest.mark.parametrize("strategy", ["clone", "offline", "online"])
def test_the_rule_of_the_system_tests_has_no_warnings(strategy: str) -> None:
    assert warnings(rules(system_rules.repair(strategy))) == []


def test_the_shipped_rules_have_no_warnings() -> None:
    from fswatchd.rules import files

    found, problems = files.load([files.embedded_rules()])
    assert not problems
    assert warnings(found) == []
