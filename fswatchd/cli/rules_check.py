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
    problems, rules, refused = _check(paths)
    warnings, count = [*refused, *review.warnings(rules)], len(rules.rules)
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


def _check(paths: list[Path]) -> tuple[list[RuleProblem], RuleSet, list[RuleProblem]]:
    """What is wrong, the rules, and the files that are right but would not be taken from there."""
    if not paths:
        rules, problems = files.load(config.load(None).daemon.rules)
        return problems, rules, []
    problems = [found for path in paths if path.is_dir() and (found := files.unreadable(path))]
    chosen = [one for path in paths for one in (files.chosen([path]) if path.is_dir() else [path])]
    texts: list[tuple[str, str]] = []
    refused: list[RuleProblem] = []
    for file in chosen:
        # Whoever checks a file may be editing it as themselves: ownership is for the daemon.
        text = files.read(file, trusted=True)
        if isinstance(text, RuleProblem):
            problems.append(text)
            continue
        texts.append((str(file), text))
        trusted = files.read(file, trusted=os.geteuid() != 0)
        if isinstance(trusted, RuleProblem):
            refused.append(replace(trusted, message=f"fswatchd would refuse it: {trusted.message}"))
    rules, wrong = assemble(texts)
    return problems + wrong, rules, refused
