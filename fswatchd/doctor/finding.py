"""One answer of `fswatch doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One answer: `level` is ok, warning or critical, `code` what `fswatch explain` knows it by."""

    code: str
    name: str
    level: str
    text: str
    remedy: str = ""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "code": self.code,
            "name": self.name,
            "level": self.level,
            "text": self.text,
            "remedy": self.remedy or None,
        }


def ok(code: str, name: str, text: str) -> Finding:
    """As it should be."""
    return Finding(code=code, name=name, level="ok", text=text)


def warning(code: str, name: str, text: str, remedy: str = "") -> Finding:
    """Something would not work, or not well."""
    return Finding(code=code, name=name, level="warning", text=text, remedy=remedy)


def critical(code: str, name: str, text: str, remedy: str = "") -> Finding:
    """The node is in danger, or the daemon of no use."""
    return Finding(code=code, name=name, level="critical", text=text, remedy=remedy)
