"""Rules: the text of `rules.d/*.toml` made into values, with every error found at once.

Pure: text in, `RuleSet` or a list of `RuleProblem` out; `rulefiles` reads the files. The keys are
described for admins in fswatchd.rules(5), which a test holds against these models.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import tomllib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from fswatchd.events import EventClass, Severity
from fswatchd.units import Threshold, parse_duration, parse_size, parse_threshold

Mode = Literal["observe", "approve", "auto"]
MODES: tuple[Mode, ...] = ("observe", "approve", "auto")


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _duration(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a duration in quotes, like "30s" or "10m"')
    return parse_duration(value)


def _threshold(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a threshold in quotes, like "3 in 10m"')
    return parse_threshold(value)


def _size(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('expected a size in quotes, like "500M"')
    return parse_size(value)


def _classes(value: object) -> object:
    patterns = _one_or_many(value)
    if isinstance(patterns, list):
        known = [klass.value for klass in EventClass]
        for pattern in patterns:
            if isinstance(pattern, str) and not any(fnmatch.filter(known, pattern)):
                raise ValueError(f"no class is called {pattern!r}{_did_you_mean(pattern, known)}")
    return patterns


Patterns = Annotated[list[str], BeforeValidator(_one_or_many), Field(min_length=1)]
ClassPatterns = Annotated[list[str], BeforeValidator(_classes), Field(min_length=1)]
Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]


@dataclass(frozen=True, slots=True)
class SeverityRange:
    """The severities a rule matches."""

    accepted: frozenset[Severity]


_COMPARE = re.compile(r"(>=|<=|>|<|=)?\s*([a-z]+)")


def _severities(value: object) -> SeverityRange:
    accepted: set[Severity] = set()
    terms = _one_or_many(value)
    if not isinstance(terms, list) or not terms:
        raise ValueError('expected a severity, like ">= error" or ["warning", "error"]')
    for term in terms:
        match = _COMPARE.fullmatch(term) if isinstance(term, str) else None
        labels = [severity.label for severity in Severity]
        if not match or match[2] not in labels:
            word = match[2] if match else str(term)
            raise ValueError(
                f'expected a severity, like ">= error", not {term!r}{_did_you_mean(word, labels)}'
            )
        bound = Severity.parse(match[2])
        compare = {
            ">=": bound.__le__,
            "<=": bound.__ge__,
            ">": bound.__lt__,
            "<": bound.__gt__,
        }.get(match[1] or "=", bound.__eq__)
        accepted |= {severity for severity in Severity if compare(severity)}
    return SeverityRange(frozenset(accepted))


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True
    )


class Match(_Table):
    """What an incident must be for the rule to apply; every key given must agree."""

    klass: ClassPatterns = Field(default=["*"], alias="class")
    severity: Annotated[SeverityRange, BeforeValidator(_severities)] = SeverityRange(
        frozenset(Severity)
    )
    fstype: Patterns = ["*"]
    ve: Patterns = ["*"]
    platform: Patterns = ["*"]
    node: Patterns = ["*"]
    label: dict[str, Patterns] = {}


class Budget(_Table):
    """How many repairs may run at once, on the node and on one backing device."""

    node: int = Field(default=1, ge=0)
    device: int = Field(default=1, ge=0)


class _Step(_Table):
    on_failure: Literal["quarantine", "continue", "rollback"] = "quarantine"
    timeout: Duration | None = None


class NotifyStep(_Step):
    """Tell these channels of the incident from here on."""

    do: Literal["notify"]
    to: Patterns = ["*"]
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
    keep_original: Duration = 7 * 86400.0  # see engine.retention


class ContainStep(_Step):
    """Stop further writing to the filesystem while it can still be read."""

    do: Literal["contain"]
    how: Literal["abort"] = "abort"


class PlainStep(_Step):
    """A step without options of its own."""

    do: Literal["freeze", "thaw", "stop", "start", "quarantine"]


class LaterStep(BaseModel):
    """A step that the rule language knows and this version cannot do."""

    model_config = ConfigDict(extra="allow", frozen=True)
    do: Literal["scrub", "trim", "evacuate", "exec"]


Step = Annotated[
    NotifyStep | RemountStep | SnapshotStep | FsckStep | ContainStep | PlainStep | LaterStep,
    Field(discriminator="do"),
]


class Rule(_Table):
    """One `[[rule]]`."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    match: Match = Match()
    threshold: Annotated[Threshold, BeforeValidator(_threshold)] = Threshold(1, 60.0)
    mode: Mode = "observe"
    cooldown: Duration = 1800.0
    budget: Budget = Budget()
    healthy: Duration = 60.0
    carry_on: bool = Field(default=False, alias="continue")
    step: list[Step] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleProblem:
    """One thing wrong with a rule file: where, what, and what to write instead."""

    file: str
    rule: str
    key: str
    message: str
    hint: str = ""
    code: str = "FSW-RULE"

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.rule, self.key) if part)
        return f"{place}: {self.message}" + (f"\n    {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in the order in which they are tried; `origin` maps a rule's name to its file."""

    rules: tuple[Rule, ...] = ()
    origin: tuple[tuple[str, str], ...] = ()


def parse_file(name: str, text: str) -> tuple[list[Rule], list[RuleProblem]]:
    """The rules in one file's text, and everything wrong with it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [], [RuleProblem(file=name, rule="", key="", message=f"not valid TOML: {error}")]
    problems = [
        RuleProblem(
            file=name,
            rule="",
            key=key,
            message="unknown key",
            hint="a rule file holds only [[rule]] tables",
        )
        for key in document
        if key != "rule"
    ]
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        hint = "write [[rule]] with two brackets"
        problem = RuleProblem(file=name, rule="", key="rule", message="not a list", hint=hint)
        return [], [*problems, problem]
    rules: list[Rule] = []
    for number, table in enumerate(tables, 1):
        label = str(table.get("name") or f"rule {number}")
        try:
            rule = Rule.model_validate(table)
        except ValidationError as error:
            problems += [_problem(name, label, detail) for detail in error.errors()]
        else:
            rules.append(rule)
            problems += _unavailable(name, rule)
    return rules, problems


def assemble(files: list[tuple[str, str]]) -> tuple[RuleSet, list[RuleProblem]]:
    """One set from `(file name, text)` in the order given; any problem makes the set empty."""
    rules: list[Rule] = []
    origin: dict[str, str] = {}
    problems: list[RuleProblem] = []
    for name, text in files:
        found, wrong = parse_file(name, text)
        problems += wrong
        for rule in found:
            if rule.name in origin:
                message = f"the name is taken by a rule in {origin[rule.name]}"
                hint = "every rule needs a name of its own: status, why and budgets use it"
                problems.append(
                    RuleProblem(file=name, rule=rule.name, key="name", message=message, hint=hint)
                )
            origin.setdefault(rule.name, name)
            rules.append(rule)
    return (RuleSet() if problems else RuleSet(tuple(rules), tuple(origin.items()))), problems


def step_from_options(options: dict[str, object]) -> Step:
    """A step again from what was recorded of it (already validated, durations in seconds)."""
    model = _STEP_MODELS[str(options["do"])]
    return model.model_construct(**options)  # type: ignore[arg-type, return-value]


def _unavailable(file: str, rule: Rule) -> list[RuleProblem]:
    problems = []
    for index, step in enumerate(rule.step):
        message = ""
        if isinstance(step, LaterStep):
            message = f'this version has no step "{step.do}"'
        elif isinstance(step, FsckStep) and step.strategy == "online":
            message = 'this version has no online strategy; write "clone" or "offline"'
        if message:
            key = f"step[{index + 1}]"
            problems.append(RuleProblem(file=file, rule=rule.name, key=key, message=message))
    return problems


_STEP_MODELS: dict[str, type[BaseModel]] = {
    "notify": NotifyStep,
    "remount": RemountStep,
    "snapshot": SnapshotStep,
    "fsck": FsckStep,
    "contain": ContainStep,
    **dict.fromkeys(("freeze", "thaw", "stop", "start", "quarantine"), PlainStep),
    **dict.fromkeys(("scrub", "trim", "evacuate", "exec"), LaterStep),
}
_MODELS: dict[str, type[BaseModel]] = {"match": Match, "budget": Budget}


def _problem(file: str, rule: str, detail: Any) -> RuleProblem:
    """A pydantic error in the words of an admin."""
    place = list(detail["loc"])
    kind, message, hint = detail["type"], detail["msg"].removeprefix("Value error, "), ""
    model: type[BaseModel] = Rule
    parts: list[str] = []
    for part in place:
        if isinstance(part, int):
            parts[-1:] = [f"{parts[-1]}[{part + 1}]"] if parts else [f"[{part + 1}]"]
        elif parts and parts[-1].startswith("step[") and part in _STEP_MODELS:
            model = _STEP_MODELS[part]  # the discriminator, not a key
        else:
            model = _MODELS.get(part, model) if part in _MODELS else model
            parts.append(part)
    key = ".".join(parts)
    last = str(place[-1]) if place else ""
    if kind == "extra_forbidden":
        message = f'unknown key "{last}"'
        hint = _did_you_mean(last, _keys(model)).lstrip("; ") or (
            f"known here: {', '.join(sorted(_keys(model)))}"
        )
    elif kind == "missing":
        message = f'"{last}" is missing'
    elif kind == "literal_error":
        wanted = detail["ctx"]["expected"].replace("'", '"')
        message = f"expected {wanted}, not {detail['input']!r}"
        hint = _did_you_mean(str(detail["input"]), re.findall(r'"([^"]*)"', wanted)).lstrip("; ")
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        key = f"{key}.do"
        given = detail["input"].get("do") if isinstance(detail["input"], dict) else detail["input"]
        message = f"no step is called {given!r}" if given else 'a step needs "do"'
        hint = _did_you_mean(str(given), list(_STEP_MODELS)).lstrip("; ") or (
            f"steps: {', '.join(_STEP_MODELS)}"
        )
    elif kind != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
    return RuleProblem(file=file, rule=rule, key=key, message=message, hint=hint)


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
