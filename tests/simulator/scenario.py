"""The texts of a scenario: what is in its file, its rules, and times as its log has them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fswatchd.rules.files import embedded_rules
from fswatchd.rules.model import RuleSet, assemble
from tests.simulator.clock import DAY_S

KEYS = {"name", "expect", "rules", "node", "do", "log"}


def load(path: Path) -> list[dict[str, Any]]:
    """The scenarios in a file; rules and node of the file are those of each that has none."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    usual = {key: document[key] for key in ("rules", "node") if key in document}
    return [{**usual, **scenario} for scenario in document["scenario"]]


def wanted(document: dict[str, Any]) -> list[str]:
    """The log that the scenario expects."""
    return [" ".join(line.split()) for line in document["log"].strip().splitlines()]


def rules_of(text: str) -> RuleSet:
    """The rules of a text, or those that are shipped."""
    files = [("test.toml", text)]
    if text == "shipped":
        paths = sorted(embedded_rules().glob("*.toml"))
        files = [(path.name, path.read_text(encoding="utf-8")) for path in paths]
    rules, problems = assemble(files)
    assert not problems, [str(problem) for problem in problems]
    return rules


def time_of_day(text: str) -> int:
    """`12:30`, in seconds since midnight."""
    hours, minutes = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60


def show(seconds: float) -> str:
    """`90s` as `1m30s`."""
    left, parts = round(seconds), []
    for unit, size in (("d", DAY_S), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
