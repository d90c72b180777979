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
