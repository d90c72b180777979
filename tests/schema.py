"""The published schema of events, as tests ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).parents[1] / "data" / "schema" / "event.schema.json"
SCHEMA: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
EVENT: dict[str, Any] = SCHEMA["$defs"]["event"]
GAP: dict[str, Any] = SCHEMA["$defs"]["gap"]

_VALIDATOR = Draft202012Validator(SCHEMA)


def problems(document: object) -> list[str]:
    """Everything about the document that the schema does not permit."""
    return [error.message for error in _VALIDATOR.iter_errors(document)]
