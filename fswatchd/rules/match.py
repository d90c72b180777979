"""What a rule asks of an incident: the `match` table, and the answer to it. Pure.

Every key that is given must agree. Names are globs; a text that begins with `re:` is a regular
expression for what no glob can say, and must fit the whole name. These are matched by RE2, in time
linear in the name: a tenant chooses names, and must not be able to hold the daemon up with one.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fswatchd.events import EventClass, Severity

REGEX = "re:"
DAY_S = 86400
CLASSES = tuple(klass.value for klass in EventClass)
CAUSES = ("device", "filesystem", "space", "ve", "none")
# Of the drivers (`platforms.every`), and of what none of them knows (`platforms.scope`).
PLATFORMS = (
    "proxmox",
    "openvz",
    "incus",
    "lxd",
    "nspawn",
    "podman",
    "docker",
    "cri",
    "lxc",
    "libvirt",
    "uml",
    "declared",
    "drill",
    "scope",
)
# Deeper groups than this say nothing that a person could read.
MAX_DEPTH = 8


class VeNames(Protocol):
    """What of a VE can be matched."""

    @property
    def ve_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def platform(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What rules may ask about. `local_s` is the node's local time, in seconds of its day; None
    where it is not known: then no rule applies that asks for it."""

    klass: str
    severity: Severity
    fstype: str
    node: str
    role: str
    cause: str
    confirmed: bool
    ve_count: int
    local_s: int | None
    ves: Sequence[VeNames]


Token = tuple[str, str]
Test = Callable[[Subject, VeNames | None], bool]


# --- values -------------------------------------------------------------------------------------


