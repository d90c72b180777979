"""What is not wrong with rules, and yet not what somebody can have meant. Pure.

An option that its step has no use for. A rule that is never used, because no incident is what it
asks for, or because an earlier one matches all that it matches; and a rule that acts in spite of an
earlier one which was to keep things narrower. Only what is certain for the first, and what is
possible for the second: a pattern is compared with a pattern, not with the VEs there are.
Conditions that are not compared here count as narrowing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from fswatchd.events import EventClass
from fswatchd.rules.match import REGEX, Match, SeverityRange
from fswatchd.rules.model import FsckStep, NotifyStep, Rule, RuleSet
from fswatchd.rules.modes import MODES
from fswatchd.rules.problem import RuleProblem

_SPECIAL = "*?["
_OF_A_CLONE = ("max_write_pause", "on_long_pause", "salvage_max")
_WIDTH: dict[str, int] = {mode: width for width, mode in enumerate(MODES)}


def warnings(rules: RuleSet) -> list[RuleProblem]:
    """Everything that looks unintended, in the order of the rules."""
    found: list[RuleProblem] = []
    origin = dict(rules.origin)
    for index, rule in enumerate(rules.rules):
        found += _unused_options(rule, origin)
        if why := _why_never(rule):
            found.append(_never(rule, why, origin))
            continue
        if rule.mode == "shadow":
            continue  # it only watches, beside whatever decides
        for earlier in rules.rules[:index]:
            if _decides(earlier) and covers(earlier.match, rule.match):
                found.append(_unreachable(rule, earlier, origin))
                break
        else:
            found += [
                _widens(rule, earlier, origin)
                for earlier in rules.rules[:index]
                if _narrower(earlier, rule) and may_overlap(earlier.match, rule.match)
            ]
    return found


def covers(one: Match, other: Match) -> bool:
    """Whether `one` certainly matches all that `other` matches."""
    return all(
        _covers(name, getattr(one, name), getattr(other, name)) for name in type(one).model_fields
    )


def may_overlap(one: Match, other: Match) -> bool:
    """Whether something may be matched by both; only what is certain makes it false."""
    for name in type(one).model_fields:
        mine, theirs = getattr(one, name), getattr(other, name)
        if isinstance(mine, SeverityRange) and not mine.accepted & theirs.accepted:
            return False
        if name in {"role", "confirmed"} and None not in {mine, theirs} and mine != theirs:
            return False
        if _is_patterns(mine) and _is_patterns(theirs) and not _patterns_overlap(mine, theirs):
            return False
        if name == "label" and any(
            not _patterns_overlap(mine[key], theirs[key]) for key in mine.keys() & theirs.keys()
        ):
            return False
    return True


def _decides(rule: Rule) -> bool:
    """Whether no later rule is asked about what it matches."""
    return rule.mode != "shadow" and not rule.carry_on


def _covers(name: str, mine: Any, theirs: Any) -> bool:
    if mine == theirs or mine == Match.model_fields[name].get_default(call_default_factory=True):
        return True
    if isinstance(mine, SeverityRange):
        return bool(theirs.accepted <= mine.accepted)
    if name == "klass":
        return _classes(theirs) <= _classes(mine)
    if name == "label":
        return all(
            key in theirs and _patterns_cover(patterns, theirs[key])
            for key, patterns in mine.items()
        )
    if _is_patterns(mine) and _is_patterns(theirs):
        return _patterns_cover(mine, theirs)
    return False


def _is_patterns(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _classes(patterns: Sequence[str]) -> set[str]:
    return {k.value for k in EventClass if any(fnmatch.fnmatchcase(k.value, p) for p in patterns)}


def _patterns_cover(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    return all(any(_pattern_covers(one, other) for one in mine) for other in theirs)


def _pattern_covers(one: str, other: str) -> bool:
    if one in {"*", other}:
        return True
    if REGEX in (one[: len(REGEX)], other[: len(REGEX)]):
        return False  # perhaps it does: nobody can say
    if not _is_glob(other):
        return fnmatch.fnmatchcase(other, one)
    # "web-*" covers "web-a*": all that begins with the longer one begins with the shorter.
    return one.endswith("*") and not _is_glob(one[:-1]) and _prefix(other).startswith(one[:-1])


def _patterns_overlap(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    return any(_pattern_overlaps(one, other) for one in mine for other in theirs)


def _pattern_overlaps(one: str, other: str) -> bool:
    if REGEX in (one[: len(REGEX)], other[: len(REGEX)]):
        return True
    if not _is_glob(one):
        return fnmatch.fnmatchcase(one, other)
    if not _is_glob(other):
        return fnmatch.fnmatchcase(other, one)
    shorter, longer = sorted((_prefix(one), _prefix(other)), key=len)
    return longer.startswith(shorter)


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in _SPECIAL)


def _prefix(pattern: str) -> str:
    ends = [pattern.index(character) for character in _SPECIAL if character in pattern]
    return pattern[: min(ends, default=len(pattern))]


def _why_never(rule: Rule) -> str:
    """Why no incident can be what it asks for; empty where one may."""
    asked = _classes(rule.match.klass)
    if not asked & _classes_of_incidents(rule):
        return f"no incident is of the class {' or '.join(sorted(asked))}"
    if any(covers(one, rule.match) for one in rule.match.none_of or ()):
        return "`not` excludes all that it matches"
    return ""


def _classes_of_incidents(rule: Rule) -> set[str]:
    found = {klass.value for klass in EventClass if klass.is_problem}
    if any(isinstance(step, FsckStep) for step in rule.step):
        # What a person wants repaired where nothing was heard. Other rules are not asked about it.
        found.add(EventClass.NONE.value)
    return found


def _narrower(earlier: Rule, rule: Rule) -> bool:
    """Whether the earlier one carries on, and may do less: then `rule` decides where both match."""
    if "shadow" in (earlier.mode, rule.mode) or not earlier.carry_on:
        return False
    if not any(not isinstance(step, NotifyStep) for step in rule.step):
        return False
    if any(not isinstance(step, NotifyStep) for step in earlier.step):
        return False  # the first one with steps that act decides
    return _WIDTH[earlier.mode] < _WIDTH[rule.mode]


def _never(rule: Rule, why: str, origin: dict[str, str]) -> RuleProblem:
    return RuleProblem(
        file=origin.get(rule.name, ""),
        rule=rule.name,
        key="match",
        message=f"never used: {why}",
        hint="take that out of the match, or the rule away",
        code="FSW-RULE-NEVER",
    )


def _unused_options(rule: Rule, origin: dict[str, str]) -> list[RuleProblem]:
    """What a step is told and never asks for: somebody may rely on it."""
    return [
        RuleProblem(
            file=origin.get(rule.name, ""),
            rule=rule.name,
            key=f"step[{number}].{name}",
            message=f"{step.strategy} has no use for it: only clone has",
            hint='take it away, or write strategy = "clone"',
            code="FSW-RULE-UNUSED-OPTION",
        )
        for number, step in enumerate(rule.step, 1)
        if isinstance(step, FsckStep) and step.strategy != "clone"
        for name in _OF_A_CLONE
        if name in step.model_fields_set
    ]


def _unreachable(rule: Rule, earlier: Rule, origin: dict[str, str]) -> RuleProblem:
    return RuleProblem(
        file=origin.get(rule.name, ""),
        rule=rule.name,
        key="match",
        message=f'never used: "{earlier.name}" ({origin.get(earlier.name, "?")}) matches all of it',
        hint="put it before that one, narrow the other's match, or give that one continue = true",
        code="FSW-RULE-UNREACHABLE",
    )


def _widens(rule: Rule, earlier: Rule, origin: dict[str, str]) -> RuleProblem:
    return RuleProblem(
        file=origin.get(rule.name, ""),
        rule=rule.name,
        key="mode",
        message=(
            f'acts in mode {rule.mode} also on what "{earlier.name}" '
            f"({origin.get(earlier.name, '?')}) was to keep to {earlier.mode}"
        ),
        hint=f'"{earlier.name}" has continue = true: take that away, or narrow this match',
        code="FSW-RULE-WIDENS",
    )
