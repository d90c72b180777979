"""Rules: the text of `rules.d/*.toml` made into values, with every error found at once.

Pure: text in, `RuleSet` or a list of `RuleProblem` out; `files` reads them. The keys are
described for admins in fswatchd.rules(5), which a test holds against these models.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
)

from fswatchd.events import printable
from fswatchd.rules import hints
from fswatchd.rules.index import RuleIndex
from fswatchd.rules.match import (
    MAX_DEPTH,
    TABLE,
    Match,
    Patterns,
    Window,
    depth,
    did_you_mean,
    groups,
    one_or_many,
)
from fswatchd.rules.modes import RuleMode
from fswatchd.rules.problem import RuleProblem, problem
from fswatchd.units import Threshold, parse_duration, parse_size, parse_threshold


def _duration(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a duration in quotes, like "30s" or "10m"')
    return parse_duration(value)


def _some_time(value: float) -> float:
    if value <= 0:
        raise ValueError('expected more than no time; write it like "10m"')
    return value


def _threshold(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a threshold in quotes, like "3 in 10m"')
    return parse_threshold(value)


def _size(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a size in quotes, like "500M"')
    return parse_size(value)


def _absolute_program(value: list[str]) -> list[str]:
    if not value[0].startswith("/"):
        raise ValueError(f"expected the program's whole path first, not {value[0]!r}")
    return value


def _approver(value: str) -> str:
    if not _ACCOUNT.fullmatch(value):
        raise ValueError(
            f'expected a user, like "alice", or a group, like "@storage", not {value!r}'
        )
    return value


def _percent(value: object) -> object:
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not 0 < int(match[1]) <= 100:
        raise ValueError('expected a share of the VEs in quotes, like "25%"')
    return int(match[1]) / 100


def _resume(value: object) -> object:
    return None if value == "operator" else _duration(value)


_NAME_SHOWN = 80
_DOTS = 64
# More is a slip of the pen, and what no text and no column could hold.
_MOST, _LARGEST = 1_000_000, 1 << 60
_ACCOUNT = re.compile(r"@?[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?")
_QUOTED = re.compile(r'"[^"]*"' + r"|'[^']*'|#.*")
_BETWEEN_KEYS = re.compile(r"[=,{}\[\]]")
_USUAL_THRESHOLD = Threshold(1, 60.0)
_PERCENT = re.compile(r"(\d{1,3})\s*%")
Duration = Annotated[float, BeforeValidator(_duration)]
Approver = Annotated[str, AfterValidator(_approver)]
Size = Annotated[int, BeforeValidator(_size)]


class _Table(BaseModel):
    model_config = TABLE


class Budget(_Table):
    """How many repairs may run at once: on the node, on one backing device, on one filesystem that
    holds images (without a number of its own: as on a device), and among VEs that have the same
    value of a label."""

    node: int = Field(default=1, ge=0, le=_MOST)
    device: int = Field(default=1, ge=0, le=_MOST)
    filesystem: int | None = Field(default=None, ge=0, le=_MOST)
    label: dict[str, Annotated[int, Field(ge=0, le=_MOST)]] = Field(default_factory=dict)


class Storm(_Table):
    """`[storm]`: nothing is repaired while more VEs fail in a `window` than `ves`, or than the
    `share` of all. It ends when nothing failed for `resume` seconds, or, where that is None, when
    an operator says so."""

    ves: int | None = Field(default=None, ge=1, le=_MOST)
    share: Annotated[float, BeforeValidator(_percent)] | None = None
    window: Duration = 600.0
    resume: Annotated[float | None, BeforeValidator(_resume)] = None


class _Step(_Table):
    on_failure: Literal["quarantine", "continue", "rollback"] = "quarantine"
    timeout: Annotated[Duration, AfterValidator(_some_time)] | None = None


class NotifyStep(_Step):
    """Tell these channels of the incident from here on."""

    do: Literal["notify"]
    to: Patterns = Field(default_factory=lambda: ["*"])
    on_failure: Literal["quarantine", "continue", "rollback"] = "continue"


class RemountStep(_Step):
    """Make a filesystem writable that was made read-only without damage."""

    do: Literal["remount"]


class SnapshotStep(_Step):
    """Keep a copy of the VE's volume as it is now."""

    do: Literal["snapshot"]


class FsckStep(_Step):
    """Check, and repair by the strategy that is named."""

    do: Literal["fsck"]
    strategy: Literal["clone", "offline", "online"] = "clone"
    max_write_pause: Duration = 5.0
    on_long_pause: Literal["ask", "offline"] = "ask"
    salvage_max: Size = 1 << 30
    max_lost_files: int | None = Field(default=None, ge=0, le=_LARGEST)
    max_changes: int | None = Field(default=None, ge=0, le=_LARGEST)
    keep_original: Duration = 7 * 86400.0  # see engine.retention

    @property
    def is_bounded(self) -> bool:
        """Whether it does some repairs only after a question."""
        return self.max_lost_files is not None or self.max_changes is not None


