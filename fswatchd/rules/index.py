"""Finds the rules that an incident matches, without asking each of a thousand. Pure.

Which rules are about a class, severity, filesystem type, node and platform is worked out once. Of
these, rules for one VE by its name, for names that begin alike and for a label's value are found by
what the VE has (`match.tokens`). Only what is left is asked of the incident.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fswatchd.rules import match
from fswatchd.rules.match import Match, Subject, Test, Token, VeNames

_LEVELS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class _Level:
    """Rules by their place: by what a VE must have for them, and the others in their order."""

    by_token: dict[Token, list[int]]
    others: list[int]


class RuleIndex:
    """Over the `match` tables of rules, in the order in which they are tried."""

    def __init__(self, matches: Sequence[Match]) -> None:
        self._matches = matches
        self._tests: dict[int, Test] = {}
        self._levels: dict[tuple[str, int, str, str, str | None], _Level] = {}

    def matching(self, subject: Subject) -> Iterator[int]:
        """The places of the rules that match, in order; with several VEs, all of them must."""
        ves: Sequence[VeNames | None] = subject.ves or (None,)
        for place in self._candidates(subject, ves[0]):
            test = self._tests.get(place)
            if test is None:
                test = self._tests[place] = match.whole(self._matches[place])
            if all(test(subject, ve) for ve in ves):
                yield place

    def _candidates(self, subject: Subject, ve: VeNames | None) -> Sequence[int]:
        platform = ve.platform if ve is not None else None
        key = (subject.klass, int(subject.severity), subject.fstype, subject.node, platform)
        level = self._levels.get(key)
        if level is None:
            if len(self._levels) >= _LEVELS_KEPT:
                self._levels.clear()
            level = self._levels[key] = self._level(subject, platform)
        if ve is None or not level.by_token:
            return level.others
        by_token = level.by_token
        found = [place for token in match.tokens_of(ve) for place in by_token.get(token, ())]
        return sorted({*level.others, *found}) if found else level.others

    def _level(self, subject: Subject, platform: str | None) -> _Level:
        level = _Level({}, [])
        for place, one in enumerate(self._matches):
            if subject.severity not in one.severity.accepted:
                continue
            asked = (
                (match.names(one.klass), subject.klass),
                (match.names(one.fstype), subject.fstype),
                (match.names(one.node), subject.node),
                (match.names(one.platform), platform),
            )
            if not all(fits is None or (name is not None and fits(name)) for fits, name in asked):
                continue
            tokens = match.tokens(one)
            if tokens is None:
                level.others.append(place)
            else:
                for token in tokens:
                    level.by_token.setdefault(token, []).append(place)
        return level
