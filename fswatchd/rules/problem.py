"""What is wrong with a rule file, in the words of an admin. Pure.

Each says where (file, rule, key), what, and what to write instead, with an example where the form
is wrong.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fswatchd.rules import hints
from fswatchd.rules.match import did_you_mean

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_TABLE = ("a table", '{ key = "value" }')
# The kind of a pydantic error: what is expected, and an example where the key has none.
_FORMS = {
    "bool_type": ("true or false, without quotes", "true"),
    "int_type": ("a whole number, without quotes", "2"),
    "float_type": ("a number, without quotes", "5"),
    "string_type": ("a text in quotes", '"ext4"'),
    "string_too_short": ("a text that is not empty", '"ext4"'),
    "list_type": ("a list", '["one", "two"]'),
    "too_short": ("a list that is not empty", '["one", "two"]'),
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "string_pattern_mismatch": (
        "a name of letters, digits, dots, dashes and underscores",
        'name = "ext4-damage"',
    ),
}


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


def problem(
    file: str,
    rule: str,
    detail: Any,
    model: type[BaseModel],
    steps: Mapping[str, type[BaseModel]],
    tables: Mapping[str, type[BaseModel]],
) -> RuleProblem:
    """A pydantic error in the words of an admin.

    `steps` are the models of steps by what they do, `tables` those of tables by their keys.
    """
    place = list(detail["loc"])
    kind = detail["type"]
    parts: list[str] = []
    for part in place:
        if isinstance(part, int):
            parts[-1:] = [f"{parts[-1]}[{part + 1}]"] if parts else [f"[{part + 1}]"]
        elif parts and parts[-1].startswith("step[") and part in steps:
            model = steps[part]  # the discriminator, not a key
        else:
            model = tables.get(part, model)
            parts.append(part)
    key = ".".join(parts)
    last = str(place[-1]) if place else ""
    if kind == "extra_forbidden":
        message = f'unknown key "{last}"'
        hint = did_you_mean(last, _keys(model)).lstrip("; ") or (
            f"known here: {', '.join(sorted(_keys(model)))}"
        )
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        key = f"{key}.do"
        given = detail["input"].get("do") if isinstance(detail["input"], dict) else detail["input"]
        message = f"no step is called {given!r}" if given else 'a step needs "do"'
        hint = did_you_mean(str(given), list(steps)).lstrip("; ") or (f"steps: {', '.join(steps)}")
    else:
        message, hint = wording(detail)
        if kind in _FORMS:
            hint = hints.example(key) or hint
    return RuleProblem(file=file, rule=rule, key=key, message=message, hint=hint)


def wording(detail: Any) -> tuple[str, str]:
    """What a pydantic error says about a value, and what to write; empty where it cannot tell."""
    kind, message = detail["type"], detail["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f'"{detail["loc"][-1]}" is missing', ""
    if kind == "literal_error":
        wanted = detail["ctx"]["expected"].replace("'", '"')
        meant = did_you_mean(str(detail["input"]), re.findall(r'"([^"]*)"', wanted))
        return f"expected {wanted}, not {shown(detail['input'])}", meant.lstrip("; ")
    if kind in _FORMS:
        form, example = _FORMS[kind]
        return f"expected {form}, not {shown(detail['input'])}", f"like {example}"
    if kind == "value_error":
        return message, ""
    return f"{message[0].lower()}{message[1:]}, not {shown(detail['input'])}", ""


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def shown(value: object) -> str:
    """A value, short; Python refuses to write an integer of more than 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return _SHORT.repr(value)
