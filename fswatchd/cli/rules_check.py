"""`fswatch rules check`: everything wrong with rule files, at once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from fswatchd import config
from fswatchd.exitcode import Exit
from fswatchd.rules import files, review
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.rules.problem import RuleProblem


def run(paths: list[Path], *, as_json: bool) -> int:
    """Check files and directories, or those that the daemon would read; 65 if anything is wrong.

    What looks unintended is a warning, and changes nothing about that.
    """
    problems, rules = _check(paths)
    warnings, count = review.warnings(rules), len(rules.rules)
    if as_json:
        document = {
            "ok": not problems,
            "rules": count,
            "errors": [_document(problem) for problem in problems],
            "warnings": [_document(warning) for warning in warnings],
        }
        print(json.dumps(document))
    else:
        for problem in problems:
            print(f"{problem} [{problem.code}]")
        for warning in warnings:
            print(f"warning: {warning} [{warning.code}]")
        print(f"{count} rules, {len(problems)} errors, {len(warnings)} warnings")
    return Exit.DATA if problems else Exit.OK


def _document(problem: RuleProblem) -> dict[str, str | None]:
    return {
        "file": problem.file,
        "rule": problem.rule or None,
        "key": problem.key or None,
        "message": problem.message,
        "hint": problem.hint or None,
        "code": problem.code,
    }


def _check(paths: list[Path]) -> tuple[list[RuleProblem], RuleSet]:
    """What is wrong, and the rules."""
    if not paths:
        rules, wrong = files.load(config.load(None).daemon.rules)
        return wrong, rules
    chosen, problems = _chosen(paths)
    texts: list[tuple[str, str]] = []
    for file in chosen:
        text = files.read(file, trusted=True)
        if isinstance(text, RuleProblem):
            problems.append(text)
            continue
        texts.append((str(file), text))
        refused = files.read(file, trusted=_may_be_anybodys(file))
        if isinstance(refused, RuleProblem):
            problems.append(replace(refused, message=f"fswatchd refuses it: {refused.message}"))
    rules, mistakes = assemble(texts)
    return problems + mistakes, rules


def _chosen(paths: list[Path]) -> tuple[list[Path], list[RuleProblem]]:
    """The files in the order in which the daemon would read them, and which directories are wrong.

    A later directory replaces files of an earlier one. A file that is named is always looked at,
    in the place of one of its name.
    """
    directories = [path for path in paths if _is_directory(path)]
    named = [path for path in paths if path not in directories]
    found, problems = files.chosen(directories)
    names = {path.name for path in named}
    found = [path for path in found if path.name not in names]
    return sorted([*found, *named], key=lambda path: path.name), problems


def _is_directory(path: Path) -> bool:
    """Those that the daemon reads by default need not exist (see `files.chosen`)."""
    return path.is_dir() or path in config.DaemonTable().rules


def _may_be_anybodys(file: Path) -> bool:
    """Whether nobody minds who can write it: whoever is not root may be editing it before it is put
    in place, and the shipped rules are the program's own."""
    return os.geteuid() != 0 or file.parent.resolve() == files.embedded_rules()
