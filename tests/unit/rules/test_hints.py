"""Every mistake in a rule file comes with what to write instead, and that is right."""

from __future__ import annotations

import pytest

from fswatchd.rules import hints
from fswatchd.rules.model import parse_file

RULE = '[[rule]]\nname = "r"\n{}\n[[rule.step]]\ndo = "fsck"\n'


ALONE = [
    "threshold",
    "mode",
    "approval",
    "cooldown",
    "backoff",
    "flap",
    "budget",
    "healthy",
    "continue",
]


@pytest.mark.parametrize(
    "example",
    [
        text
        for key, text in hints._EXAMPLES.items()
        if key in ALONE or text.startswith(("match.", "budget ="))
    ],
)
def test_what_is_shown_as_an_example_is_right(example: str) -> None:
    assert parse_file("x.toml", RULE.format(example))[1] == []


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (RULE.format('cooldown = "x"'), "'x' is no duration", 'write it like "30s"'),
        (RULE.format('match.class = "corruptio"'), "no class is called", "corruption"),
        (RULE.format("budget = 3"), "budget", "budget = { node = 2, device = 1 }"),
        ('[[rule]]\nname = "r"\n', "missing", "[[rule.step]]"),
        (RULE.format('budget = { label = "rack" }'), "a table", "label.rack = 1"),
        (RULE.format('budget = { node = "2" }'), "a whole number", "budget = { node = 2"),
        (RULE.format("match.label = 3"), "a table", 'match.label.tier = "gold"'),
        (RULE.format("match.any = [{ ves = 3 }]"), "a count of VEs", 'match.ves = ">= 3"'),
        ('[storm]\nves = "3"\n', "a whole number", "like ves = 10"),
        ("[[rule\n", "not valid TOML", "bracket"),
    ],
)
def test_the_hint_is_apart_from_what_is_wrong(text: str, message: str, hint: str) -> None:
    (found,) = parse_file("x.toml", text)[1]
    assert message in f"{found.key}: {found.message}"
    assert hint in found.hint
    assert hint not in found.message
