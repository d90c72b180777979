"""Find and read rule files: which apply, and in which order.

Files are read in name order across the directories; a file in a later directory replaces the one of
the same name in an earlier one, and a link to /dev/null masks it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fswatchd import adminfile
from fswatchd.adminfile import AdminFileError
from fswatchd.config import SHIPPED_RULES, DaemonTable
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.rules.problem import RuleProblem

# The code of what is wrong with a file or a directory itself, and not with what is written there.
NOT_HAD = "FSW-RULE-FILE"


def embedded_rules() -> Path:
    """The shipped rules inside the program, which a package has installed elsewhere instead."""
    inside = Path(__file__).parents[1] / "rules.d"
    if inside.is_dir():
        return inside
    checkout = Path(__file__).parents[2] / "rules.d"
    return checkout if checkout.is_dir() else SHIPPED_RULES


def load(directories: Iterable[Path]) -> tuple[RuleSet, list[RuleProblem]]:
    """The rules of all directories, and everything wrong with them."""
    texts, problems = read_all(directories)
    rules, wrong = assemble(texts)
    problems += wrong
    return (RuleSet() if problems else rules), problems


def read_all(
    directories: Iterable[Path],
) -> tuple[list[tuple[str, str]], list[RuleProblem]]:
    """The name and text of each file that applies, and those that cannot be had."""
    texts: list[tuple[str, str]] = []
    paths, problems = chosen(directories)
    for path in paths:
        trusted = path.parent == embedded_rules()
        text = read(path, trusted=trusted)
        if isinstance(text, RuleProblem):
            problems.append(text)
        else:
            texts.append((str(path), text))
    return texts, problems


def chosen(directories: Iterable[Path]) -> tuple[list[Path], list[RuleProblem]]:
    """The files that apply, in the order in which they are read, and which directories are wrong.

    The default ones need not exist. What cannot be listed is not empty: its rules are not known.
    """
    by_name: dict[str, Path] = {}
    problems: list[RuleProblem] = []
    for directory in directories:
        try:
            paths = _listed(directory)
        except FileNotFoundError:
            if directory not in DaemonTable().rules:
                problems.append(_problem(directory, "there is no such directory"))
            continue
        except OSError as error:
            problems.append(_problem(directory, f"cannot be listed: {error.strerror}"))
            continue
        for path in paths:
            if path.name.endswith(".toml") and not path.name.startswith("."):
                by_name[path.name] = path
    found = [path for _, path in sorted(by_name.items())]
    return [path for path in found if os.path.realpath(path) != "/dev/null"], problems


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        if directory != SHIPPED_RULES:
            raise
        return list(embedded_rules().iterdir())


def _problem(directory: Path, reason: str) -> RuleProblem:
    return RuleProblem(
        file=str(directory),
        rule="",
        key="",
        message=reason,
        hint="`rules` in fswatchd.toml names the directories",
        code=NOT_HAD,
    )


def read(path: Path, *, trusted: bool = False) -> str | RuleProblem:
    """The text of one file, or why it is refused (see `adminfile`)."""
    try:
        return adminfile.read(path, trusted=trusted)
    except AdminFileError as error:
        return RuleProblem(
            file=str(path),
            rule="",
            key="",
            message=error.message,
            hint=error.hint,
            code=NOT_HAD,
        )
