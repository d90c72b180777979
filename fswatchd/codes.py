"""Message codes: a stable name for everything the daemon refuses, asks, finds or tells.

What each means, and what to do, stands in `codes.toml`; `fswatch explain` shows it. Codes are never
renamed. Those of guards, steps and notices follow from the names that these have anyway.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

_NOT_A_WORD = re.compile(r"[^A-Z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One entry of the catalogue."""

    code: str
    means: str
    todo: str


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Explanation]:
    """Every code and its explanation, in the order of the file."""
    text = resources.files(__package__).joinpath("codes.toml").read_text(encoding="utf-8")
    return {
        code: Explanation(code=code, means=entry["means"], todo=entry["do"])
        for code, entry in tomllib.loads(text).items()
    }


def of_guard(guard: str) -> str:
    """The code of a guard's answer, by the name of the guard."""
    return f"FSW-GUARD-{_word(guard)}"


def of_step(result: str) -> str:
    """The code of how a step of a plan has ended, by its result."""
    return f"FSW-STEP-{_word(result)}"


def of_notice(kind: str) -> str:
    """The code of a notice, by its kind."""
    return f"FSW-NOTICE-{_word(kind)}"


def of_source(state: str) -> str:
    """The code of a source's state."""
    return f"FSW-SOURCE-{_word(state)}"


def _word(text: str) -> str:
    return _NOT_A_WORD.sub("-", text.upper()).strip("-")
