"""`fswatch rules check`: everything wrong with rule files, at once."""

from __future__ import annotations

import json
from pathlib import Path

from fswatchd import config, rulefiles
from fswatchd.exitcode import Exit
from fswatchd.rules import RuleProblem, assemble


def run(paths: list[Path], *, as_json: bool) -> int:
    """Check files and directories, or those that the daemon would read; 65 if anything is wrong."""
    problems, count = _check(paths)
    if as_json:
        documents = [
            {
                "file": problem.file,
                "rule": problem.rule or None,
                "key": problem.key or None,
                "message": problem.message,
                "hint": problem.hint or None,
            }
            for problem in problems
        ]
        print(json.dumps({"ok": not problems, "rules": count, "errors": documents}))
    else:
        for problem in problems:
            print(problem)
        print(f"{count} rules, {len(problems)} errors")
    return Exit.DATA if problems else Exit.OK


def _check(paths: list[Path]) -> tuple[list[RuleProblem], int]:
    if not paths:
        rules, problems = rulefiles.load(config.load(None).daemon.rules)
        return problems, len(rules.rules)
    problems = [found for path in paths if path.is_dir() and (found := rulefiles.unreadable(path))]
    files = [
        file for path in paths for file in (rulefiles.chosen([path]) if path.is_dir() else [path])
    ]
    texts: list[tuple[str, str]] = []
    for file in files:
        # Whoever checks a file may be editing it as themselves: ownership is for the daemon.
        text = rulefiles.read(file, trusted=True)
        if isinstance(text, RuleProblem):
            problems.append(text)
        else:
            texts.append((str(file), text))
    rules, wrong = assemble(texts)
    return problems + wrong, len(rules.rules)
