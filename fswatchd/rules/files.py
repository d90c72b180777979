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
    problems: list[RuleProblem] = []
    directories = list(directories)
    problems += [found for directory in directories if (found := unreadable(directory))]
    for path in chosen(directories):
        trusted = path.parent == embedded_rules()
        text = read(path, trusted=trusted)
        if isinstance(text, RuleProblem):
            problems.append(text)
        else:
            texts.append((str(path), text))
    return texts, problems


def unreadable(directory: Path) -> RuleProblem | None:
    """What is wrong with a directory that was named and cannot be listed.

    The default ones need not exist.
    """
    try:
        os.scandir(directory).close()
    except FileNotFoundError:
        if directory in DaemonTable().rules:
            return None
        reason = "there is no such directory"
    except OSError as error:
        reason = f"cannot be listed: {error.strerror}"
    else:
        return None
    return RuleProblem(
        file=str(directory),
        rule="",
        key="",
        message=reason,
        hint="`rules` in fswatchd.toml names the directories",
        code="FSW-RULE-FILE",
    )


def chosen(directories: Iterable[Path]) -> list[Path]:
    """The files that apply, in the order in which they are read."""
    by_name: dict[str, Path] = {}
    for directory in directories:
        if directory == SHIPPED_RULES and not directory.is_dir():
            directory = embedded_rules()
        try:
            names = sorted(entry.name for entry in directory.iterdir())
        except OSError:
            continue
        for name in names:
            if name.endswith(".toml") and not name.startswith("."):
                by_name[name] = directory / name
    return [path for _, path in sorted(by_name.items()) if os.path.realpath(path) != "/dev/null"]


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
            code="FSW-RULE-FILE",
        )
