"""Finds the rules that an incident matches, without asking each of a thousand. Pure.

Which rules are about a class, severity, filesystem type, node and platform is worked out once, and
rules for one VE by its name are found by that name. Only what is left is asked of the incident.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fswatchd import match
from fswatchd.match import Match, Subject, Test, VeNames

_LEVELS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class _Level:
    """Rules by their place: those for one VE by its name, and the others in their order."""

    by_name: dict[str, list[int]]
    others: list[int]


class RuleIndex:
    """Over the `match` tables of rules, in the order in which they are tried."""

    def __init__(self, matches: Sequence[Match]) -> None:
        self._matches = matches
        self._tests = [_together(_left(one)) for one in matches]
        self._whole: dict[int, Test] = {}
        self._levels: dict[tuple[str, int, str, str, str | None], _Level] = {}

    def matching(self, subject: Subject) -> Iterator[int]:
        """The places of the rules that match, in order; with several VEs, all of them must."""
        first, others = (subject.ves[0], subject.ves[1:]) if subject.ves else (None, ())
        tests = self._tests
        for place in self._candidates(subject, first):
            test = tests[place]
            if (test is None or test(subject, first)) and (
                not others or all(self._whole_test(place)(subject, ve) for ve in others)
            ):
                yield place

    def _candidates(self, subject: Subject, ve: VeNames | None) -> list[int]:
        platform = ve.platform if ve is not None else None
        key = (subject.klass, int(subject.severity), subject.fstype, subject.node, platform)
        level = self._levels.get(key)
        if level is None:
            if len(self._levels) >= _LEVELS_KEPT:
                self._levels.clear()
            level = self._levels[key] = self._level(subject, platform)
        if ve is None or not level.by_name:
            return level.others
        named = {*level.by_name.get(ve.ve_id, ()), *level.by_name.get(ve.name, ())}
        return sorted({*level.others, *named}) if named else level.others

    def _level(self, subject: Subject, platform: str | None) -> _Level:
        level = _Level({}, [])
        for place, one in enumerate(self._matches):
            asked = (
                (match.names(one.klass), subject.klass),
                (match.names(one.fstype), subject.fstype),
                (match.names(one.node), subject.node),
            )
            if subject.severity not in one.severity.accepted:
                continue
            if not all(fits is None or fits(name) for fits, name in asked):
                continue
            wanted = match.names(one.platform)
            if wanted is not None and (platform is None or not wanted(platform)):
                continue
            if match.names(one.ve) is not None and platform is None:
                continue
            if all(map(match.is_literal, one.ve)):
                for name in set(one.ve):
                    level.by_name.setdefault(name, []).append(place)
            else:
                level.others.append(place)
        return level

    def _whole_test(self, place: int) -> Test:
        if place not in self._whole:
            self._whole[place] = match.whole(self._matches[place])
        return self._whole[place]


def _left(one: Match) -> list[Test]:
    """What neither the level nor the VE's name has answered."""
    left: list[Test] = []
    named = match.names(one.ve)
    if named is not None and not all(map(match.is_literal, one.ve)):
        left.append(lambda _subject, ve: ve is not None and (named(ve.ve_id) or named(ve.name)))
    return left + match.tests(one)


def _together(tests: list[Test]) -> Test | None:
    if len(tests) < 2:
        return tests[0] if tests else None
    return lambda subject, ve: all(test(subject, ve) for test in tests)