class ContainStep(_Step):
    """Stop further writing to the filesystem while it can still be read."""

    do: Literal["contain"]
    how: Literal["abort"] = "abort"


class PlainStep(_Step):
    """A step without options of its own."""

    do: Literal["freeze", "thaw", "stop", "start", "quarantine", "scrub", "trim"]


class ExecStep(_Step):
    """Run a program of the admin's own."""

    do: Literal["exec"]
    run: Annotated[list[str], AfterValidator(_absolute_program)] = Field(min_length=1)
    memory: Size = 512 << 20
    max_output: Size = 64 << 10


class EvacuateStep(_Step):
    """Let the platform move the VE away from here."""

    do: Literal["evacuate"]
    to: str = ""


Step = Annotated[
    NotifyStep
    | RemountStep
    | SnapshotStep
    | FsckStep
    | ContainStep
    | PlainStep
    | ExecStep
    | EvacuateStep,
    Field(discriminator="do"),
]


class Rule(_Table):
    """One `[[rule]]`; durations in seconds."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    match: Match = Field(default_factory=Match)
    threshold: Annotated[Threshold, BeforeValidator(_threshold)] = Field(
        default_factory=lambda: _USUAL_THRESHOLD
    )
    mode: RuleMode = "observe"
    approval: Duration = 4 * 3600.0
    approvers: Annotated[list[Approver], BeforeValidator(one_or_many)] = Field(default_factory=list)
    cooldown: Duration = 1800.0
    backoff: Duration = 86400.0
    flap: Duration = 86400.0
    budget: Budget = Field(default_factory=Budget)
    copies: Annotated[str, Field(min_length=1)] | None = None
    healthy: Duration = 60.0
    carry_on: bool = Field(default=False, alias="continue")
    step: list[Step] = Field(min_length=1)

    @property
    def does(self) -> str:
        """A digest of what it would do: equal as long as mode and steps are, whatever else of the
        rule is changed. Whom it tells is none of that."""
        steps = [
            # What is as usual is left out: an option that a later version adds changes nothing.
            {"do": step.do, **step.model_dump(mode="json", exclude_defaults=True)}
            for step in self.step
            if not isinstance(step, NotifyStep)
        ]
        text = json.dumps([self.mode, steps], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RuleSet:
    """All rules in the order in which they are tried; `origin` maps a rule's name to its file."""

    rules: tuple[Rule, ...] = ()
    origin: tuple[tuple[str, str], ...] = ()
    storm: Storm | None = None

    @cached_property
    def index(self) -> RuleIndex:
        """Finds those that an incident matches."""
        return RuleIndex([rule.match for rule in self.rules])

    @cached_property
    def files(self) -> dict[str, str]:
        """`origin`, for looking up."""
        return dict(self.origin)

    @cached_property
    def by_name(self) -> dict[str, Rule]:
        """Each by its name."""
        return {rule.name: rule for rule in self.rules}

    @cached_property
    def has_shadows(self) -> bool:
        """Whether a rule only watches."""
        return any(rule.mode == "shadow" for rule in self.rules)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The times of day that rules ask for: at their borders another rule may apply."""
        asked = [
            window for rule in self.rules for one in groups(rule.match) for window in one.during
        ]
        return tuple(dict.fromkeys(asked))

    @cached_property
    def copy_labels(self) -> tuple[str, ...]:
        """The labels whose values name groups of copies."""
        return tuple(dict.fromkeys(rule.copies for rule in self.rules if rule.copies))


def parse_file(name: str, text: str) -> tuple[list[Rule], list[RuleProblem]]:
    """The rules in one file's text, and everything wrong with it."""
    rules, _, problems = _parse(name, text)
    return rules, [_with_hint(problem) for problem in problems]


def _parse(name: str, text: str) -> tuple[list[Rule], Storm | None, list[RuleProblem]]:
    try:
        if _is_too_deep(text):
            raise RecursionError
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError: an integer of 5000 digits
        message = "too many tables in each other" if isinstance(error, RecursionError) else error
        broken = RuleProblem(file=name, rule="", key="", message=f"not valid TOML: {message}")
        return [], None, [broken]
    problems = [
        RuleProblem(
            file=name,
            rule="",
            key=key,
            message="unknown key",
            hint=did_you_mean(key, ["rule", "storm"]).lstrip("; ")
            or "a rule file holds only [[rule]] tables and [storm]",
        )
        for key in document
        if key not in {"rule", "storm"}
    ]
    storm = None
    if "storm" in document:
        storm, wrong = _parse_storm(name, document["storm"])
        problems += wrong
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        hint = "write [[rule]] with two brackets"
        one = RuleProblem(file=name, rule="", key="rule", message="not a list", hint=hint)
        return [], storm, [*problems, one]
    rules: list[Rule] = []
    for number, table in enumerate(tables, 1):
        label = printable(str(table.get("name") or f"rule {number}"), _NAME_SHOWN)
        try:
            rule = Rule.model_validate(table)
        except ValidationError as error:
            problems += [
                problem(name, label, detail, Rule, _STEP_MODELS, _MODELS)
                for detail in error.errors()
            ]
        else:
            rules.append(rule)
            problems += _unavailable(name, rule)
    return rules, storm, problems


