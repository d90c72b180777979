"""The rules in force: are there any, are they those of the files, and does anybody hear of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Sequence

from fswatchd.doctor.finding import Finding, critical, ok, warning
from fswatchd.notify.notices import DRILL
from fswatchd.rules.model import NotifyStep, Rule, RuleSet
from fswatchd.rules.problem import RuleProblem

_CORRECT = "fswatch rules check names each mistake; a file that is saved is read by itself"
_PUT = "`rules` in fswatchd.toml names the directories: put rule files there"


def examine(rules: RuleSet, problems: Sequence[RuleProblem]) -> list[Finding]:
    """Whether anything is ever decided, and by what the files say now."""
    count = len(problems)
    mistakes = f"{count} {'mistake' if count == 1 else 'mistakes'} in the files"
    if not rules.rules:
        why = f" ({mistakes})" if problems else ""
        text = f"none are in force{why}: nothing is done, and nobody is told"
        return [critical("FSW-RULE-NONE", "rules", text, _CORRECT if problems else _PUT)]
    if problems:
        text = f"{mistakes}: those that were read before stay in force"
        return [warning("FSW-RULE-LAST-GOOD", "rules", text, _CORRECT)]
    return [ok("FSW-DOCTOR-RULES", "rules", f"{len(rules.rules)} in force")]


def unheard(rules: RuleSet, channels: Collection[str]) -> list[Finding]:
    """Rules that mean to tell a channel that there is not; where there is none at all it is no
    fault of theirs (`node.channels`)."""
    if not channels:
        return []
    findings = []
    for rule in rules.rules:
        wrong = [pattern for pattern in _meant(rule) if not _fits(pattern, channels)]
        if wrong:
            text = f"it means to tell {', '.join(wrong)}, and no channel has such a name"
            remedy = f"correct `to` of its notify step; there are: {', '.join(channels)}"
            findings.append(warning("FSW-DOCTOR-TO", f"rule {rule.name}", text, remedy))
    return findings


def _meant(rule: Rule) -> Iterator[str]:
    """The patterns of its notify steps, each once."""
    steps = [step for step in rule.step if isinstance(step, NotifyStep)]
    yield from dict.fromkeys(pattern for step in steps for pattern in step.to)


def _fits(pattern: str, channels: Collection[str]) -> bool:
    """As `Notices` takes it; a drill brings its channel along."""
    return pattern == DRILL or any(fnmatch.fnmatchcase(name, pattern) for name in channels)