def one_or_many(value: object) -> object:
    """A list of one for a text."""
    return [value] if isinstance(value, str) else value


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean "X"?`, empty where nothing is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def _patterns(value: object) -> object:
    patterns = one_or_many(value)
    for pattern in patterns if isinstance(patterns, list) else ():
        if isinstance(pattern, str) and pattern.startswith(REGEX):
            _regex(pattern)
    return patterns


def _one_table(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def _known(patterns: object, known: Sequence[str], what: str) -> object:
    patterns = one_or_many(patterns)
    for pattern in patterns if isinstance(patterns, list) else ():
        if isinstance(pattern, str) and pattern not in known and not fnmatch.filter(known, pattern):
            raise ValueError(f"no {what} is called {pattern!r}{did_you_mean(pattern, known)}")
    return patterns


def _classes(value: object) -> object:
    return _known(value, CLASSES, "class")


def _causes(value: object) -> object:
    return _known(value, CAUSES, "cause")


def _platforms(value: object) -> object:
    patterns = _patterns(value)
    if isinstance(patterns, list):
        named = [one for one in patterns if not str(one).startswith(REGEX)]
        _known(named, PLATFORMS, "platform")
    return patterns


@dataclass(frozen=True, slots=True)
class SeverityRange:
    """The severities a rule matches."""

    accepted: frozenset[Severity]


_EVERY_SEVERITY = SeverityRange(frozenset(Severity))
_COMPARE = re.compile(r"(>=|<=|>|<|=)?\s*([a-z]+)")
_COUNT = re.compile(r"(>=|<=|>|<|=)?\s*(\d{1,6})")
_PREFIX = re.compile(r"[^*?[]+")
_WINDOW = re.compile(r"(\d\d):(\d\d)\s*-\s*(\d\d):(\d\d)")


def _severities(value: object) -> SeverityRange:
    accepted: set[Severity] = set()
    terms = one_or_many(value)
    if not isinstance(terms, list) or not terms:
        raise ValueError('expected a severity, like ">= error" or ["warning", "error"]')
    for term in terms:
        match = _COMPARE.fullmatch(term) if isinstance(term, str) else None
        labels = [severity.label for severity in Severity]
        if not match or match[2] not in labels:
            word = match[2] if match else str(term)
            raise ValueError(
                f'expected a severity, like ">= error", not {term!r}{did_you_mean(word, labels)}'
            )
        bound = Severity.parse(match[2])
        accepted |= {one for one in Severity if _compared(match[1], one, bound)}
    if not accepted:
        raise ValueError('no severity is meant by that; write it like ">= error"')
    return SeverityRange(frozenset(accepted))


def _compared(operator: str | None, value: int, bound: int) -> bool:
    return {
        ">=": value >= bound,
        "<=": value <= bound,
        ">": value > bound,
        "<": value < bound,
    }.get(operator or "=", value == bound)


@dataclass(frozen=True, slots=True)
class CountRange:
    """How many VEs an incident must concern: `operator` and `bound`, as in `>= 3`."""

    operator: str
    bound: int

    def accepts(self, count: int) -> bool:
        """Whether so many are meant."""
        return _compared(self.operator, count, self.bound)


def _count(value: object) -> CountRange:
    match = _COUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a count of VEs in quotes, like ">= 3" or "1"')
    return CountRange(match[1] or "=", int(match[2]))


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the day, in seconds of it; over midnight where it ends before it begins."""

    begin_s: int
    end_s: int

    def holds(self, local_s: int) -> bool:
        """Whether the time lies in it; its end does not."""
        if self.begin_s < self.end_s:
            return self.begin_s <= local_s < self.end_s
        return local_s >= self.begin_s or local_s < self.end_s

    def next_border_s(self, local_s: int) -> int:
        """Seconds until it begins or ends."""
        return min((border - local_s - 1) % DAY_S + 1 for border in (self.begin_s, self.end_s))


def _windows(value: object) -> tuple[Window, ...]:
    terms = one_or_many(value)
    windows: list[Window] = []
    for term in terms if isinstance(terms, list) else [value]:
        match = _WINDOW.fullmatch(term.strip()) if isinstance(term, str) else None
        hours = [int(part) for part in match.groups()] if match else []
        if not hours or max(hours[0], hours[2]) > 24 or max(hours[1], hours[3]) > 59:
            raise ValueError(
                f'{term!r} is no time of day; write it like "02:00-06:00" or "22:00-06:00"'
            )
        begin_s, end_s = hours[0] * 3600 + hours[1] * 60, hours[2] * 3600 + hours[3] * 60
        if begin_s in (end_s, DAY_S) or max(begin_s, end_s) > DAY_S:
            raise ValueError(f"{term!r} is empty; a whole day needs no `during`")
        windows.append(Window(begin_s, end_s))
    if not windows:
        raise ValueError('expected a time of day, like "02:00-06:00"')
    return tuple(windows)


Patterns = Annotated[list[str], BeforeValidator(one_or_many), Field(min_length=1)]
NamePatterns = Annotated[list[str], BeforeValidator(_patterns), Field(min_length=1)]
ClassPatterns = Annotated[list[str], BeforeValidator(_classes), Field(min_length=1)]
CausePatterns = Annotated[list[str], BeforeValidator(_causes), Field(min_length=1)]
PlatformPatterns = Annotated[list[str], BeforeValidator(_platforms), Field(min_length=1)]


def _every() -> list[str]:
    return ["*"]


# How each table of a rule file is read.
TABLE = ConfigDict(
    extra="forbid",
    frozen=True,
    strict=True,
    arbitrary_types_allowed=True,
    # Built with the first rule that is read, and once only: not for each kind of step.
    defer_build=True,
)


class Match(BaseModel):
    """What an incident must be for the rule to apply; every key given must agree."""

    model_config = TABLE

    klass: ClassPatterns = Field(default_factory=_every, alias="class")
    severity: Annotated[SeverityRange, BeforeValidator(_severities)] = Field(
        default_factory=lambda: _EVERY_SEVERITY
    )
    fstype: NamePatterns = Field(default_factory=_every)
    ve: NamePatterns = Field(default_factory=_every)
    platform: PlatformPatterns = Field(default_factory=_every)
    node: NamePatterns = Field(default_factory=_every)
    label: dict[str, NamePatterns] = Field(default_factory=dict)
    role: Literal["rootfs", "data"] | None = None
    cause: CausePatterns = Field(default_factory=_every)
    ves: Annotated[CountRange, BeforeValidator(_count)] | None = None
    during: Annotated[tuple[Window, ...], BeforeValidator(_windows)] = ()
    confirmed: bool | None = None
    any_of: list[Match] | None = Field(default=None, alias="any", min_length=1)
    all_of: list[Match] | None = Field(default=None, alias="all", min_length=1)
    none_of: Annotated[list[Match], BeforeValidator(_one_table)] | None = Field(
        default=None, alias="not", min_length=1
    )


def groups(match: Match) -> Iterator[Match]:
    """The table itself, and all that are in it."""
    yield match
    for inner in (*(match.any_of or ()), *(match.all_of or ()), *(match.none_of or ())):
        yield from groups(inner)


def depth(match: Match) -> int:
    """How many tables stand in each other."""
    inner = (*(match.any_of or ()), *(match.all_of or ()), *(match.none_of or ()))
    return 1 + max(map(depth, inner), default=0)


# --- answers ------------------------------------------------------------------------------------


def names(patterns: list[str]) -> Callable[[str], bool] | None:
    """Whether a name fits one of the patterns; None where every name does."""
    if "*" in patterns:
        return None
    literal = frozenset(one for one in patterns if is_literal(one))
    if len(literal) == len(patterns):
        return literal.__contains__
    globs = [fnmatch.translate(p) for p in patterns if p not in literal and p[:3] != REGEX]
    tests: list[Callable[[str], object]] = [_regex(p) for p in patterns if p[:3] == REGEX]
    if globs:
        tests.append(re.compile("|".join(globs)).match)
    return lambda name: name in literal or any(test(name) for test in tests)


def is_literal(pattern: str) -> bool:
    """Whether the pattern is a name itself."""
    return not pattern.startswith(REGEX) and not any(sign in pattern for sign in "*?[")


def tokens(match: Match) -> list[Token] | None:
    """What a VE must have one of for the table to match it; None where that cannot be said.

    `("ve", NAME)`, `("prefix", what its name begins with)`, `("label KEY", VALUE)`.
    """
    if "*" not in match.ve and (found := _name_tokens(match.ve)) is not None:
        return found
    for key, patterns in match.label.items():
        if all(pattern and is_literal(pattern) for pattern in patterns):
            return [(f"label {key}", pattern) for pattern in patterns]
    for one in match.all_of or ():
        if (found := tokens(one)) is not None:
            return found
    parts = [tokens(one) for one in match.any_of or ()]
    if parts and None not in parts:
        return [token for part in parts for token in part or ()]
    return None


def tokens_of(ve: VeNames) -> list[Token]:
    """All that `tokens` could name of this VE."""
    names = _called(ve)
    found = [("ve", name) for name in (*names, *_written_out(ve))]
    found += [("prefix", name[:end]) for name in names for end in range(1, len(name) + 1)]
    found += [(f"label {key}", value) for key, value in ve.labels.items()]
    return found


def _called(ve: VeNames) -> tuple[str, ...]:
    return (ve.ve_id, ve.name, *ve.aliases)


def _written_out(ve: VeNames) -> list[str]:
    """How else a person may write its name, as in every command: its ids without the platform
    before them, and a number with or without "ve".

    Not for globs, which would meet the random ids of engines.
    """
    bare = [one.partition(":")[2] for one in (ve.ve_id, *ve.aliases)]
    numbers = {one.removeprefix("ve") for one in (ve.name, *bare)}
    short = [f"{ve}{one}" for one in numbers if one.isdecimal() for ve in ("", "ve")]
    return [*bare, *short, *(f"{ve.platform}:{one}" for one in short)]


def _name_tokens(patterns: list[str]) -> list[Token] | None:
    found: list[Token] = []
    for pattern in patterns:
        begin = _PREFIX.match(pattern)
        if is_literal(pattern):
            found.append(("ve", pattern))
        elif begin and not pattern.startswith(REGEX):
            found.append(("prefix", begin[0]))
        else:
            return None
    return found


def _regex(pattern: str) -> Callable[[str], object]:
    text = pattern.removeprefix(REGEX)
    try:
        import re2
    except ImportError:
        raise ValueError(f"{pattern!r} needs the Python package google-re2") from None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(text, options).fullmatch
    except re2.error as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, bytes):
            reason = reason.decode(errors="replace")
        raise ValueError(
            f"{pattern!r} is no regular expression that can be matched in linear time: {reason}"
        ) from None


def tests(match: Match) -> list[Test]:
    """What is left to ask of an incident whose class, severity, type, node and VE agree."""
    found: list[Test] = []
    if match.role is not None:
        role = match.role
        found.append(lambda subject, _ve: subject.role == role)
    if match.confirmed is not None:
        confirmed = match.confirmed
        found.append(lambda subject, _ve: subject.confirmed is confirmed)
    if match.ves is not None:
        accepts = match.ves.accepts
        found.append(lambda subject, _ve: accepts(subject.ve_count))
    if (cause := names(match.cause)) is not None:
        found.append(lambda subject, _ve: cause(subject.cause))
    if match.during:
        windows = match.during
        found.append(
            lambda subject, _ve: (
                subject.local_s is not None and any(one.holds(subject.local_s) for one in windows)
            )
        )
    for key, patterns in match.label.items():
        found.append(_label(key, names(patterns)))
    if match.any_of is not None:
        parts = [whole(one) for one in match.any_of]
        found.append(lambda subject, ve: any(one(subject, ve) for one in parts))
    found += [whole(one) for one in match.all_of or ()]
    found += [_not(whole(one)) for one in match.none_of or ()]
    return found


def whole(match: Match) -> Test:
    """Everything that the table asks, as one question."""
    parts: list[Test] = []
    if (klass := names(match.klass)) is not None:
        parts.append(lambda subject, _ve: klass(subject.klass))
    accepted = match.severity.accepted
    parts.append(lambda subject, _ve: subject.severity in accepted)
    if (fstype := names(match.fstype)) is not None:
        parts.append(lambda subject, _ve: fstype(subject.fstype))
    if (node := names(match.node)) is not None:
        parts.append(lambda subject, _ve: node(subject.node))
    if (platform := names(match.platform)) is not None:
        parts.append(lambda _subject, ve: ve is not None and platform(ve.platform))
    if (named := names(match.ve)) is not None:
        literal = frozenset(filter(is_literal, match.ve or ()))
        parts.append(
            lambda _s, ve: (
                ve is not None
                and (
                    any(named(one) for one in _called(ve))
                    or not literal.isdisjoint(_written_out(ve))
                )
            )
        )
    parts += tests(match)
    return lambda subject, ve: all(part(subject, ve) for part in parts)


def _label(key: str, fits: Callable[[str], bool] | None) -> Test:
    if fits is None:
        return lambda _subject, ve: ve is not None
    return lambda _subject, ve: ve is not None and fits(ve.labels.get(key, ""))


def _not(test: Test) -> Test:
    return lambda subject, ve: not test(subject, ve)
