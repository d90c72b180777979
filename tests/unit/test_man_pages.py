"""Every key that admins can write is in its manual page, and every command too."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from pydantic import BaseModel

from fswatchd import config, rules
from fswatchd.cli.main import parser
from fswatchd.platforms.declared import DeclaredVe, DeclaredVolume

MAN = Path(__file__).parents[2] / "data" / "man"


def page(name: str) -> str:
    return (MAN / name).read_text(encoding="utf-8").replace("\\-", "-")


def keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


@pytest.mark.parametrize(
    "model",
    [
        rules.Rule,
        rules.Match,
        rules.Budget,
        rules.FsckStep,
        rules.NotifyStep,
        rules.ContainStep,
        rules.ExecStep,
        rules.EvacuateStep,
    ],
)
def test_rule_keys_are_documented(model: type[BaseModel]) -> None:
    text = page("fswatchd.rules.5")
    missing = [key for key in keys(model) if key not in text]
    assert not missing


def test_steps_are_documented() -> None:
    text = page("fswatchd.rules.5")
    assert not [step for step in rules._STEP_MODELS if step not in text]


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


def test_the_example_in_the_manual_is_right() -> None:
    text = page("fswatchd.rules.5")
    example = text[text.index(".SH EXAMPLE") :].split(".nf\n")[1].split(".fi")[0]
    _, problems = rules.parse_file("example", example)
    assert not problems