def _is_too_deep(text: str) -> bool:
    """Whether a key has so many dots that the parser would take for ever over it, or fall over."""
    lines = (_QUOTED.sub("", line) for line in text.splitlines() if line.count(".") > _DOTS)
    return any(part.count(".") > _DOTS for line in lines for part in _BETWEEN_KEYS.split(line))


def _parse_storm(name: str, table: object) -> tuple[Storm | None, list[RuleProblem]]:
    try:
        storm = Storm.model_validate(table)
    except ValidationError as error:
        return None, [
            problem(name, "storm", detail, Storm, _STEP_MODELS, _MODELS)
            for detail in error.errors()
        ]
    if storm.ves is None and storm.share is None:
        message = "neither `ves` nor `share` says how many failing VEs are a storm"
        hint = 'write ves = 10, or share = "25%", or leave the table out'
        return None, [RuleProblem(file=name, rule="storm", key="ves", message=message, hint=hint)]
    return storm, []


def assemble(files: list[tuple[str, str]]) -> tuple[RuleSet, list[RuleProblem]]:
    """One set from `(file name, text)` in the order given; any problem makes the set empty."""
    rules: list[Rule] = []
    origin: dict[str, str] = {}
    storm: tuple[Storm, str] | None = None
    problems: list[RuleProblem] = []
    for name, text in files:
        found, found_storm, wrong = _parse(name, text)
        problems += [_with_hint(problem) for problem in wrong]
        if found_storm is not None and storm is not None:
            message = f"there is a [storm] in {storm[1]} already"
            hint = "a file of the same name in a later directory replaces that one"
            problems.append(
                RuleProblem(file=name, rule="storm", key="", message=message, hint=hint)
            )
        elif found_storm is not None:
            storm = (found_storm, name)
        for rule in found:
            if rule.name in origin:
                message = f"the name is taken by a rule in {origin[rule.name]}"
                hint = "every rule needs a name of its own: status, why and budgets use it"
                problems.append(
                    RuleProblem(file=name, rule=rule.name, key="name", message=message, hint=hint)
                )
            origin.setdefault(rule.name, name)
            rules.append(rule)
    if problems:
        return RuleSet(), problems
    return RuleSet(tuple(rules), tuple(origin.items()), storm[0] if storm else None), []


def step_from_options(options: dict[str, object]) -> Step:
    """A step again from what was recorded of it (already validated, durations in seconds)."""
    model = _STEP_MODELS[str(options["do"])]
    return model.model_construct(**options)  # type: ignore[arg-type, return-value]


def _unavailable(file: str, rule: Rule) -> list[RuleProblem]:
    problems = []
    if depth(rule.match) > MAX_DEPTH:
        message = f"more than {MAX_DEPTH} groups in each other"
        problems.append(RuleProblem(file=file, rule=rule.name, key="match", message=message))
    for index, step in enumerate(rule.step):
        message = ""
        if isinstance(step, FsckStep) and step.strategy != "clone" and step.is_bounded:
            message = "max_lost_files and max_changes need a preview: only clone has one"
        if message:
            key = f"step[{index + 1}]"
            problems.append(RuleProblem(file=file, rule=rule.name, key=key, message=message))
    return problems


def _with_hint(problem: RuleProblem) -> RuleProblem:
    if problem.hint:
        return problem
    message, hint = hints.completed(problem.key, problem.message)
    return replace(problem, message=message, hint=hint)


_STEP_MODELS: dict[str, type[BaseModel]] = {
    "notify": NotifyStep,
    "remount": RemountStep,
    "snapshot": SnapshotStep,
    "fsck": FsckStep,
    "contain": ContainStep,
    **dict.fromkeys(("freeze", "thaw", "stop", "start", "quarantine", "scrub", "trim"), PlainStep),
    "exec": ExecStep,
    "evacuate": EvacuateStep,
}
_MODELS: dict[str, type[BaseModel]] = {
    **dict.fromkeys(("match", "any", "all", "not"), Match),
    "budget": Budget,
}


def _problems(
    file: str, rule: str, error: ValidationError, model: type[BaseModel]
) -> list[RuleProblem]:
    found = error.errors(include_url=False)
    return [problem(file, rule, one, model, _STEP_MODELS, _MODELS) for one in found]
