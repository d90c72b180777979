"""Every key that admins can write is in its manual page, and every command too."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from fswatchd import config
from fswatchd.cli.main import parser
from fswatchd.events import EventClass
from fswatchd.platforms.declared import DeclaredVe, DeclaredVolume
from fswatchd.rules import match, model
from fswatchd.units import parse_duration
from tests.simulator import Simulator

MAN = Path(__file__).parents[2] / "data" / "man"


def page(name: str) -> str:
    return (MAN / name).read_text(encoding="utf-8").replace("\\-", "-")


def keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def section(text: str, title: str) -> str:
    """A section of a page, to the next one."""
    return text.split(f".SH {title}\n")[1].split("\n.SH ")[0]


def named(text: str) -> set[str]:
    """What stands in bold in the heads of a section's paragraphs (man(7), .TP)."""
    heads = [part.split("\n")[0] for part in text.split(".TP\n")[1:]]
    words = [word for head in heads for word in re.findall(r"[a-z_]+", head.split(" ", 1)[1])]
    return set(words)


@pytest.mark.parametrize(
    ("model", "title"),
    [(model.Rule, "RULE KEYS"), (match.Match, "MATCHING"), (model.Storm, "STORMS")],
)
def test_the_keys_of_rules_are_those_of_the_page(model: type[BaseModel], title: str) -> None:
    """In both directions: what the page names and the code does not know is an error too."""
    assert named(section(page("fswatchd.rules.5"), title)) == set(keys(model))


def test_a_rules_defaults_are_those_of_the_page() -> None:
    text = section(page("fswatchd.rules.5"), "RULE KEYS")
    rule, _ = model.parse_file("x", '[[rule]]\nname = "r"\n[[rule.step]]\ndo = "fsck"\n')
    for key in ("approval", "cooldown", "backoff", "flap", "healthy"):
        paragraph = text.split(f".TP\n.B {key}\n")[1].split(".TP\n")[0]
        said = re.findall(r"Default: (\w+)", paragraph.replace("\n", " "))
        assert [parse_duration(one) for one in said] == [getattr(rule[0], key)], key


@pytest.mark.parametrize(
    "model",
    [
        model.Budget,
        model.FsckStep,
        model.NotifyStep,
        model.ContainStep,
        model.ExecStep,
        model.EvacuateStep,
    ],
)
def test_other_rule_keys_are_documented(model: type[BaseModel]) -> None:
    text = page("fswatchd.rules.5")
    missing = [key for key in keys(model) if key not in text]
    assert not missing


def test_values_of_rules_are_documented() -> None:
    text = page("fswatchd.rules.5")
    modes = get_args(model.RuleMode)
    problems = [klass.value for klass in EventClass if klass.is_problem]
    assert not [word for word in (*modes, *match.CAUSES, *problems) if word not in text]


def test_platforms_are_documented() -> None:
    paragraph = page("fswatchd.rules.5").split(".B platform\n")[1].split(".TP\n")[0]
    assert set(match.PLATFORMS) <= set(re.findall(r"\w+", paragraph))


def test_steps_are_documented() -> None:
    text = page("fswatchd.rules.5")
    assert not [step for step in model._STEP_MODELS if step not in text]


@pytest.mark.parametrize(
    "model",
    [
        config.DaemonTable,
        config.SourcesTable,
        config.ApiTable,
        config.RepairTable,
        config.ChannelTable,
        DeclaredVe,
        DeclaredVolume,
    ],
)
def test_configuration_keys_are_documented(model: type[BaseModel]) -> None:
    text = page("fswatchd.toml.5")
    missing = [key for key in keys(model) if key not in text]
    assert not missing


def test_commands_are_documented() -> None:
    text = page("fswatch.1")
    (sub,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    missing = [name for name in sub.choices if name not in text]
    assert not missing
    for command in sub.choices.values():
        for action in command._actions:
            for option in action.option_strings:
                assert option in text or option in {"-h", "--help"}, option


def example() -> str:
    text = page("fswatchd.rules.5")
    return text[text.index(".SH EXAMPLE") :].split(".nf\n")[1].split(".fi")[0]


def test_the_example_in_the_manual_is_right() -> None:
    _, problems = model.parse_file("example", example())
    assert not problems


def test_the_example_does_what_the_manual_says_of_it() -> None:
    """Gold at night, one at a disk; by day, and for all others, a person is asked."""
    gold = {"tier": "gold"}
    document = {
        "rules": example(),
        "node": {
            "local": "21:00",
            "disk": {"sda": ["a", "b"], "sdb": ["c", "db7"]},
            "label": dict.fromkeys(("a", "b", "db7"), gold),
        },
        "do": [{"at": "0s", "fault": ["a", "b", "c", "db7"]}],
    }
    assert Simulator(document).play(2 * 3600.0) == [
        "0s a wait ask approval",
        "0s b wait ask approval",
        "0s c wait ask approval",
        "0s db7 wait ask approval",
        "1h a act gold-at-night",
        "1h b wait gold-at-night budget",
        "1h10m a repaired",
        "1h10m b act gold-at-night",
        "1h11m a closed, repaired",
        "1h20m b repaired",
        "1h21m b closed, repaired",
    ]
